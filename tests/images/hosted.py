# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hosted sparse extents ("KDMV"): monolithicSparse, and the files of twoGbMaxExtentSparse.

Order of the file: header, descriptor, RGD, its tables, GD, its tables, padding to a grain, grains.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Unpack

from images.base import (
    Cell,
    Common,
    Draft,
    Field,
    Image,
    Part,
    Run,
    Sparse,
    cells,
    join,
    named,
    ordered,
    runs_of,
    sectors,
    up,
)
from images.text import DDB_SMALL
from layout import DATA, SECTOR, ZERO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model import Model

HEADER: Final = {  # name: (offset, size), of the header that stream extents have as well
    "magic": (0, 4),
    "version": (4, 4),
    "flags": (8, 4),
    "capacity": (12, 8),
    "grainSize": (20, 8),
    "descriptorOffset": (28, 8),
    "descriptorSize": (36, 8),
    "numGTEsPerGT": (44, 4),
    "rgdOffset": (48, 8),
    "gdOffset": (56, 8),
    "overHead": (64, 8),
    "uncleanShutdown": (72, 1),
    "newline": (73, 4),
    "compressAlgorithm": (77, 2),
}
NEWLINES: Final = b"\n \r\n"
GTES: Final = 512
_NAMED_TABLES = 4096  # of a larger disk only the tables in use have names


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """Knobs of a hosted sparse extent; the default is what VMware creates."""

    grain: int = 64 << 10
    version: int = 1
    zero_grains: bool = False  # version 2 and flag b2: GTE 1 is a grain of zeros
    flags: int = 0  # more flags
    gtes: int = GTES  # entries of a table; the format says 512 always
    rgd: bool = True
    descriptor: int = 20  # sectors reserved for the text; 0: none, as split extents of VMware
    on_demand: bool = False  # GDE 0 where a table would be empty
    tables: str = "forward"  # or "reversed": their order in the file
    order: str = "forward"  # or "reversed", "shuffled": of the grains
    stale_rgd: bool = False  # the redundant tables were never filled
    short_tail: bool = False  # the file ends with its last byte that is not zero
    unclean: bool = False


def header(**values: int) -> bytes:
    """Pack a header; names as in HEADER in snake case, with VMware's defaults."""
    return struct.pack(
        "<4sIIQQQQIQQQB4sH433x",
        b"KDMV",
        values["version"],
        values["flags"],
        values["capacity"],
        values["grain"],
        values["descriptor_offset"],
        values["descriptor_size"],
        values.get("gtes", GTES),
        values["rgd"],
        values["gd"],
        values["overhead"],
        values.get("unclean", 0),
        NEWLINES,
        values.get("compress", 0),
    )


class _Tables:
    """One directory with its tables, laid out from a sector on."""

    def __init__(self, at: int, count: int, used: set[int], knobs: Hosted) -> None:
        self.directory, self.count, self.gtes = at, count, knobs.gtes
        step = sectors(knobs.gtes * 4)
        present = [table for table in range(count) if not knobs.on_demand or table in used]
        at += sectors(count * 4)
        places = range(at, at + len(present) * step, step)
        self.place = dict(zip(reversed(present) if knobs.tables == "reversed" else present, places, strict=True))
        self.end = at + len(present) * step

    def write(self, file: Sparse, filled: dict[int, list[int]]) -> None:
        entries = [self.place.get(table, 0) for table in range(self.count)]
        file.put(struct.pack(f"<{self.count}I", *entries), self.directory * SECTOR)
        for table, values in filled.items():
            file.put(struct.pack(f"<{self.gtes}I", *values), self.place[table] * SECTOR)

    def fields(self, path: Path, prefix: str, used: set[int]) -> dict[str, Field]:
        out = {f"{prefix}gd": Field(path, self.directory * SECTOR, self.count * 4, 4)}
        for table, place in self.place.items():
            if self.count <= _NAMED_TABLES or table in used:
                out[f"{prefix}gt[{table}]"] = Field(path, place * SECTOR, self.gtes * 4, 4)
        return out


