# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Look at every pointer of a file with grain tables, in bounded memory.

Tables are read some at a time, those in holes of the file not at all. Which places of the file are taken is kept as
one bit for each slot (a grain, or a sector where grains lie at any sector), for at most 32 MiB of bits at once: a
larger file takes more passes over its tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.device import ExtentFlags
from vmdkit.vmdk.tables import in_holes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Entries = np.ndarray[tuple[int], np.dtype[np.uint32]]

_AT_ONCE = 256 * 2048  # bytes of tables examined together
_WINDOW = 1 << 28  # slots looked at in one pass: 32 MiB of bits
_MOST_HOLES = 1 << 17  # pieces of the file looked at for holes; a file in more pieces has its leaks overrated
_ONES = np.array([bin(value).count("1") for value in range(256)], dtype=np.int64)


class Intervals:
    """Disjoint ranges of a file, sorted: where its metadata lies."""

    def __init__(self, starts: Codes, lengths: Codes) -> None:
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], starts[order] + lengths[order]
        if len(starts):
            reach = np.maximum.accumulate(ends)
            begins = np.concatenate([[True], starts[1:] > reach[:-1]])
            last = np.flatnonzero(np.concatenate([begins[1:], [True]]))
            starts, ends = starts[begins], reach[last]
        self.starts: Codes = starts
        self.ends: Codes = ends

    def touch(self, addresses: Codes, length: int) -> Mask:
        """Tell which of the runs of ``length`` bytes at ``addresses`` overlap an interval."""
        if not len(self.starts):
            return np.zeros(len(addresses), dtype=bool)
        which = np.searchsorted(self.starts, addresses + length - 1, side="right") - 1
        return (which >= 0) & (self.ends[which] > addresses)

    def end_of_first(self) -> int:
        """Return where the interval that begins the file ends."""
        return int(self.ends[0]) if len(self.starts) and not self.starts[0] else 0


def overlapping(starts: Codes, length: int) -> Mask:
    """Tell which runs of ``length`` bytes overlap one that begins before them (or is equal and stands before)."""
    shared = np.zeros(len(starts), dtype=bool)
    order = np.argsort(starts, kind="stable")
    shared[order[1:]] = np.diff(starts[order]) < length
    return shared


