# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Give grains to a table extent, and publish the tables so that a power cut at any moment loses nothing durable.

The one write path of every format with grain tables (format spec 4.3)::

    write        new grain, complete, at the end of the file   │ in memory only: the table entry
    publish      barrier      data, new tables, free pointer are durable; nothing points at them yet
                 tables       entries in whole sectors, redundant copy first, then the primary; new tables' pointers
                 barrier

What is not published is lost by a crash and was promised to nobody. What is published points at data that were
durable before. So each entry on disk is at any moment either its old or its new value, and both are right.

Two writers of one grain: the first reserves it, the second waits until it is there and then writes into it.
A freed grain is given to other data when the tables that dropped it are durable and no operation that may have
looked it up is running (epochs.py).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import CorruptError, VmdkitError
from vmdkit.units import GIB, MIB, SECTOR
from vmdkit.vmdk.structs import CORRUPT, UNALLOCATED, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.structs import Codes
    from vmdkit.vmdk.tables import TableExtent

    Fill = Callable[[memoryview, int], None]

_RUN = 4 * MIB  # bytes allocated and written at once; bounds how long others wait for a reserved grain
_MOST_UNPUBLISHED = GIB // 2  # bytes of new grains after which tables are published unasked
_MOST_TABLES = 2048  # changed tables kept in memory; with 512 entries 8 MiB, with 4096 64 MiB
_HIGHEST = (1 << 32) * SECTOR  # bytes; a pointer has 32 bits of sectors
_WIDTH = 4
_PER_SECTOR = SECTOR // _WIDTH
_SCAN = 128  # tables looked at together


@dataclass(slots=True)
class Copy:
    """One copy of directory and tables: where the directory is, and each table (byte addresses, 0 for none)."""

    directory_offset: int
    addresses: list[int]


@dataclass(slots=True)
class _Pending:
    """What a publication has to write: sectors of tables, whole new tables, grains that they drop."""

    sectors: dict[int, set[int]] = field(default_factory=dict)  # table -> numbers of its sectors
    tables: set[int] = field(default_factory=set)  # tables that the file has no pointer to
    freed: list[int] = field(default_factory=list)
    grains: int = 0