def write_hosted(path: Path, model: Model, start: int, length: int, knobs: Hosted, text: bytes = b"") -> Part:
    """Write bytes ``start`` .. ``start + length`` of the model as one hosted sparse extent."""
    grain, unit, gtes = knobs.grain, knobs.grain // SECTOR, knobs.gtes
    stored = cells(model, grain, length, start, zeros=ZERO if knobs.zero_grains else DATA)
    used = {cell.number // gtes for cell in stored}
    count = -(-length // (grain * gtes))
    first = 1 + knobs.descriptor
    redundant = _Tables(first, count, used, knobs) if knobs.rgd else None
    primary = _Tables(redundant.end if redundant else first, count, used, knobs)
    overhead = up(primary.end, unit)
    if len(text) > knobs.descriptor * SECTOR:
        raise ValueError(f"the descriptor has {len(text)} bytes, room is for {knobs.descriptor} sectors")

    part = Part(path, length, grain=grain, cover=grain * gtes)
    file = Sparse(path)
    head = header(
        version=2 if knobs.zero_grains and knobs.version == 1 else knobs.version,
        flags=1 | (redundant is not None) << 1 | knobs.zero_grains << 2 | knobs.flags,
        capacity=length // SECTOR,
        grain=unit,
        descriptor_offset=1 if knobs.descriptor else 0,
        descriptor_size=knobs.descriptor,
        rgd=redundant.directory if redundant else 0,
        gd=primary.directory,
        overhead=overhead,
        unclean=knobs.unclean,
        gtes=gtes,
    )
    file.put(head + text, 0)
    part.fields |= named(path, HEADER)
    if knobs.descriptor:
        part.fields["descriptor"] = Field(path, SECTOR, knobs.descriptor * SECTOR)

    end = overhead * SECTOR
    filled: dict[int, list[int]] = {table: [0] * gtes for table in used}
    places: dict[Cell, int] = {}
    for cell in ordered(stored, knobs.order):
        table, index = divmod(cell.number, gtes)
        part.entries[cell.number] = (f"gt[{table}]", index)
        places[cell] = end
        filled[table][index] = 1 if cell.kind == ZERO else end // SECTOR
        if cell.kind == DATA:
            file.put(model.pread(cell.length, start + cell.offset), end)
            part.fields[f"grain[{cell.number}]"] = Field(path, end, grain)
            end += grain
    last = _last_byte(model, start, places, end, grain) if knobs.short_tail else end
    part.runs = join(_cut(runs_of(places, length, path), last))
    if redundant:
        redundant.write(file, {} if knobs.stale_rgd else filled)
        part.fields |= redundant.fields(path, "r", used)
    primary.write(file, filled)
    part.fields |= primary.fields(path, "", used)
    file.finish(last)
    return part


def _cut(runs: list[Run], end: int) -> Iterator[Run]:
    """Yield the runs of a file that ends at ``end``: what is missing of a grain reads as zeros."""
    for run in runs:
        held = min(run.length, end - run.at) if run.kind == DATA else run.length
        yield run._replace(length=held)
        yield Run(run.offset + held, run.length - held, ZERO)


def _last_byte(model: Model, start: int, places: dict[Cell, int], end: int, grain: int) -> int:
    """Return where the file may end when zeros at the end of its last grain are not written."""
    for cell, place in places.items():
        if cell.kind == DATA and place == end - grain:
            return place + max(len(model.pread(cell.length, start + cell.offset).rstrip(b"\0")), 1)
    return end


def monolithic_sparse(
    directory: Path, what: str | Model, knobs: Hosted | None = None, **common: Unpack[Common]
) -> Image:
    """Build one file that holds its descriptor."""
    knobs, draft = knobs or Hosted(), Draft(directory, what, common)
    size = draft.model.size
    text = draft.text(
        "monolithicSparse",
        (f'RW {size // SECTOR} SPARSE "{draft.path.name}"',),
        DDB_SMALL if knobs.descriptor == 1 else None,
    )
    part = write_hosted(draft.path, draft.model, 0, size, knobs, text.render(draft.style))
    return draft.image(text, [part], [0], embedded=True)
