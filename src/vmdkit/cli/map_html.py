# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the map of a disk as one HTML page that needs nothing else: no script, no network, no other file.

One bar for each link of the chain. Up to EXACT runs are drawn as they are; of more, each bar shows CELLS equal parts
with what they hold, so that the page and the memory stay small for a disk of any size. Whatever the disk says about
itself is escaped, and the page forbids itself everything but its own style (a Content Security Policy by hash).
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from vmdkit.cli.map import kind_of
from vmdkit.cli.render import emit, safe_text
from vmdkit.storage.target import new_file
from vmdkit.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmdkit.cli.map import Row
    from vmdkit.device import Device

EXACT = 4000  # runs drawn one by one
CELLS = 1000  # parts of a bar where there are more runs
LISTED = 500  # runs in the table below the bars
_WIDTH = 1000  # units of a bar
_LEAST = 0.4  # units: what the eye still sees

_KINDS = ("data", "compressed", "zero", "hole")
_MEANING = {
    "data": "data",
    "compressed": "compressed data",
    "zero": "zero, stated or a hole of the file",
    "hole": "hole: allocated nowhere, reads as zero",
}
_STYLE = """
:root{color-scheme:light dark;--data:#2b6cb0;--compressed:#805ad5;--zero:#a0aec0;--hole:#e2e8f0}
@media (prefers-color-scheme:dark){:root{--data:#63b3ed;--compressed:#b794f4;--zero:#718096;--hole:#2d3748}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1rem;margin:1.5rem 0 .3rem}
svg{display:block;width:100%;height:3rem;background:var(--hole)}
rect:hover{stroke:currentColor;stroke-width:1;vector-effect:non-scaling-stroke}
.data{fill:var(--data)}.compressed{fill:var(--compressed)}.zero{fill:var(--zero)}.hole{fill:var(--hole)}
.key{width:1rem;height:1rem;display:inline-block}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.1rem .8rem .1rem 0;text-align:left}
td.n,th.n{text-align:right}td{overflow-wrap:anywhere}
"""


def write_page(device: Device, rows: Iterable[Row], disk: str, path: str, *, overwrite: bool) -> None:
    """Write the page to ``path``, '-' for stdout. Raises UsageError where it exists and may not be overwritten."""
    drawing = Drawing(device.size)
    for row in rows:
        drawing.add(row)
    page = "".join(drawing.page(disk))
    if path == "-":
        emit(page)
        return
    data = page.encode()
    with new_file(path, len(data), overwrite=overwrite, sync=False) as file:
        file.pwrite(data, 0)


class Drawing:
    """What the page will show, in bounded memory: the first runs, and sums for each part of each bar."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.runs = 0
        self.first: list[Row] = []
        self.cells: dict[int, list[list[int]]] = {}  # depth -> for each kind -> bytes in each cell
        self.totals = dict.fromkeys(_KINDS, 0)

    def add(self, row: Row) -> None:
        """Take one more run."""
        self.runs += 1
        if len(self.first) < EXACT:
            self.first.append(row)
        kind = kind_of(row)
        self.totals[kind] += row.length
        sums = self.cells.setdefault(row.depth, [[0] * CELLS for _ in _KINDS])[_KINDS.index(kind)]
        offset, end = row.start, row.start + row.length
        while offset < end:
            cell = min(offset * CELLS // self.size, CELLS - 1)
            step = min(end, self._start(cell + 1)) - offset
            sums[cell] += step
            offset += step

    def page(self, disk: str) -> Iterator[str]:
        """Yield the page, in pieces."""
        name = escape(safe_text(disk))
        digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
        yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        yield '<meta http-equiv="Content-Security-Policy" '
        yield f"content=\"default-src 'none'; style-src 'sha256-{digest}'\">\n"
        yield f"<title>Map of {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        yield f"<p>{self.size} bytes ({format_size(self.size)}), {self.runs} runs</p>\n"
        yield from self._legend()
        for depth in sorted(self.cells):
            title = "this disk" if not depth else f"parent {depth}"
            yield f"<h2>{title}</h2>\n"
            yield f'<svg viewBox="0 0 {_WIDTH} 20" preserveAspectRatio="none" role="img" aria-label="{title}">\n'
            yield from self._exact(depth) if self.runs <= EXACT else self._summed(depth)
            yield "</svg>\n"
        yield from self._list()
        yield "</body>\n</html>\n"

    def _start(self, cell: int) -> int:
        return -(-cell * self.size // CELLS)

    def _legend(self) -> Iterator[str]:
        yield "<table>\n"
        for kind in _KINDS:
            total = self.totals[kind]
            share = 100 * total / self.size if self.size else 0
            yield f'<tr><td><svg class="key"><rect class="{kind}" width="100%" height="100%"/></svg></td>'
            yield f'<td>{_MEANING[kind]}</td><td class="n">{format_size(total)}</td>'
            yield f'<td class="n">{share:.1f} %</td></tr>\n'
        yield "</table>\n"

    def _exact(self, depth: int) -> Iterator[str]:
        """Draw holes first, so that a thin run is not hidden by the hole after it."""
        found = [row for row in self.first if row.depth == depth]
        for row in sorted(found, key=lambda row: row.present):
            kind = kind_of(row)
            where = f", in {escape(safe_text(row.filename))} at {row.at}" if row.at >= 0 else ""
            text = f"{row.start} + {row.length} ({format_size(row.length)}): {kind}{where}"
            yield self._rectangle(row.start, row.length, kind, 1.0, text)

    def _summed(self, depth: int) -> Iterator[str]:
        for cell in range(CELLS):
            sums = {kind: self.cells[depth][number][cell] for number, kind in enumerate(_KINDS)}
            start = self._start(cell)
            length = self._start(cell + 1) - start
            held = sum(sums.values())
            if not held:
                continue
            kind = next((kind for kind in _KINDS[:2] if sums[kind]), "zero" if sums["zero"] else "hole")
            share = (sums["data"] + sums["compressed"] or held) / length
            parts = ", ".join(f"{format_size(count)} {name}" for name, count in sums.items() if count)
            text = f"{start} + {length}: {parts}"
            yield self._rectangle(start, length, kind, 0.3 + 0.7 * min(share, 1), text)

    def _rectangle(self, start: int, length: int, kind: str, opacity: float, text: str) -> str:
        width = max(_WIDTH * length / self.size, _LEAST)
        left = min(_WIDTH * start / self.size, _WIDTH - width)
        fade = "" if opacity == 1 else f' fill-opacity="{opacity:.2f}"'
        return (
            f'<rect class="{kind}" x="{left:.3f}" width="{width:.3f}" height="20"{fade}><title>{text}</title></rect>\n'
        )

    def _list(self) -> Iterator[str]:
        listed = self.first[:LISTED]
        more = f", the first {len(listed)} of {self.runs}" if self.runs > len(listed) else ""
        yield f'<h2>Runs{more}</h2>\n<table>\n<tr><th class="n">offset</th><th class="n">length</th>'
        yield '<th>kind</th><th class="n">link</th><th class="n">at</th><th>file</th></tr>\n'
        for row in listed:
            at = str(row.at) if row.at >= 0 else ""
            yield f'<tr><td class="n">{row.start}</td><td class="n">{row.length}</td><td>{kind_of(row)}</td>'
            yield f'<td class="n">{row.depth}</td><td class="n">{at}</td>'
            yield f"<td>{escape(safe_text(row.filename))}</td></tr>\n"
        yield "</table>\n"
