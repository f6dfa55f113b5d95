# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Mend what can be mended without any loss (format spec 4.4).

Made for now of the one repair that opening for writing needs: a power cut between the two copies of the grain
tables leaves entries that one copy has and the other has not yet. Both values of each such entry were right at some
moment after the last flush, so either may be kept; an entry that has a grain is preferred to one that has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import CorruptError
from vmdkit.vmdk.structs import CORRUPT, UNALLOCATED, encode_sectors

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes
    from vmdkit.vmdk.tables import GrainTables

_AT_ONCE = 128  # tables compared together
_WIDTH = 4  # bytes of a pointer


def present_tables(*copies: GrainTables) -> Codes:
    """Return the numbers of tables that at least one copy has something of."""
    present = np.zeros(len(copies[0]), dtype=bool)
    for copy in copies:
        present |= (copy.directory != UNALLOCATED) & ~copy.hidden
    return np.flatnonzero(present)


def differing_tables(primary: GrainTables, redundant: GrainTables) -> list[int]:
    """Return the numbers of tables whose copies are not equal."""
    found: list[int] = []
    present = present_tables(primary, redundant)
    for part in np.split(present, np.flatnonzero(np.diff(present) != 1) + 1):
        for at in range(0, len(part), _AT_ONCE):
            first, last = int(part[at]), int(part[min(at + _AT_ONCE, len(part)) - 1]) + 1
            different = (primary.bulk(first, last) != redundant.bulk(first, last)).reshape(-1, primary.entries)
            found += (np.flatnonzero(different.any(axis=1)) + first).tolist()
    return found


def one_sided_tables(primary: GrainTables, redundant: GrainTables) -> list[int]:
    """Return the numbers of tables that only one directory points at, as a crash leaves them where they are made."""
    return np.flatnonzero((primary.directory == UNALLOCATED) != (redundant.directory == UNALLOCATED)).tolist()


@dataclass(frozen=True, slots=True)
class Side:
    """One copy of the tables, and where its directory is."""

    tables: GrainTables
    directory: int


def reconcile(storage: Device, primary: Side, redundant: Side, numbers: list[int], grain: int) -> None:
    """Make both copies of the given tables equal, durably; raises CorruptError where that is no safe choice.

    A table that one copy lacks is made at the end of the file, and pointed at once it is durable. A second crash
    leaves nothing that this would not mend in the same way.
    """
    merged: dict[int, Codes] = {}
    for number in numbers:
        one, two = (side.tables.bulk(number, number + 1) for side in (primary, redundant))
        chosen = np.where(one == UNALLOCATED, two, one)
        if (chosen == CORRUPT).any() or CORRUPT in (side.tables.directory[number] for side in (primary, redundant)):
            raise CorruptError(
                f"the two copies of grain table {number} differ, and neither is whole",
                structure="grain table", path=storage.name,
            )  # fmt: skip
        merged[number] = chosen
    _refuse_shared(storage, primary.tables, merged)
    pointers: list[tuple[int, int]] = []  # where a directory entry is, and what it is to say
    for side in (redundant, primary):
        for number, chosen in merged.items():
            place = int(side.tables.directory[number])
            if place < 0:
                place = -(-storage.size // grain) * grain
                storage.resize(place + side.tables.raw_size)
                pointers.append((side.directory + number * _WIDTH, place))
            storage.pwrite(encode_sectors(chosen), place)
    storage.flush()
    for entry, place in pointers:
        storage.pwrite(encode_sectors(np.array([place])), entry)
    if pointers:
        storage.flush()


def _refuse_shared(storage: Device, primary: GrainTables, merged: dict[int, Codes]) -> None:
    """Raise where a grain would belong to two entries after merging."""
    seen: list[Codes] = []
    for number in {*present_tables(primary).tolist(), *merged}:
        codes = merged[number] if number in merged else primary.bulk(number, number + 1)
        seen.append(codes[codes >= 0])
    grains = np.concatenate(seen) if seen else np.empty(0, dtype=np.int64)
    if len(np.unique(grains)) != len(grains):
        raise CorruptError("two entries of the grain tables share a grain", structure="grain table", path=storage.name)
