# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Grain directory and grain tables: the two-level map that hosted sparse, stream, COWD and seSparse share.

::

    directory   [ table 0 | table 1 |  -1  | table 3 | ... ]      byte addresses, UNALLOCATED or CORRUPT
                    │
                    └─▶ table   [ grain 0 | -1 | -2 | grain 3 | ... ]   byte addresses, UNALLOCATED, ZERO or CORRUPT

Tables are read when first needed and kept in a bounded cache; a table that lies in a hole of the file (a fresh
disk of a terabyte has 64 MiB of them) is never read. Single look-ups use a memoryview, whole-disk maps numpy: on
one look-up numpy is ten times slower, on a million entries ten times faster (nbd spec, section 4).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.device import ExtentFlags
from vmdkit.errors import CorruptError, VmdkitError
from vmdkit.units import MIB
from vmdkit.vmdk.extent_file import ExtentFile, Run, RunKind
from vmdkit.vmdk.structs import CORRUPT, UNALLOCATED, ZERO, Codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device

_CACHE_BYTES = 32 * MIB  # decoded tables kept; covers 256 GiB of 64 KiB grains
_BULK_BYTES = MIB  # decoded table entries mapped at once
_CODE = 8  # bytes of a decoded entry
_MOST_HOLES = 1 << 16  # pieces of metadata looked at for holes
_WORTH_LOOKING = 16  # tables; fewer are read faster than their holes are found

_KINDS = {UNALLOCATED: RunKind.PARENT, ZERO: RunKind.ZERO, CORRUPT: RunKind.CORRUPT}

Table = memoryview  # of int64


