# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""seSparse extents (``-sesparse.vmdk``): 4 KiB grains, 64-bit entries that state their kind, regions of 1 MiB."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from images.base import Cell, Field, Part, Sparse, cells, named, ordered, runs_of, up
from layout import DATA, SECTOR, ZERO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model import Model

REGIONS: Final = (
    "volatileHeader",
    "journalHeader",
    "journal",
    "grainDirectory",
    "grainTables",
    "freeBitmap",
    "backMap",
    "grains",
)
CONSTANT: Final = {
    "magic": (0, 8),
    "version": (8, 8),
    "capacity": (16, 8),
    "grainSize": (24, 8),
    "grainTableSize": (32, 8),
    "flags": (40, 8),
    "reserved1": (48, 8),
    **{
        f"{name}{what}": (80 + 16 * i + 8 * j, 8)
        for i, name in enumerate(REGIONS)
        for j, what in enumerate(("Offset", "Size"))
    },
}
VOLATILE: Final = {"magic": (0, 8), "freeGT": (8, 8), "nextTxn": (16, 8), "replayJournal": (24, 8)}
GRAIN: Final = 4096
GTES: Final = 4096
TABLE: Final = GTES * 8  # bytes: 64 sectors
MIB: Final = 1 << 20
UNMAPPED, ZEROED, ALLOCATED = 1 << 60, 2 << 60, 3 << 60
GDE: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SeSparse:
    """Knobs of an seSparse extent."""

    unmapped: str = "none"  # or "odd", "all": which grains of zeros are of type 1 (unmapped) instead of 2 (zero)
    order: str = "forward"  # of the grains in the file
    tables: str = "forward"  # or "reversed": which table has which index
    index: Mapping[int, int] = field(default_factory=dict)  # grain -> index, where it is not simply the next one
    replay: int = 0  # non-zero: the journal must be replayed


def entry(index: int) -> int:
    """Return the entry of an allocated grain: the low 12 bits of the index stand above the others."""
    return ALLOCATED | (index & 0xFFF) << 48 | index >> 12


def _regions(length: int, tables: int) -> dict[str, tuple[int, int]]:
    """Return (offset, size) in bytes of each region."""
    grains = -(-length // GRAIN)
    out = {"volatileHeader": (SECTOR, SECTOR), "journalHeader": (2 * SECTOR, 2 * SECTOR)}
    sizes = {
        "journal": MIB,
        "grainDirectory": up(tables * 8, MIB),
        "grainTables": up(tables * TABLE, MIB),
        "freeBitmap": up(-(-grains // 8), MIB),
        "backMap": up(grains * 8, MIB),
        "grains": up(length, GRAIN),
    }
    at = MIB
    for name, size in sizes.items():
        out[name] = (at, size)
        at += size
    return out


def write_sesparse(path: Path, model: Model, start: int, length: int, knobs: SeSparse) -> Part:
    """Write bytes ``start`` .. ``start + length`` of the model as one seSparse extent."""
    tables = -(-length // (GRAIN * GTES))
    regions = _regions(length, tables)
    part = Part(path, length, grain=GRAIN, cover=GRAIN * GTES)
    file = Sparse(path)
    stored = cells(model, GRAIN, length, start, zeros=ZERO)
    used = list(dict.fromkeys(cell.number // GTES for cell in stored))
    number = {table: index for index, table in enumerate(used[::-1] if knobs.tables == "reversed" else used)}
    filled: dict[int, list[int]] = {table: [0] * GTES for table in used}
    places: dict[Cell, int] = {}
    bitmap, owners = bytearray(), {}
    taken = set(knobs.index.values())
    free = 0
    for cell in ordered(stored, knobs.order):
        table, slot = divmod(cell.number, GTES)
        part.entries[cell.number] = (f"gt[{table}]", slot)
        places[cell] = 0
        if cell.kind == ZERO:
            filled[table][slot] = UNMAPPED if _is_unmapped(cell, knobs) else ZEROED
            continue
        index = knobs.index.get(cell.number, -1)
        if index < 0:
            while free in taken:
                free += 1
            index = free
            taken.add(index)
        filled[table][slot] = entry(index)
        owners[index] = number[table] * GTES + slot
        places[cell] = regions["grains"][0] + index * GRAIN
        file.put(model.pread(cell.length, start + cell.offset), places[cell])
        part.fields[f"grain[{cell.number}]"] = Field(path, places[cell], GRAIN)
    for index, owner in owners.items():
        bitmap.extend(bytes(max(0, index // 8 + 1 - len(bitmap))))
        bitmap[index // 8] |= 1 << index % 8
        file.put(struct.pack("<Q", owner), regions["backMap"][0] + index * 8)
    file.put(bytes(bitmap), regions["freeBitmap"][0])
    for table, entries in filled.items():
        at = regions["grainTables"][0] + number[table] * TABLE
        file.put(struct.pack(f"<{GTES}Q", *entries), at)
        part.fields[f"gt[{table}]"] = Field(path, at, TABLE, 8)
    directory = [GDE | number[table] if table in number else 0 for table in range(tables)]
    file.put(struct.pack(f"<{tables}Q", *directory), regions["grainDirectory"][0])
    part.fields["gd"] = Field(path, regions["grainDirectory"][0], tables * 8, 8)
    file.put(_headers(regions, length, len(used), knobs), 0)
    part.fields |= named(path, CONSTANT) | named(path, VOLATILE, "volatile", SECTOR)
    part.runs = runs_of(places, length, path)
    file.finish(sum(regions["grains"]))
    return part


def _is_unmapped(cell: Cell, knobs: SeSparse) -> bool:
    return knobs.unmapped == "all" or (knobs.unmapped == "odd" and cell.number % 2 == 1)


def _headers(regions: dict[str, tuple[int, int]], length: int, used: int, knobs: SeSparse) -> bytes:
    pairs = [value // SECTOR for name in REGIONS for value in regions[name]]
    constant = struct.pack("<26Q304x", 0xCAFEBABE, 0x200000001, length // SECTOR, 8, 64, *[0] * 5, *pairs)
    return constant + struct.pack("<4Q480x", 0xCAFECAFE, used, 1, knobs.replay)


__all__ = ["CONSTANT", "DATA", "GRAIN", "GTES", "VOLATILE", "SeSparse", "entry", "write_sesparse"]
