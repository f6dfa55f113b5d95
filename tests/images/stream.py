# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""streamOptimized in each layout that is found.

* A: what ESX exports: grains first, a marker before each table, directory and footer, all found from the end
* B: what disklib and VDDK write: directory and tables in front as in a hosted sparse file, then grains
* QEMU: as B, with a redundant directory and no end-of-stream sector
* BARE: as B, with flag b17 clear: no markers, and only a length before each grain
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Unpack

from images.base import Cell, Common, Draft, Field, Image, Part, Sparse, cells, named, runs_of, sectors, up
from images.hosted import GTES, HEADER, header
from images.text import DDB_SMALL
from layout import DATA, HOLE, SECTOR

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model import Model

TABLE: Final = GTES * 4  # bytes
AT_END: Final = (1 << 64) - 1
EOS, GT, GD, FOOTER, PROGRESS, UNKNOWN = 0, 1, 2, 3, 4, 0x77
COMPRESSED, MARKERS = 1 << 16, 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Knobs of a stream; the default is layout A."""

    footer: bool = True  # layout A; else the directory is in front
    grain: int = 64 << 10
    version: int = 3
    markers: bool = True
    rgd: bool = False  # only without footer
    eos: bool = True
    descriptor: int = 20
    overhead: int | None = 128  # sectors; None: as little as possible
    level: int = 6
    short_last: bool = False  # the last grain is compressed without padding to a grain
    store_zeros: bool = False
    progress: int = 0  # a progress marker after so many grains
    progress_value: int = 0
    packed: Mapping[int, bytes] = field(default_factory=dict)  # grain -> what stands there instead of its zlib stream
    unknown: bool = False  # a marker of unknown kind with two sectors after the first grain
    end: str = "complete"  # or "no-eos", "no-footer", "no-directory": where the file was cut


STREAM_A: Final = Stream()
STREAM_ESX: Final = Stream(descriptor=1)
STREAM_B: Final = Stream(footer=False)
STREAM_OPEN: Final = Stream(footer=False, overhead=None)
STREAM_QEMU: Final = Stream(footer=False, rgd=True, eos=False)
STREAM_BARE: Final = Stream(footer=False, markers=False, eos=False, version=1)
STREAM_OLD: Final = Stream(version=1)
STREAMS: Final = {
    "A": STREAM_A,
    "ESX": STREAM_ESX,
    "B": STREAM_B,
    "OPEN": STREAM_OPEN,
    "QEMU": STREAM_QEMU,
    "BARE": STREAM_BARE,
    "OLD": STREAM_OLD,
}


def marker(kind: int, count: int) -> bytes:
    """Return a metadata marker that announces ``count`` sectors."""
    return struct.pack("<QII496x", count, 0, kind)


class _Writer:
    """The state of one stream while it is written."""

    def __init__(self, path: Path, model: Model, start: int, length: int, knobs: Stream) -> None:
        self.path, self.model, self.start, self.length, self.knobs = path, model, start, length, knobs
        self.file = Sparse(path)
        self.part = Part(path, length, grain=knobs.grain, cover=knobs.grain * GTES)
        self.tables = -(-length // (knobs.grain * GTES))
        self.at = 0  # where the next thing goes, in bytes
        self.places: dict[Cell, int] = {}
        self.filled: dict[int, list[int]] = {}
        self.cut: dict[str, int] = {}

    def head(self, gd: int, overhead: int, rgd: int = 0) -> bytes:
        knobs = self.knobs
        return header(
            version=knobs.version,
            flags=1 | (rgd != 0) << 1 | COMPRESSED | MARKERS * knobs.markers,
            capacity=self.length // SECTOR,
            grain=knobs.grain // SECTOR,
            descriptor_offset=1 if knobs.descriptor else 0,
            descriptor_size=knobs.descriptor,
            rgd=rgd,
            gd=gd,
            overhead=overhead,
            compress=1,
        )

    def put(self, name: str, data: bytes, item: int = 0) -> int:
        """Append whole sectors under a name; return their first sector."""
        place = self.at
        self.part.fields[name] = Field(self.path, place, len(data), item)
        self.file.put(data, place)
        self.at = up(place + len(data), SECTOR)
        return place // SECTOR

    def grain(self, cell: Cell) -> None:
        knobs = self.knobs
        data = self.model.pread(cell.length, self.start + cell.offset)
        if not knobs.short_last:
            data = data.ljust(knobs.grain, b"\0")
        packed = knobs.packed.get(cell.number) or zlib.compress(data, knobs.level)
        prefix = (
            struct.pack("<QI", cell.offset // SECTOR, len(packed)) if knobs.markers else struct.pack("<I", len(packed))
        )
        self.places[cell] = self.at
        table, index = divmod(cell.number, GTES)
        self.filled.setdefault(table, [0] * GTES)[index] = self.at // SECTOR
        self.part.entries[cell.number] = (f"gt[{table}]", index)
        name = f"grain[{cell.number}]"
        if knobs.markers:
            self.part.fields[f"{name}.lba"] = Field(self.path, self.at, 8)
        self.part.fields[f"{name}.size"] = Field(self.path, self.at + len(prefix) - 4, 4)
        self.part.fields[f"{name}.data"] = Field(self.path, self.at + len(prefix), len(packed))
        self.put(name, prefix + packed)
        self._between(len(self.places))

    def _between(self, count: int) -> None:
        if self.knobs.progress and count % self.knobs.progress == 0:
            self.put(f"progress[{count}]", marker(PROGRESS, self.knobs.progress_value))
        if self.knobs.unknown and count == 1:
            self.put("unknown", marker(UNKNOWN, 2) + b"?" * (2 * SECTOR))

    def finish(self) -> Part:
        self.part.runs = runs_of(self.places, self.length, self.path, packed=True)
        self.part.fields |= named(self.path, HEADER)
        if self.knobs.descriptor:
            self.part.fields["descriptor"] = Field(self.path, SECTOR, self.knobs.descriptor * SECTOR)
        self.file.finish(self.cut.get(self.knobs.end, self.at))
        return self.part


def write_stream(path: Path, model: Model, start: int, length: int, knobs: Stream, text: bytes = b"") -> Part:
    """Write bytes ``start`` .. ``start + length`` of the model as a stream."""
    if len(text) > knobs.descriptor * SECTOR:
        raise ValueError(f"the descriptor has {len(text)} bytes, room is for {knobs.descriptor} sectors")
    writer = _Writer(path, model, start, length, knobs)
    stored = cells(model, knobs.grain, length, start, zeros=DATA if knobs.store_zeros else HOLE)
    writer.file.put(text, SECTOR)
    (_write_a if knobs.footer else _write_b)(writer, stored)
    return writer.finish()


def _write_a(out: _Writer, stored: list[Cell]) -> None:
    overhead = out.knobs.overhead or 1 + out.knobs.descriptor
    out.file.put(out.head(AT_END, overhead), 0)
    out.at = overhead * SECTOR
    directory = [0] * out.tables
    for number, cell in enumerate(stored):
        table = cell.number // GTES
        out.grain(cell)
        if number + 1 == len(stored) or stored[number + 1].number // GTES != table:
            out.put(f"gt[{table}].marker", marker(GT, sectors(TABLE)))
            directory[table] = out.put(f"gt[{table}]", struct.pack(f"<{GTES}I", *out.filled[table]), 4)
    out.cut["no-directory"] = out.at
    out.put("gd.marker", marker(GD, sectors(out.tables * 4)))
    place = out.put("gd", struct.pack(f"<{out.tables}I", *directory), 4)
    out.cut["no-footer"] = out.at
    out.put("footer.marker", marker(FOOTER, 1))
    out.part.fields |= named(out.path, HEADER, "footer", out.at)
    out.put("footer", out.head(place, overhead))
    out.cut["no-eos"] = out.at
    if out.knobs.eos:
        out.put("eos", marker(EOS, 0))


def _write_b(out: _Writer, stored: list[Cell]) -> None:
    knobs, at = out.knobs, 1 + out.knobs.descriptor
    fronts: list[tuple[str, int]] = []  # prefix and place of each directory
    for prefix in ("r", "") if knobs.rgd else ("",):
        fronts.append((prefix, at))
        at += sectors(out.tables * 4) + out.tables * sectors(TABLE)
    overhead = max(knobs.overhead or 0, at) if knobs.overhead is None else up(at, knobs.overhead)
    out.file.put(out.head(fronts[-1][1], overhead, fronts[0][1] if knobs.rgd else 0), 0)
    out.at = overhead * SECTOR
    for cell in stored:
        out.grain(cell)
    end = out.at
    for prefix, place in fronts:
        first = place + sectors(out.tables * 4)
        places = [first + table * sectors(TABLE) for table in range(out.tables)]
        out.at = place * SECTOR
        out.put(f"{prefix}gd", struct.pack(f"<{out.tables}I", *places), 4)
        for table, sector in enumerate(places):
            out.at = sector * SECTOR
            out.put(f"{prefix}gt[{table}]", struct.pack(f"<{GTES}I", *out.filled.get(table, [0] * GTES)), 4)
    out.at = out.cut["no-eos"] = end
    if knobs.eos:
        out.put("eos", marker(EOS, 0))


def stream_optimized(
    directory: Path, what: str | Model, knobs: Stream | None = None, **common: Unpack[Common]
) -> Image:
    """Build one compressed file that holds its descriptor."""
    knobs, draft = knobs or STREAM_A, Draft(directory, what, common)
    size = draft.model.size
    text = draft.text(
        "streamOptimized",
        (f'RW {size // SECTOR} SPARSE "{draft.path.name}"',),
        DDB_SMALL if knobs.descriptor == 1 else None,
    )
    part = write_stream(draft.path, draft.model, 0, size, knobs, text.render(draft.style))
    return draft.image(text, [part], [0], embedded=True)
