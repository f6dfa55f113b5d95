# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Move grains inside their file, so that a power cut at any moment leaves each at its old place or at its new one.

::

    copies in places that nothing uses │ barrier ── table entries, in both copies │ barrier ── old places are free

After the first barrier both places hold the same bytes, so any mixture of old and new entries is right. An old place
is given to other data only after the second: a caller never moves to a place that the same call frees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk.structs import UNALLOCATED, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes
    from vmdkit.vmdk.tables import GrainTables

_BATCH = 64 * MIB  # bytes moved between two barriers
_COPY = 4 * MIB  # bytes held in memory
_AT_ONCE = 256  # tables decoded together: 1 MiB where they have 512 entries
WIDTH = 4


class Move(NamedTuple):
    """Grain ``number`` of the extent goes from one byte address to another."""

    number: int
    old: int
    new: int


def present_chunks(tables: GrainTables) -> Iterator[tuple[int, Codes]]:
    """Yield (number of the first grain, codes) of all tables that are there, some at a time."""
    present = np.flatnonzero((tables.directory != UNALLOCATED) & ~tables.hidden)
    for part in np.split(present, np.flatnonzero(np.diff(present) != 1) + 1):
        for at in range(0, len(part), _AT_ONCE):
            first, last = int(part[at]), int(part[min(at + _AT_ONCE, len(part)) - 1]) + 1
            yield first * tables.entries, tables.bulk(first, last)


def highest(tables: GrainTables) -> int:
    """Return the highest address of a grain; -1 where there is none."""
    return max((int(codes.max()) for _, codes in present_chunks(tables)), default=-1)


def grains_below(tables: GrainTables, end: int) -> list[tuple[int, int]]:
    """Return (number, address) of the grains that begin below ``end``, by number."""
    found: list[tuple[int, int]] = []
    for first, codes in present_chunks(tables):
        where = np.flatnonzero((codes >= 0) & (codes < end))
        found += zip((where + first).tolist(), codes[where].tolist(), strict=True)
    return found


def move(
    storage: Device,
    copies: Sequence[GrainTables],
    moves: Sequence[Move],
    grain: int,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Move grains of ``grain`` bytes; ``copies`` of the tables in the order of writing. Durable on return.

    The new places must be inside the file, and used by nothing, not even by other grains of this call.
    """
    step = max(1, _BATCH // grain)
    for at in range(0, len(moves), step):
        batch = moves[at : at + step]
        for run in _runs(batch, grain):
            _copy(storage, run[0].old, run[0].new, len(run) * grain)
        storage.flush()
        for tables in copies:
            write_entries(storage, tables, [(one.number, one.new) for one in batch])
        storage.flush()
        progress(len(batch) * grain)


def _runs(moves: Sequence[Move], grain: int) -> Iterator[list[Move]]:
    """Join moves whose old and new places both follow one another."""
    run: list[Move] = []
    for one in moves:
        if run and (one.old != run[-1].old + grain or one.new != run[-1].new + grain):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _copy(storage: Device, old: int, new: int, count: int) -> None:
    for at in range(0, count, _COPY):
        length = min(_COPY, count - at)
        held = max(0, min(length, storage.size - old - at))  # a last grain may be cut off by the end of the file
        storage.pwrite(storage.pread(held, old + at).ljust(length, b"\0"), new + at)


def write_entries(storage: Device, tables: GrainTables, changes: Sequence[tuple[int, int]]) -> None:
    """Set entries, given as (number of the grain, code), in whole sectors; not flushed."""
    raw = encode_sectors(np.array([code for _, code in changes], dtype=np.int64))
    sectors: dict[int, list[tuple[int, bytes]]] = {}
    for index, (grain, _) in enumerate(changes):
        number, entry = divmod(grain, tables.entries)
        place = int(tables.directory[number]) + entry * WIDTH
        data = raw[index * WIDTH : (index + 1) * WIDTH]
        sectors.setdefault(place - place % SECTOR, []).append((place % SECTOR, data))
    for start, parts in sorted(sectors.items()):
        sector = storage.pread(SECTOR, start)
        for within, data in parts:
            sector[within : within + WIDTH] = data
        storage.pwrite(sector, start)
