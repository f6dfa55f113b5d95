# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Lay out a disk that has no name yet: grains in the order in which they come, tables in memory, headers last.

Nobody can see the files before they are durable and get their names. So there is nothing to keep safe on the way, and
a new disk needs none of what writing to an old one takes (allocate.py): no barriers, no flags, no second look at a
table. It appears by what ``complete`` does, once::

    data │ barrier │ tables, directories │ header, descriptor │ barrier ──▶ the files get their names

A run that is to be written is given grains that lie side by side, so the kernel can move it in one piece (``place``).
What is never written has no grain; what a grain has besides what was written to it is a hole of the file, or the
parent's bytes.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.device import BlockSize, Can, ExtentFlags, Kind, Location
from vmdkit.errors import VmdkitError
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import layout
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.extent_file import ExtentFile, Run, RunKind
from vmdkit.vmdk.structs import UNALLOCATED, ZERO, CowdHeader, HostedHeader, decode_sectors, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.structs import Codes

    Fill = Callable[[memoryview, int], None]

_HIGHEST = (1 << 32) * SECTOR  # bytes; a pointer has 32 bits of sectors
_GROWTH = 16 * MIB  # bytes by which a file grows at least: its end is moved seldom, and set right at last
_MOST_ENTRIES = 2 * MIB  # of tables in memory, 16 MiB of them; more go to the file
_SETTLED = 64 * MIB  # bytes of grains made present at once


