# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""COWD extents (vmfsSparse, ``-delta.vmdk``): tables of 4096 entries, made on demand among the grains."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from images.base import Cell, Field, Part, Sparse, cells, named, ordered, runs_of, sectors
from layout import DATA, SECTOR

if TYPE_CHECKING:
    from pathlib import Path

    from model import Model

HEADER: Final = {
    "magic": (0, 4),
    "version": (4, 4),
    "flags": (8, 4),
    "numSectors": (12, 4),
    "grainSize": (16, 4),
    "gdOffset": (20, 4),
    "numGDEntries": (24, 4),
    "freeSector": (28, 4),
    "parentFileName": (32, 1024),
    "parentGeneration": (1056, 4),
    "generation": (1060, 4),
    "name": (1064, 60),
    "description": (1124, 512),
    "savedGeneration": (1636, 4),
    "uncleanShutdown": (1648, 4),
}
GTES: Final = 4096
TABLE: Final = GTES * 4  # bytes
DIRECTORY_AT: Final = 4  # sectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Cowd:
    """Knobs of a COWD extent; the default is what ESX writes."""

    grain: int = SECTOR
    flags: int = 3
    parent_name: str = ""  # inside the header
    order: str = "forward"
    unclean: bool = False


def write_cowd(path: Path, model: Model, start: int, length: int, knobs: Cowd) -> Part:
    """Write bytes ``start`` .. ``start + length`` of the model as one COWD extent; zeros are stored."""
    grain = knobs.grain
    count = -(-length // (grain * GTES))
    part = Part(path, length, grain=grain, cover=grain * GTES)
    file = Sparse(path)
    directory = [0] * count
    filled: dict[int, list[int]] = {}
    places: dict[Cell, int] = {}
    free = DIRECTORY_AT + sectors(count * 4)
    for cell in ordered(cells(model, grain, length, start, zeros=DATA), knobs.order):
        table, index = divmod(cell.number, GTES)
        if table not in filled:
            filled[table], directory[table] = [0] * GTES, free
            free += sectors(TABLE)
        filled[table][index] = free
        part.entries[cell.number] = (f"gt[{table}]", index)
        places[cell] = free * SECTOR
        part.fields[f"grain[{cell.number}]"] = Field(path, free * SECTOR, grain)
        file.put(model.pread(cell.length, start + cell.offset), free * SECTOR)
        free += grain // SECTOR
    for table, entries in filled.items():
        file.put(struct.pack(f"<{GTES}I", *entries), directory[table] * SECTOR)
        part.fields[f"gt[{table}]"] = Field(path, directory[table] * SECTOR, TABLE, 4)
    file.put(struct.pack(f"<{count}I", *directory), DIRECTORY_AT * SECTOR)
    file.put(_header(knobs, length, count, free), 0)
    part.fields |= named(path, HEADER)
    part.fields["gd"] = Field(path, DIRECTORY_AT * SECTOR, count * 4, 4)
    part.runs = runs_of(places, length, path)
    file.finish(free * SECTOR)
    return part


def _header(knobs: Cowd, length: int, count: int, free: int) -> bytes:
    return struct.pack(
        "<4s7I1024s2I60s512sI8xI396x",
        b"COWD",
        1,
        knobs.flags,
        length // SECTOR,
        knobs.grain // SECTOR,
        DIRECTORY_AT,
        count,
        free,
        knobs.parent_name.encode(),
        0,
        0,
        b"",
        b"",
        0,
        knobs.unclean,
    )