class TableWriter:
    """Allocation and publication for one extent. Thread-safe."""

    def __init__(
        self,
        extent: TableExtent,
        copies: list[Copy],
        session: Session,
        *,
        zero_code: int | None,
        first_free: int = 0,
        before_barrier: Callable[[int], None] | None = None,
    ) -> None:
        """Take over an extent whose storage is writable.

        ``copies`` are in the order of writing, the one that is read last. ``zero_code`` is the entry that hides a
        parent, None where the format has none. ``before_barrier`` is told the end of the used file before the first
        barrier of a publication, to note it where the format wants that. Raises CorruptError for tables that are
        not fit to be written.
        """
        self.zero_code = zero_code
        self._extent = extent
        self._storage: Device = extent.file
        self._tables = extent.tables
        self._grain = extent.grain
        self._copies = copies
        self._epochs = session.epochs
        self._guarded = session.guarded
        self._before_barrier = before_barrier
        self._changed = threading.Condition(threading.Lock())
        self._publishing = threading.Lock()
        self._in_flight: set[int] = set()
        self._pending = _Pending()
        self._verified: set[int] = set()
        self._quarantine: deque[tuple[int, int]] = deque()  # (epoch of durable freeing, address)
        self._free: list[int] = []  # descending
        self._next = self._find_end(first_free)

    def _find_end(self, first_free: int) -> int:
        """Return the first address behind everything, grain-aligned; refuse pointers that cannot be."""
        highest = max(first_free, self._storage.size)
        for codes in self._scan():
            if (codes == CORRUPT).any():
                raise CorruptError(
                    "its grain tables have entries that cannot be right; check and repair it before writing",
                    structure="grain table", path=self._extent.path,
                )  # fmt: skip
            highest = max(highest, int(codes.max()) + self._grain)
        return -(-highest // self._grain) * self._grain

    def _scan(self) -> Iterator[Codes]:
        """Yield the entries of all tables that the file holds something of, some at a time."""
        present = np.flatnonzero((self._tables.directory != UNALLOCATED) & ~self._tables.hidden)
        for part in np.split(present, np.flatnonzero(np.diff(present) != 1) + 1):
            for at in range(0, len(part), _SCAN):
                yield self._tables.bulk(int(part[at]), int(part[min(at + _SCAN, len(part)) - 1]) + 1)

    def complete_last_grain(self) -> None:
        """Make the file end where its last grain does: a cut grain would be overlaid by what is written next."""
        if self._storage.size < self._next:
            self._storage.resize(self._next)

    # ── allocation ───────────────────────────────────────────────────────────────────────────────────────────

    def allocate(self, view: memoryview, offset: int, fill: Fill) -> int:
        """Write the beginning of ``view`` at ``offset`` of the extent into new grains; return how many bytes.

        ``fill(buf, offset)`` gives the bytes that the grains' other parts have until now. 0 means that somebody
        else has allocated the first grain meanwhile, or is about to: look again.
        """
        grain = self._grain
        first = offset // grain
        reserved = self._reserve(first, min(-(-(offset + len(view)) // grain), first + max(1, _RUN // grain)))
        if reserved is None:
            return 0
        last, address, code = reserved
        count = min(len(view), last * grain - offset)
        try:
            self._write(view[:count], offset, first, last, address, fill if code == UNALLOCATED else _zeros)
        except BaseException:
            with self._changed:
                self._release(first, last)
                self._give_back(range(address, address + (last - first) * grain, grain))
            raise
        with self._changed:
            table, entry = self._pinned(first)
            for index in range(last - first):
                table[entry + index] = address + index * grain
            self._note(first, last)
            self._pending.grains += last - first
            self._release(first, last)
            due = self._pending.grains * grain >= _MOST_UNPUBLISHED or len(self._pending.sectors) > _MOST_TABLES
        if due:
            self.publish()
        return count

    def _reserve(self, first: int, last: int) -> tuple[int, int, int] | None:
        """Reserve grains from ``first``, as many up to ``last`` as are alike; None where the first is not free."""
        with self._changed:
            if first in self._in_flight:
                self._changed.wait_for(lambda: first not in self._in_flight)
                return None
            number, entry = divmod(first, self._tables.entries)
            self._ensure_table(number)
            table = self._tables.pin(number)
            self._pending.sectors.setdefault(number, set())  # pinned tables stay known until published
            code: int = table[entry]
            if code >= 0:
                return None
            stop, limit = first + 1, min(last, (number + 1) * self._tables.entries)
            while stop < limit and stop not in self._in_flight and table[stop - number * self._tables.entries] == code:
                stop += 1
            stop, address = self._take(first, stop)
            self._in_flight.update(range(first, stop))
            return stop, address, code

    def _take(self, first: int, last: int) -> tuple[int, int]:
        """Return an address for the grains from ``first`` on, and how far it reaches: freed ones, or the end."""
        self._collect()
        if self._free:
            address, reach = self._free.pop(), first + 1
            while reach < last and self._free and self._free[-1] == address + (reach - first) * self._grain:
                self._free.pop()
                reach += 1
            return reach, address
        address, length = self._next, (last - first) * self._grain
        if address + length > _HIGHEST:
            raise VmdkitError("the extent file has reached the 2 TiB that pointers can say", path=self._extent.path)
        self._storage.resize(address + length)
        self._next = address + length
        return last, address

    def _give_back(self, addresses: Iterable[int]) -> None:
        """Take grains that nobody uses; the lowest is given away first, so that files stay short."""
        self._free.extend(addresses)
        self._free.sort(reverse=True)

    def _write(self, view: memoryview, offset: int, first: int, last: int, address: int, fill: Fill) -> None:
        """Write whole grains: what ``view`` does not cover of the first and last comes from ``fill``."""
        grain = self._grain
        start, end = first * grain, last * grain
        head, tail = offset - start, end - (offset + len(view))
        done = 0
        if head or (tail and last - first == 1):
            done = min(grain - head, len(view))
            self._write_partial(view[:done], start, head, address, fill)
        stop = len(view) if not tail or done == len(view) else len(view) - (grain - tail)
        if stop > done:
            self._storage.pwrite(view[done:stop], address + head + done)
        if stop < len(view):
            self._write_partial(view[stop:], end - grain, 0, address + (end - grain - start), fill)

    def _write_partial(self, piece: memoryview, start: int, skip: int, address: int, fill: Fill) -> None:
        """Complete one grain in memory and write it at once."""
        whole = memoryview(bytearray(self._grain))
        whole[skip : skip + len(piece)] = piece
        if skip:
            fill(whole[:skip], start)
        if skip + len(piece) < self._grain:
            fill(whole[skip + len(piece) :], start + skip + len(piece))
        self._storage.pwrite(whole, address)

    def _release(self, first: int, last: int) -> None:
        self._in_flight.difference_update(range(first, last))
        self._changed.notify_all()

    def _pinned(self, grain: int) -> tuple[memoryview, int]:
        number, entry = divmod(grain, self._tables.entries)
        return self._tables.pin(number), entry

    def _note(self, first: int, last: int) -> None:
        """Remember that the entries of these grains, all of one table, have to be published."""
        number, entry = divmod(first, self._tables.entries)
        sectors = self._pending.sectors.setdefault(number, set())
        sectors.update(range(entry // _PER_SECTOR, (entry + last - first - 1) // _PER_SECTOR + 1))

    # ── freeing ──────────────────────────────────────────────────────────────────────────────────────────────

    def free(self, first: int, last: int, code: int) -> None:
        """Set grains ``first`` to ``last`` (exclusive) to ``code``; their space is given back when that is durable."""
        entries = self._tables.entries
        while first < last:
            stop = min(last, (first // entries + 1) * entries)
            with self._changed:
                while self._busy(first, stop):
                    self._changed.wait()
                self._ensure_table(first // entries)
                table, entry = self._pinned(first)
                for index in range(stop - first):
                    old: int = table[entry + index]
                    if old == code:
                        continue
                    if old >= 0:
                        self._pending.freed.append(old)
                    table[entry + index] = code
                self._note(first, stop)
            first = stop

    def _busy(self, first: int, last: int) -> bool:
        return bool(self._in_flight) and not self._in_flight.isdisjoint(range(first, last))

    def _collect(self) -> None:
        """Move what nobody can be using any more from quarantine to the free grains; its space goes back too."""
        if not self._quarantine:
            return
        now = self._epochs.advance()
        released: list[int] = []
        while self._quarantine and self._quarantine[0][0] + 2 <= now:
            released.append(self._quarantine.popleft()[1])
        for address in released:
            self._storage.trim(self._grain, address)
        if released:
            self._give_back(released)

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ensure_table(self, number: int) -> None:
        """Have table ``number`` ready to be changed: make one where there is none, compare its copies once."""
        if number in self._verified:
            return
        places = [copy.addresses[number] for copy in self._copies]
        if not any(places):
            self._make_table(number)
        elif not all(places):
            raise self._differ(number, max(places))
        elif len(places) > 1:
            one, two = (self._storage.pread(self._tables.raw_size, place) for place in places)
            if one != two:
                raise self._differ(number, places[0])
        self._verified.add(number)

    def _differ(self, number: int, place: int) -> CorruptError:
        return CorruptError(
            f"the two copies of grain table {number} differ; check and repair the disk before writing here",
            structure="grain table", path=self._extent.path, offset=place,
        )  # fmt: skip

    def _make_table(self, number: int) -> None:
        size = -(-self._tables.raw_size // SECTOR) * SECTOR
        end = -(-(self._next + size * len(self._copies)) // self._grain) * self._grain
        if end > _HIGHEST:
            raise VmdkitError("the extent file has reached the 2 TiB that pointers can say", path=self._extent.path)
        self._storage.resize(end)  # may fail; nothing points at the table before it has its place
        for copy in self._copies:
            copy.addresses[number] = self._next
            self._next += size
        self._next = end
        self._tables.add(number, self._copies[-1].addresses[number])
        self._pending.tables.add(number)
        self._pending.sectors.setdefault(number, set())

    # ── publication ──────────────────────────────────────────────────────────────────────────────────────────

    def publish(self) -> None:
        """Make everything written until now durable, and findable. Two barriers; one where no table has changed.

        An error here is final for the session: after a failed barrier nobody knows what is on the disk.
        """
        self._guarded(self._publish)

    def _publish(self) -> None:
        with self._publishing:
            with self._changed:
                pending, self._pending = self._pending, _Pending()
                # In-flight grains keep their tables pinned for the next publication.
                for grain in self._in_flight:
                    self._pending.sectors.setdefault(grain // self._tables.entries, set())
                writes = self._encode(pending)
                end = self._next
            if pending.tables or pending.grains:
                for place, data in writes.unreferenced:
                    self._storage.pwrite(data, place)
                if self._before_barrier is not None:
                    self._before_barrier(end)
            self._storage.flush()
            if writes.referenced:
                for place, data in writes.referenced:
                    self._storage.pwrite(data, place)
                self._storage.flush()
            with self._changed:
                epoch = self._epochs.advance()
                self._quarantine.extend((epoch, address) for address in pending.freed)
                for number in pending.sectors:
                    if number not in self._pending.sectors:
                        self._tables.unpin(number)

    def _encode(self, pending: _Pending) -> _Writes:
        """Turn what has changed into writes, from the tables as they are now: later changes are not yet durable."""
        writes = _Writes()
        changed = {number: sectors for number, sectors in sorted(pending.sectors.items()) if sectors}
        raw = {number: encode_sectors(np.array(self._tables.pin(number))) for number in {*changed, *pending.tables}}
        for copy in self._copies:
            directory: set[int] = set()
            for number in sorted(pending.tables):
                writes.unreferenced.append((copy.addresses[number], raw[number]))
                directory.add(number // _PER_SECTOR)
            for number, sectors in changed.items():
                if number in pending.tables:
                    continue
                for first, last in _joined(sectors):
                    piece = raw[number][first * SECTOR : last * SECTOR]
                    writes.referenced.append((copy.addresses[number] + first * SECTOR, piece))
            for sector in sorted(directory):
                writes.referenced.append((copy.directory_offset + sector * SECTOR, self._directory(copy, sector)))
        return writes

    def _directory(self, copy: Copy, sector: int) -> bytes:
        """Return one sector of a directory; entries behind the last stay zero, as the format pads them."""
        part = copy.addresses[sector * _PER_SECTOR : (sector + 1) * _PER_SECTOR]
        codes = np.full(_PER_SECTOR, UNALLOCATED, dtype=np.int64)
        codes[: len(part)] = [address or UNALLOCATED for address in part]
        return encode_sectors(codes)

    @property
    def end(self) -> int:
        """The first address behind everything in use."""
        return self._next


@dataclass(slots=True)
class _Writes:
    """Writes of one publication: what nothing points at before the first barrier, and what does after it."""

    unreferenced: list[tuple[int, bytes]] = field(default_factory=list)
    referenced: list[tuple[int, bytes]] = field(default_factory=list)


def _joined(sectors: set[int]) -> list[tuple[int, int]]:
    """Return runs (first, last exclusive) of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for sector in sorted(sectors):
        if runs and runs[-1][1] == sector:
            runs[-1] = (runs[-1][0], sector + 1)
        else:
            runs.append((sector, sector + 1))
    return runs


def _zeros(view: memoryview, offset: int) -> None:
    """Fill nothing: a fresh buffer is zero already."""
