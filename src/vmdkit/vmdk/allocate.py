# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Give grains to a table extent, and publish the tables so that a power cut at any moment loses nothing durable.

The one write path of every format with grain tables (format spec 4.3)::

    write        new grain at the end of the file              │ in memory only: the table entry
    publish      barrier      data, new tables, free pointer are durable; nothing points at them yet
                 tables       entries in whole sectors, redundant copy first, then the primary; new tables' pointers
                 barrier

What is not published is lost by a crash and was promised to nobody. What is published points at data that were
durable before. So each entry on disk is at any moment either its old or its new value, and both are right.

A new grain is whole before anything points at it: what the guest did not write of it is its parent's, and written
with it, or zero. At the end of a file that has just grown zeros are there already, so they are not written.

Two writers of one grain: the first reserves it, the second waits until it is there and then writes into it.
A freed grain is given to other data when the tables that dropped it are durable and no operation that may have
looked it up is running (space.py, epochs.py).
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import CorruptError
from vmdkit.kernels import is_zero
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk.space import MOST_RANGES, Space, joined
from vmdkit.vmdk.structs import CORRUPT, UNALLOCATED, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.structs import Codes
    from vmdkit.vmdk.tables import TableExtent

    Fill = Callable[[memoryview, int], None]

_log = logging.getLogger(__name__)