class FreshExtent(ExtentFile):
    """An extent with grain tables, being made in an empty file. Thread-safe."""

    def __init__(
        self,
        length: int,
        storage: Device,
        *,
        kind: str,
        grain: int,
        entries: int,
        first: int,
        zero_grains: bool = False,
    ) -> None:
        """Begin an extent whose first grain or table will lie at ``first`` (bytes)."""
        super().__init__(length, storage, kind=kind)
        self.grain = grain
        self.zero_grains = zero_grains
        self._file = storage
        self._entries = entries
        self._tables: dict[int, Codes] = {}
        self._spilled: set[int] = set()
        self._next = first
        self._lock = threading.Lock()

    # ── where things are ─────────────────────────────────────────────────────────────────────────────────────

    def map(self, offset: int, count: int) -> Run:
        """Return the run at ``offset``; it ends with its table at the latest."""
        with self._lock:
            return self._run(offset, count)

    def _run(self, offset: int, count: int) -> Run:
        grain, (skip, codes) = self.grain, (offset % self.grain, self._rest(offset // self.grain))
        code = int(codes[0])
        expected = code + np.arange(len(codes)) * grain if code >= 0 else code
        differs = np.flatnonzero(codes != expected)
        alike = int(differs[0]) if len(differs) else len(codes)
        length = min(alike * grain - skip, count)
        if code < 0:
            return Run(length, RunKind.ZERO if code == ZERO else RunKind.PARENT)
        return Run(length, RunKind.DATA, code + skip)

    def _rest(self, first: int) -> Codes:
        """Return the entries from grain ``first`` to the end of its table; a part of the table where it exists."""
        number, entry = divmod(first, self._entries)
        table = self._tables.get(number)
        if table is None:
            if number not in self._spilled:
                return np.full(self._entries - entry, UNALLOCATED, dtype=np.int64)
            table = self._recall(number)
        return table[entry:]

    def _recall(self, number: int) -> Codes:
        """Bring a table back that went to the file."""
        raw = self._file.pread(self._entries * layout.WIDTH, self._addresses(number)[-1])
        table = decode_sectors(raw, low=0, high=_HIGHEST, zero_grains=self.zero_grains)
        self._make_room()
        self._tables[number] = table
        self._spilled.discard(number)
        return table

    @abstractmethod
    def _addresses(self, number: int) -> list[int]:
        """Return where the copies of a table belong, the one that readers follow last."""

    # ── placing ──────────────────────────────────────────────────────────────────────────────────────────────

    def place(self, offset: int, count: int, fill: Fill | None) -> Run:
        """Return where the first of ``count`` bytes at ``offset`` belong: a run of DATA, in new grains if need be.

        ``fill(buf, offset)`` gives what the grains' other parts have until now; None: zeros.
        """
        with self._lock:
            run = self._run(offset, count)
            if run.kind is RunKind.DATA:
                return run
            first, last = offset // self.grain, -(-(offset + count) // self.grain)
            code = ZERO if run.kind is RunKind.ZERO else UNALLOCATED
            address, given = self._give(first, last, code)
            length = min(count, given * self.grain - offset % self.grain)
            if fill is not None and code == UNALLOCATED:
                self._complete(first * self.grain, given * self.grain, offset, length, address, fill)
            return Run(length, RunKind.DATA, address + offset % self.grain)

    def _give(self, first: int, last: int, code: int) -> tuple[int, int]:
        """Give grains from ``first`` on, up to ``last``, that have the entry ``code``; return where, and how many."""
        self._make_table(first // self._entries)
        address, given = self._next, 0
        while first + given < last:
            number, entry = divmod(first + given, self._entries)
            if given and not self._continues(number):
                break
            part = self._table(number)[entry : min(self._entries, entry + last - first - given)]
            others = np.flatnonzero(part != code)
            some = int(others[0]) if len(others) else len(part)
            part[:some] = address + (given + np.arange(some)) * self.grain
            given += some
            if some < len(part):
                break
        self._take(address + given * self.grain)
        return address, given

    def _table(self, number: int) -> Codes:
        """Return a table to be changed; it may be new."""
        if number in self._spilled:
            return self._recall(number)
        table = self._tables.get(number)
        if table is None:
            self._make_room()
            table = self._tables[number] = np.full(self._entries, UNALLOCATED, dtype=np.int64)
        return table

    def _make_room(self) -> None:
        """Keep the tables in memory few: those that were there go to the file."""
        if len(self._tables) * self._entries >= _MOST_ENTRIES:
            self._spill()

    def _make_table(self, number: int) -> None:
        """Give a table its place in the file, where tables have none from the beginning."""

    def _continues(self, number: int) -> bool:
        """Tell whether grains of table ``number`` may follow those of another without anything between."""
        return True

    def _take(self, end: int) -> None:
        """Count the file as used up to ``end``, and let it be that long."""
        if end > _HIGHEST:
            raise VmdkitError("the extent file has reached the 2 TiB that pointers can say", path=self.path)
        if end > self._file.size:
            try:
                self._file.resize(min(max(end, self._file.size + _GROWTH), _HIGHEST))
            except OSError:
                self._file.resize(end)
        self._next = end

    def _complete(self, start: int, length: int, offset: int, count: int, address: int, fill: Fill) -> None:
        """Write what the first and last of new grains have besides the bytes that are about to come."""
        for at, size in ((start, offset - start), (offset + count, start + length - offset - count)):
            size = min(size, self.length - at)
            if size > 0:
                piece = memoryview(bytearray(size))
                fill(piece, at)
                self._file.pwrite(piece, address + at - start)

    def hide(self, first: int, last: int) -> None:
        """Make absent grains ``first`` to ``last`` (exclusive) read as zero whatever the parent has."""
        with self._lock:
            for number in range(first // self._entries, -(-last // self._entries)):
                base = number * self._entries
                part = self._table(number)[max(first - base, 0) : min(last - base, self._entries)]
                part[part == UNALLOCATED] = ZERO

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    def _spill(self) -> None:
        """Write the tables to the file, neighbours together, and forget them."""
        for copy in range(len(self._addresses(0))):
            for run in _neighbours(sorted(self._tables), copy, self._addresses, self._entries * layout.WIDTH):
                raw = encode_sectors(np.concatenate([self._tables[number] for number in run]))
                self._file.pwrite(raw, self._addresses(run[0])[copy])
        self._spilled.update(self._tables)
        self._tables.clear()

    @abstractmethod
    def complete(self) -> None:
        """Write all that the file still lacks, the header last; not flushed."""


class FreshHosted(FreshExtent):
    """A hosted sparse extent: two copies of all tables, in front (format spec 1.7). ``text`` is its descriptor."""

    def __init__(self, storage: Device, header: HostedHeader, text: bytes, *, kind: str) -> None:
        super().__init__(
            header.capacity,
            storage,
            kind=kind,
            grain=header.grain_size,
            entries=layout.HOSTED_ENTRIES,
            first=header.overhead,
            zero_grains=header.version > 1,
        )
        self.header = header
        self._text = text
        self._first_tables = [layout.first_table(header, at) for at in (header.rgd_offset, header.gd_offset)]
        storage.resize(header.overhead)

    def _addresses(self, number: int) -> list[int]:
        return [first + number * layout.HOSTED_TABLE for first in self._first_tables]

    def complete(self) -> None:
        """Write tables, directories, descriptor and header; the file ends with its last grain."""
        with self._lock:
            self._spill()
            layout.write_hosted(self._file, self.header, self._text, grains=self._next - self.header.overhead)


class FreshCowd(FreshExtent):
    """A COWD extent: tables come with their grains (format spec 1.9).

    With ``whole`` every grain is present when it is complete, so that nothing depends on a parent.
    """

    def __init__(self, storage: Device, header: CowdHeader, *, kind: str, whole: bool) -> None:
        super().__init__(
            header.capacity,
            storage,
            kind=kind,
            grain=header.grain_size,
            entries=layout.COWD_ENTRIES,
            first=header.free,
        )
        self.header = header
        self._whole = whole
        self._places = np.full(header.gd_entries, UNALLOCATED, dtype=np.int64)
        storage.resize(header.free)

    def _addresses(self, number: int) -> list[int]:
        return [int(self._places[number])]

    def _make_table(self, number: int) -> None:
        if self._places[number] == UNALLOCATED:
            place = self._next
            self._take(layout.round_up(place + layout.COWD_TABLE, self.grain))
            self._places[number] = place

    def _continues(self, number: int) -> bool:
        return bool(self._places[number] != UNALLOCATED)

    def complete(self) -> None:
        """Write tables, directory and header; the header says where the used file ends."""
        if self._whole:
            at = 0
            while at < self.length:
                at += self.place(at, min(_SETTLED, self.length - at), None).length
        with self._lock:
            self._file.resize(self._next)
            self._spill()
            self.header.free = self._next
            self._file.pwrite(encode_sectors(self._places), self.header.gd_offset)
            self._file.pwrite(self.header.pack(), 0)


class NewDisk(VmdkDisk):
    """The disk that files under construction will be; it can be written, and read back. Made by ``create``."""

    def __init__(self, descriptor: Descriptor, extents: list[ExtentFile], *, parent: Device | None = None) -> None:
        super().__init__(descriptor, extents, parent=parent)
        self._set_can(self.can & ~Can.FORK | Can.WRITE | Can.FUA | Can.ZERO | Can.PLACE)
        grain = max((extent.grain for extent in extents), default=0)
        if grain:
            self._block_size = BlockSize(preferred=grain)

    def _placed(self, count: int, offset: int) -> Iterator[tuple[int, Device, Run]]:
        """Yield the places of a range that is to be written: offset, file, run."""
        end = offset + count
        while offset < end:
            extent, start = self._extent_at(offset)
            length = min(end, start + extent.length) - offset
            if isinstance(extent, FreshExtent):
                run = extent.place(offset - start, length, self._filler(start))
            else:
                run = extent.map(offset - start, length)
            if extent.storage is None or run.kind is not RunKind.DATA:
                raise extent.refusal(offset - start, run.kind)
            yield offset, extent.storage, run
            offset += run.length

    def _filler(self, start: int) -> Fill | None:
        """Return what gives the parent's bytes to an extent that begins at ``start`` of the disk."""
        if self.parent is None:
            return None
        return lambda view, offset: self._read_parent(view, start + offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        for at, storage, run in self._placed(len(view), offset):
            storage.pwrite(view[at - offset : at - offset + run.length], run.at)

    def _place(self, count: int, offset: int) -> Location | None:
        at, storage, run = next(self._placed(count, offset))
        return Location(at, run.length, Kind.DATA, storage, run.at)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        end = offset + count
        while offset < end:
            extent, start = self._extent_at(offset)
            run = extent.map(offset - start, min(end, start + extent.length) - offset)
            if run.kind is RunKind.DATA and extent.storage is not None:
                extent.storage.zero(run.length, run.at, no_hole=no_hole)
                offset += run.length
            elif no_hole:
                offset += self._settle(offset, run.length)
            else:
                offset += self._leave(extent, start, offset, run)

    def _leave(self, extent: ExtentFile, start: int, offset: int, run: Run) -> int:
        """Let a range without grains be zero, without grains where that can be; return how many bytes are."""
        if run.kind is RunKind.ZERO or not isinstance(extent, FreshExtent):
            return run.length
        if all(flags & ExtentFlags.ZERO for _, _, flags in self._parent_extents(offset, run.length, depth=False)):
            return run.length
        at, grain = offset - start, extent.grain
        if extent.zero_grains:
            last = -(-(at + run.length) // grain) if at + run.length == extent.length else (at + run.length) // grain
            if not at % grain and last > at // grain:
                extent.hide(at // grain, last)
                return min(last * grain - at, run.length)
            run = run._replace(length=min(run.length, -at % grain or run.length))
        placed = extent.place(at, run.length, self._filler(start))
        if extent.storage is not None:  # a neighbour may have been written meanwhile, and brought the parent's bytes
            extent.storage.zero(placed.length, placed.at)
        return placed.length

    def _settle(self, offset: int, count: int) -> int:
        """Give grains of zeros, and the space for them; return how many bytes."""
        _, storage, run = next(self._placed(count, offset))
        storage.zero(run.length, run.at, no_hole=True)
        return run.length

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        yield Location(offset, count, Kind.UNKNOWN)

    def _flush(self) -> None:
        for extent in self.extent_files:
            if extent.storage is not None:
                extent.storage.flush()

    def complete(self, *, sync: bool) -> None:
        """Make whole disks of the files; with ``sync`` durable ones."""
        fresh = [extent for extent in self.extent_files if isinstance(extent, FreshExtent)]
        if sync:
            self._flush()
        for extent in fresh:
            extent.complete()
        if sync and fresh:
            self._flush()


def _neighbours(
    numbers: list[int], copy: int, addresses: Callable[[int], list[int]], size: int, most: int = MIB
) -> Iterator[list[int]]:
    """Yield tables that lie side by side in one copy, at most ``most`` bytes of them together."""
    run: list[int] = []
    for number in numbers:
        if run and (addresses(number)[copy] != addresses(run[-1])[copy] + size or len(run) * size >= most):
            yield run
            run = []
        run.append(number)
    if run:
        yield run