class GrainTables:
    """The decoded tables of one file.

    ``directory`` holds byte addresses, and is taken over; ``decode`` turns raw tables into codes.
    """

    def __init__(
        self,
        storage: Device,
        directory: Codes,
        *,
        entries: int,
        width: int,
        decode: Callable[[bytes | bytearray], Codes],
    ) -> None:
        self._storage = storage
        self._decode = decode
        self._cache: dict[int, Table] = {}
        self._lock = threading.Lock()
        self._pins: dict[int, Table] = {}  # changed, so not to be read from the file; perhaps not in the cache
        self._unpinned = 0  # how often a table was let go
        self.entries = entries
        self.raw_size = entries * width
        self._most = max(1, _CACHE_BYTES // (entries * _CODE))
        directory[(directory >= 0) & (directory > storage.size - self.raw_size)] = CORRUPT
        directory[_overlapping(directory, self.raw_size)] = CORRUPT
        self.hidden = in_holes(storage, directory, self.raw_size)
        if not storage.writable:  # of a file that changes, holes are known for this moment only
            directory[self.hidden] = UNALLOCATED
        self.directory: Codes = directory
        self._addresses: Table = self.directory.data

    def __len__(self) -> int:
        return len(self._addresses)

    def table(self, number: int) -> Table | int:
        """Return table ``number`` as int64 codes, or the one code that all its entries have."""
        table = self._cache.get(number)
        if table is not None:
            return table
        address: int = self._addresses[number]
        if address < 0:
            return address
        while True:
            stamp = self._unpinned
            table = self._pins.get(number) or self._load(number, address).data
            with self._lock:
                # Another thread may have been faster, and may have changed entries since.
                found = self._pins.get(number) or self._cache.get(number)
                if found is None and stamp != self._unpinned:
                    continue  # or changed them, published them, and seen the table dropped
                table = found or table
                if number not in self._cache and len(self._cache) >= self._most:
                    del self._cache[next(iter(self._cache))]  # the oldest; no work on a hit, and good enough
                self._cache[number] = table
                return table

    def pin(self, number: int) -> Table:
        """Return table ``number``, to be changed, and keep it until ``unpin``: the file does not have it yet."""
        while True:
            table = self.table(number)
            if isinstance(table, int):
                raise CorruptError(f"grain table {number} cannot be changed", path=self._storage.name)
            with self._lock:
                if self._pins.get(number) is table:
                    return table
                if self._cache.get(number) is table:
                    self._pins[number] = table
                    return table

    def add(self, number: int, address: int) -> None:
        """Make an empty table that is to lie at ``address``, and pin it."""
        with self._lock:
            self._pins[number] = self._cache[number] = np.full(self.entries, UNALLOCATED, dtype=np.int64).data
            self._addresses[number] = address

    def unpin(self, number: int) -> None:
        """Let table ``number`` go: the file has it."""
        with self._lock:
            self._pins.pop(number, None)
            self._unpinned += 1

    def _load(self, number: int, address: int) -> Codes:
        return self._decode(self._storage.pread(self.raw_size, address))

    def next_present(self, number: int) -> int:
        """Return the first table from ``number`` on that is not plainly unallocated; the count of tables if none."""
        step = 4096
        while number < len(self.directory):
            found = np.flatnonzero(self.directory[number : number + step] != UNALLOCATED)
            if len(found):
                return number + int(found[0])
            number += step
        return len(self.directory)

    def stretch(self, number: int) -> tuple[int, int]:
        """Return the code that all entries of table ``number`` have, and the first table that has another one.

        A table that has to be looked into has no such code: then the answer is its address and the next table.
        """
        code: int = self._addresses[number]
        if code >= 0:
            return code, number + 1
        step = 4096
        while number < len(self.directory):
            found = np.flatnonzero(self.directory[number : number + step] != code)
            if len(found):
                return code, number + int(found[0])
            number += step
        return code, len(self.directory)

    def bulk(self, first: int, last: int) -> Codes:
        """Return the codes of tables ``first`` to ``last`` (exclusive) in one array, read in as few calls as may be."""
        parts: list[Codes] = []
        at = first
        while at < last:
            pinned = self._pins.get(at)
            if pinned is not None:
                parts.append(np.array(pinned, dtype=np.int64))
                at += 1
                continue
            address: int = self._addresses[at]
            stop = at + 1
            if address < 0:
                while stop < last and self._addresses[stop] == address and stop not in self._pins:
                    stop += 1
                parts.append(np.full((stop - at) * self.entries, address, dtype=np.int64))
                at = stop
                continue
            while stop < last and self._addresses[stop] == address + (stop - at) * self.raw_size:
                if stop in self._pins:
                    break
                stop += 1
            parts.append(self._decode(self._storage.pread((stop - at) * self.raw_size, address)))
            at = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class FoundTables(GrainTables):
    """Tables put together from grains that were found by walking the file, as salvaging a stream does.

    ``grains`` are grain numbers in ascending order, ``addresses`` where each begins; both int64.
    """

    def __init__(self, storage: Device, grains: Codes, addresses: Codes, *, count: int, entries: int) -> None:
        nowhere = np.full(count, UNALLOCATED, dtype=np.int64)
        super().__init__(storage, nowhere, entries=entries, width=_CODE, decode=_never)
        self._grains, self._found = grains, addresses
        self.directory[np.unique(grains // entries)] = 0  # present, though nowhere in the file

    def _load(self, number: int, address: int) -> Codes:
        table = np.full(self.entries, UNALLOCATED, dtype=np.int64)
        low, high = np.searchsorted(self._grains, [number * self.entries, (number + 1) * self.entries])
        table[self._grains[low:high] - number * self.entries] = self._found[low:high]
        return table

    def bulk(self, first: int, last: int) -> Codes:
        """Return the codes of tables ``first`` to ``last`` (exclusive)."""
        return np.concatenate([self._load(number, 0) for number in range(first, last)])


class TableExtent(ExtentFile):
    """An extent whose bytes are found through grain tables."""

    def __init__(
        self, length: int, storage: Device, tables: GrainTables, *, grain: int, kind: str, compressed: bool = False
    ) -> None:
        super().__init__(length, storage, kind=kind)
        self._file = storage
        self.tables = tables
        self.grain = grain
        self._coverage = grain * tables.entries
        self._present = RunKind.DEFLATE if compressed else RunKind.DATA

    @property
    def file(self) -> Device:
        """The storage, which a table extent always has."""
        return self._file

    def map(self, offset: int, count: int) -> Run:
        """Return the run at ``offset``; it ends with its table at the latest."""
        number, within = divmod(offset, self._coverage)
        table = self.tables.table(number)
        if isinstance(table, int):
            return Run(min(self._coverage - within, count), _KINDS[table])
        entry, skip = divmod(within, self.grain)
        code: int = table[entry]
        length = self.grain - skip
        step = self.grain if code >= 0 and self._present is RunKind.DATA else 0
        expected = code
        while length < count and entry + 1 < self.tables.entries:
            entry += 1
            expected += step
            following: int = table[entry]
            if following != expected and not (step == 0 and code >= 0 and following >= 0):
                break
            length += self.grain
        length = min(length, count)
        if code < 0:
            return Run(length, _KINDS[code])
        if self._present is RunKind.DEFLATE:
            return Run(length, RunKind.DEFLATE)
        return self._within_file(length, code + skip)

    def _within_file(self, length: int, at: int) -> Run:
        """Cut a run at the end of the file: what a short last grain lacks reads as zero (format spec 1.7)."""
        eof = self._file.size
        if at + length <= eof:
            return Run(length, RunKind.DATA, at)
        if at >= eof:
            return Run(length, RunKind.ZERO)
        return Run(eof - at, RunKind.DATA, at)

    def runs(self, offset: int, count: int) -> Iterator[Run]:
        """Yield runs in bulk: unallocated tables are stepped over, present ones joined by numpy."""
        end = offset + count
        many = max(1, _BULK_BYTES // (self.tables.entries * _CODE))
        while offset < end:
            number = offset // self._coverage
            if end - offset <= self._coverage // 4:
                run = self.map(offset, end - offset)
                yield run
                offset += run.length
                continue
            code, following = self.tables.stretch(number)
            if code < 0:
                stop = min(following * self._coverage, end)
                yield Run(stop - offset, _KINDS[code])
                offset = stop
                continue
            last = min(number + many, len(self.tables), -(-end // self._coverage))
            base = number * self._coverage
            stop = min(last * self._coverage, end)
            yield from self._joined(self.tables.bulk(number, last), offset - base, stop - base)
            offset = stop

    def _joined(self, codes: Codes, start: int, stop: int) -> Iterator[Run]:
        """Join entries that continue one another; ``start`` and ``stop`` are bytes from the first entry."""
        first = start // self.grain
        codes = codes[first : -(-stop // self.grain)]
        before, after = codes[:-1], codes[1:]
        if self._present is RunKind.DATA:
            same = after == before + np.where(before >= 0, self.grain, 0)
        else:
            same = (after == before) | ((after >= 0) & (before >= 0))
        begins = np.concatenate([[0], np.flatnonzero(~same) + 1])
        addresses: list[int] = codes[begins].tolist()
        edges: list[int] = ((begins + first) * self.grain).tolist()
        edges.append(stop)
        edges[0] = start
        skip = start - first * self.grain
        for index, code in enumerate(addresses):
            length = edges[index + 1] - edges[index]
            if code < 0:
                yield Run(length, _KINDS[code])
            elif self._present is RunKind.DEFLATE:
                yield Run(length, RunKind.DEFLATE)
            else:
                yield from self._data(length, code + (skip if index == 0 else 0))

    def _data(self, length: int, at: int) -> Iterator[Run]:
        run = self._within_file(length, at)
        yield run
        if run.length < length:
            yield Run(length - run.length, RunKind.ZERO)

    def refusal(self, offset: int, kind: RunKind) -> VmdkitError:
        """Name the table and entry that are wrong."""
        if kind is not RunKind.CORRUPT:
            return super().refusal(offset, kind)
        number, within = divmod(offset, self._coverage)
        address = int(self.tables.directory[number])
        if address < 0:
            return CorruptError(
                f"the directory entry {number} points outside the file or into other metadata; "
                f"the disk cannot be read from {number * self._coverage:#x} on",
                structure="grain directory",
                path=self.path,
            )
        entry = within // self.grain
        return CorruptError(
            f"entry {entry} of table {number} points outside the grains of the file, "
            f"so the disk cannot be read at {offset - offset % self.grain:#x}",
            structure="grain table",
            path=self.path,
            offset=address + entry * self.tables.raw_size // self.tables.entries,
        )


def _overlapping(directory: Codes, raw_size: int) -> Codes:
    """Return the numbers of tables that share bytes with another one: at most one of them can be right."""
    present = np.flatnonzero(directory >= 0)
    addresses = directory[present]
    if np.all(addresses[1:] - addresses[:-1] >= raw_size):
        return present[:0]  # in order, as almost always
    order = np.argsort(addresses, kind="stable")
    ascending = addresses[order]
    close = np.flatnonzero(ascending[1:] - ascending[:-1] < raw_size)
    return present[order[np.union1d(close, close + 1)]]


def in_holes(storage: Device, directory: Codes, raw_size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tell which tables lie wholly where the file is said to read as zero: zeros are unallocated entries."""
    hidden = np.zeros(len(directory), dtype=bool)
    present = np.flatnonzero(directory >= 0)
    if len(present) < _WORTH_LOOKING:
        return hidden
    low, high = int(directory[present].min()), int(directory[present].max()) + raw_size
    if high - low > 4 * len(present) * raw_size:
        return hidden  # tables strewn among data: looking for holes would walk the whole file
    starts, ends = [], []
    for count, run in enumerate(storage.extents(high - low, low)):
        if count > _MOST_HOLES:
            return hidden
        if run.flags & ExtentFlags.ZERO:
            starts.append(run.offset)
            ends.append(run.offset + run.length)
    if starts:
        which = np.searchsorted(np.array(starts), directory[present], side="right") - 1
        hidden[present] = (which >= 0) & (directory[present] + raw_size <= np.array(ends)[which])
    return hidden


def _never(raw: bytes | bytearray) -> Codes:
    raise CorruptError(f"a salvaged table of {len(raw)} bytes was asked from the file")