_RUN = 4 * MIB  # bytes allocated and written at once; bounds how long others wait for a reserved grain
_EARLY = 128 * MIB  # bytes of new grains after which a thread publishes unasked, so that a flush finds less to do
_MOST_PINNED = 64 * MIB  # bytes of changed tables kept in memory; beyond that a writer publishes before it goes on
_CODE = 8  # bytes of an entry in memory
_WIDTH = 4
_PER_SECTOR = SECTOR // _WIDTH
_SCAN = 128  # tables looked at together
_FEW = 16  # entries that a loop frees faster than numpy


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
    freed: list[tuple[int, int]] = field(default_factory=list)  # ranges of addresses
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
        self._guarded = session.guarded
        self._wrote = session.wrote
        self._before_barrier = before_barrier
        self._changed = threading.Condition(threading.Lock())
        self._publishing = threading.Lock()
        self._in_flight: set[int] = set()
        self._pending = _Pending()
        self._verified: set[int] = set()
        self._helper: threading.Thread | None = None
        self._most_tables = _MOST_PINNED // (self._tables.entries * _CODE)
        self._space = Space(self._storage, self._grain, self._find_end(first_free), session.epochs)

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
        self._space.complete()

    # ── allocation ───────────────────────────────────────────────────────────────────────────────────────────

    def allocate(self, view: memoryview, offset: int, fill: Fill | None) -> int:
        """Write the beginning of ``view`` at ``offset`` of the extent into new grains; return how many bytes.

        ``fill(buf, offset)`` gives the bytes that the grains' other parts have until now; None for zeros. 0 means
        that somebody else has allocated the first grain meanwhile, or is about to: look again.
        """
        grain = self._grain
        first = offset // grain
        reserved = self._reserve(first, min(-(-(offset + len(view)) // grain), first + max(1, _RUN // grain)))
        if reserved is None:
            return 0
        last, address, code, fresh = reserved
        count = min(len(view), last * grain - offset)
        if code != UNALLOCATED:
            fill = None
        try:
            if fresh and fill is None:
                self._storage.pwrite(view[:count], address + offset - first * grain)
            else:
                self._write(view[:count], offset, first, last, address, fill, fresh=fresh)
        except BaseException:
            with self._changed:
                self._release(first, last)
                self._space.give_back([(address, address + (last - first) * grain)])
            raise
        with self._changed:
            table, entry = self._pinned(first)
            for index in range(last - first):
                table[entry + index] = address + index * grain
            self._note(first, last)
            self._pending.grains += last - first
            self._release(first, last)
            late = len(self._pending.sectors) > self._most_tables
            if not late:
                self._publish_early()
        if late:
            self.publish()
        return count

    def _reserve(self, first: int, last: int) -> tuple[int, int, int, bool] | None:
        """Reserve grains from ``first``, as many up to ``last`` as are alike; None where the first is not free.

        Returns (end of the grains, address, the code they had, whether the place reads as zero).
        """
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
            address, count, fresh = self._space.take(stop - first)
            self._in_flight.update(range(first, first + count))
            return first + count, address, code, fresh

    def _write(
        self, view: memoryview, offset: int, first: int, last: int, address: int, fill: Fill | None, *, fresh: bool
    ) -> None:
        """Write whole grains: what ``view`` does not cover of the first and last comes from ``fill``."""
        grain = self._grain
        start, end = first * grain, last * grain
        head, tail = offset - start, end - (offset + len(view))
        done = 0
        if head or (tail and last - first == 1):
            done = min(grain - head, len(view))
            self._write_partial(view[:done], start, head, address, fill, fresh=fresh)
        stop = len(view) if not tail or done == len(view) else len(view) - (grain - tail)
        if stop > done:
            self._storage.pwrite(view[done:stop], address + head + done)
        if stop < len(view):
            self._write_partial(view[stop:], end - grain, 0, address + (end - grain - start), fill, fresh=fresh)

    def _write_partial(
        self, piece: memoryview, start: int, skip: int, address: int, fill: Fill | None, *, fresh: bool
    ) -> None:
        """Complete one grain in memory and write it at once, without the zeros that are there already."""
        whole = memoryview(bytearray(self._grain))
        stop = skip + len(piece)
        if fill is not None:
            if skip:
                fill(whole[:skip], start)
            if stop < self._grain:
                fill(whole[stop:], start + stop)
        if fresh and is_zero(whole[:skip]) and is_zero(whole[stop:]):
            self._storage.pwrite(piece, address + skip)
            return
        whole[skip:stop] = piece
        self._storage.pwrite(whole, address)

    def _release(self, first: int, last: int) -> None:
        self._in_flight.difference_update(range(first, last))
        self._changed.notify_all()

    def _pinned(self, grain: int) -> tuple[memoryview, int]:
        number, entry = divmod(grain, self._tables.entries)
        return self._tables.pin(number), entry

    def _note(self, first: int, last: int) -> None:
        """Remember that the entries of these grains, all of one table, have to be published."""
        self._wrote()
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
                dropped = _set_entries(table, entry, entry + stop - first, code)
                self._pending.freed += joined(dropped, self._grain)
                self._note(first, stop)
                late = len(self._pending.sectors) > self._most_tables or len(self._pending.freed) > MOST_RANGES
            if late:
                self.publish()
            first = stop

    def _busy(self, first: int, last: int) -> bool:
        return bool(self._in_flight) and not self._in_flight.isdisjoint(range(first, last))

    def finish(self) -> None:
        """Give back what was freed, and what the file was grown by and not used; after the last publication."""
        with self._changed:
            released = self._space.released()
        self._space.punch(released)
        with self._changed:
            self._space.cut()

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
        # May fail; nothing points at the table before it has its place.
        place = self._space.take_end(-(-size * len(self._copies) // self._grain) * self._grain)
        for copy in self._copies:
            copy.addresses[number] = place
            place += size
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
                end = self._space.end
            if pending.tables or pending.grains:
                for place, data in writes.unreferenced:
                    self._storage.pwrite(data, place)
                if self._before_barrier is not None:
                    self._before_barrier(end)
            self._storage.flush()
            if writes.referenced:
                for place, piece in writes.referenced:
                    self._storage.pwrite(piece, place)
                self._storage.flush()
            with self._changed:
                for number in pending.sectors:
                    if number not in self._pending.sectors:
                        self._tables.unpin(number)
                self._space.retire(pending.freed)
                released = self._space.released()
        if released:
            self._space.punch(released)
            with self._changed:
                self._space.give_back(released)

    def _publish_early(self) -> None:
        """Start a thread that publishes, where much waits for that and none is at it; the lock is held."""
        pending = self._pending
        if pending.grains * self._grain < _EARLY and len(pending.sectors) * 4 < self._most_tables:
            return
        if self._helper is not None and self._helper.is_alive():
            return
        helper = threading.Thread(target=self._publish_unasked, name="vmdk-publish", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no more threads: a flush, or the bound on tables, will have to do it
            return
        self._helper = helper

    def _publish_unasked(self) -> None:
        """Publish in a thread of its own, so that no client waits for that; whoever comes next hears of an error."""
        try:
            self.publish()
        except Exception as error:
            _log.error("%s: what was written could not be made durable: %s", self._extent.path, error)

    def wait(self) -> None:
        """Wait for the thread that publishes unasked."""
        helper = self._helper
        if helper is not None:
            helper.join()

    def _encode(self, pending: _Pending) -> _Writes:
        """Turn what has changed into writes, from the tables as they are now: later changes are not yet durable."""
        writes = _Writes()
        whole = {number: encode_sectors(np.array(self._tables.pin(number))) for number in sorted(pending.tables)}
        pieces = [
            (number, first, last)
            for number, sectors in sorted(pending.sectors.items())
            if sectors and number not in whole
            for first, last in _runs(sectors)
        ]
        raw = memoryview(self._raw(pieces))
        for copy in self._copies:
            for number, data in whole.items():
                writes.unreferenced.append((copy.addresses[number], data))
            at = 0
            for number, first, last in pieces:
                size = (last - first) * SECTOR
                writes.referenced.append((copy.addresses[number] + first * SECTOR, raw[at : at + size]))
                at += size
            for sector in sorted({number // _PER_SECTOR for number in whole}):
                writes.referenced.append((copy.directory_offset + sector * SECTOR, self._directory(copy, sector)))
        return writes

    def _raw(self, pieces: list[tuple[int, int, int]]) -> bytes:
        """Return sectors of tables (number, first, behind the last) as they are to be in the file."""
        if not pieces:
            return b""
        tables = [
            np.asarray(self._tables.pin(number)[first * _PER_SECTOR : last * _PER_SECTOR])
            for number, first, last in pieces
        ]
        return encode_sectors(np.concatenate(tables))

    def _directory(self, copy: Copy, sector: int) -> bytes:
        """Return one sector of a directory; entries behind the last stay zero, as the format pads them."""
        part = copy.addresses[sector * _PER_SECTOR : (sector + 1) * _PER_SECTOR]
        codes = np.full(_PER_SECTOR, UNALLOCATED, dtype=np.int64)
        codes[: len(part)] = [address or UNALLOCATED for address in part]
        return encode_sectors(codes)


@dataclass(slots=True)
class _Writes:
    """Writes of one publication: what nothing points at before the first barrier, and what does after it."""

    unreferenced: list[tuple[int, bytes | memoryview]] = field(default_factory=list)
    referenced: list[tuple[int, bytes | memoryview]] = field(default_factory=list)


def _runs(sectors: set[int]) -> list[tuple[int, int]]:
    """Return runs (first, last exclusive) of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for sector in sorted(sectors):
        if runs and runs[-1][1] == sector:
            runs[-1] = (runs[-1][0], sector + 1)
        else:
            runs.append((sector, sector + 1))
    return runs


def _set_entries(table: memoryview, first: int, last: int, code: int) -> Codes:
    """Set entries of a table to ``code``; return the addresses that they held."""
    if last - first <= _FEW:
        dropped = [old for old in table[first:last] if old >= 0]
        for at in range(first, last):
            table[at] = code
        return np.array(dropped, dtype=np.int64)
    entries = np.asarray(table[first:last])
    old = entries[entries >= 0]  # a copy
    entries[:] = code
    return old