class Occupancy:
    """Which slots of a file are taken, for one window of it."""

    def __init__(self, size: int, unit: int, *, first: int = 0) -> None:
        """Look at slots of ``unit`` bytes from number ``first`` on, of a file of ``size`` bytes."""
        self.unit = unit
        self.first = first
        self.total = -(-size // unit)
        self.count = max(0, min(self.total - first, _WINDOW))
        self._bits = np.zeros(-(-self.count // 8), dtype=np.uint8)

    @property
    def is_last(self) -> bool:
        """Whether the window reaches the end of the file."""
        return self.first + self.count >= self.total

    def take(self, addresses: Codes, length: int) -> Mask:
        """Take the slots of the runs of ``length`` bytes at ``addresses``; tell which were taken before, or twice."""
        span = max(1, length // self.unit)
        slots = addresses // self.unit - self.first
        shared = self.taken(slots, span)
        if len(slots) > 1 and (np.diff(slots) < span).any():
            shared |= overlapping(slots, span)
        for step in range(span):
            part = slots + step
            part = part[(part >= 0) & (part < self.count)]
            np.bitwise_or.at(self._bits, part >> 3, np.left_shift(1, part & 7).astype(np.uint8))
        return shared

    def holds(self, addresses: Codes, length: int) -> Mask:
        """Tell which runs touch a slot that is taken."""
        return self.taken(addresses // self.unit - self.first, max(1, length // self.unit))

    def taken(self, slots: Codes, span: int) -> Mask:
        """Tell which runs of ``span`` slots touch one that is taken."""
        found = np.zeros(len(slots), dtype=bool)
        for step in range(span):
            part = slots + step
            inside = (part >= 0) & (part < self.count)
            some = part[inside]
            found[inside] |= (self._bits[some >> 3] >> (some & 7).astype(np.uint8)) & 1 > 0
        return found

    def fill(self, start: int, end: int) -> None:
        """Take slots ``start`` to ``end`` (exclusive), numbered from the begin of the file."""
        low, high = max(start - self.first, 0), min(end - self.first, self.count)
        if low >= high:
            return
        left, right = -(-low // 8), high // 8
        if left <= right:
            self._bits[left:right] = 0xFF
            edges = [*range(low, left * 8), *range(right * 8, high)]
        else:
            edges = list(range(low, high))
        for slot in edges:
            self._bits[slot >> 3] |= 1 << (slot & 7)

    def free(self, start: int) -> tuple[int, int]:
        """Return how many slots from ``start`` (of the file) on are not taken, and the number of the first."""
        self.fill(self.first, start)
        count = self.count - int(_ONES[self._bits].sum()) if len(self._bits) < 1 << 20 else self._count_free()
        if not count:
            return 0, -1
        byte = int(np.argmax(self._bits != 0xFF))
        bit = next(bit for bit in range(8) if not int(self._bits[byte]) >> bit & 1)
        return count, self.first + byte * 8 + bit

    def _count_free(self) -> int:
        """Count in pieces: the table look-up takes eight bytes for each."""
        step = 1 << 20
        return self.count - sum(int(_ONES[self._bits[at : at + step]].sum()) for at in range(0, len(self._bits), step))


@dataclass(slots=True)
class Seen:
    """Counts of what is alike, and the first of each: where its entry is in the file, and on the disk."""

    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(self, code: str, where: Codes, places: Codes, guests: Codes) -> None:
        """Take in the entries number ``where`` of ``places`` (file) and ``guests`` (disk)."""
        if len(where):
            self.counts[code] = self.counts.get(code, 0) + len(where)
            self.firsts.setdefault(code, (int(places[where[0]]), int(guests[where[0]])))


@dataclass(frozen=True, slots=True)
class Shape:
    """How tables are made: bytes of a grain, entries in a table, bytes of the file, grains of the disk."""

    grain: int
    entries: int
    size: int
    grains: int  # what the last table has beyond means nothing: nobody reads it
    width: int = 4

    @property
    def raw(self) -> int:
        """Bytes of a table."""
        return self.entries * self.width


def present_runs(storage: Device, shape: Shape, *directories: Codes) -> Iterator[tuple[int, int]]:
    """Yield runs (first, last exclusive) of tables that at least one directory has, outside holes of the file.

    Directories hold byte addresses; what is not positive is no table.
    """
    present = np.zeros(len(directories[0]), dtype=bool)
    for directory in directories:
        present |= (directory > 0) & ~in_holes(storage, directory, shape.raw)
    numbers = np.flatnonzero(present)
    step = max(1, _AT_ONCE // shape.raw)
    for part in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        for at in range(0, len(part), step):
            yield int(part[at]), int(part[min(at + step, len(part)) - 1]) + 1


def read_tables(storage: Device, shape: Shape, addresses: Codes) -> bytearray:
    """Return the raw tables at ``addresses`` one after the other, zeros for those that are no address."""
    out = bytearray(len(addresses) * shape.raw)
    view = memoryview(out)
    good = np.flatnonzero(addresses > 0)
    if not len(good):
        return out
    breaks = np.flatnonzero((np.diff(good) != 1) | (np.diff(addresses[good]) != shape.raw)) + 1
    for part in np.split(good, breaks):
        first, last = int(part[0]), int(part[-1]) + 1
        storage.pread_into(view[first * shape.raw : last * shape.raw], int(addresses[first]))
    return out


def places_of(addresses: Codes, shape: Shape, where: Codes) -> Codes:
    """Return where the entries number ``where`` of some tables lie in the file."""
    number, entry = np.divmod(where, shape.entries)
    places: Codes = addresses[number] + entry * shape.width
    return places


def holes_of(storage: Device) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the holes of a file, as far as they are few enough to be worth it."""
    for count, run in enumerate(storage.extents()):
        if count > _MOST_HOLES:
            return
        if run.flags & ExtentFlags.HOLE:
            yield run.offset, run.offset + run.length


def leaks(storage: Device, map_: Occupancy, metadata: Intervals, start: int) -> tuple[int, int, int]:
    """Return (slots, bytes, address of the first) that nothing uses from ``start`` on, though the file holds them."""
    unit = map_.unit
    for low, high in zip(metadata.starts.tolist(), metadata.ends.tolist(), strict=True):
        map_.fill(low // unit, -(-high // unit))
    first = -(-start // unit)
    count, _ = map_.free(first)
    if count:
        for low, high in holes_of(storage):
            map_.fill(-(-low // unit), map_.total if high == storage.size else high // unit)
        count, slot = map_.free(first)
    if not count:
        return 0, 0, -1
    size = count * unit
    if map_.is_last and not map_.taken(np.array([map_.count - 1]), 1)[0]:
        size -= map_.total * unit - storage.size  # the last slot may be cut off by the end of the file
    return count, size, slot * unit
