# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a stream: every grain is read and inflated, every marker looked at (format spec 1.8, 4.4).

The tables are followed grain by grain, which is the order of the file in every stream that was written as one; what
lies between two grains has to be markers and what they announce. So each byte of the file is looked at once.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmdkit.errors import VmdkitError
from vmdkit.kernels import inflate
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import check_header, check_markers, structs
from vmdkit.vmdk.check_findings import Finder, Severity
from vmdkit.vmdk.check_grains import Occupancy, Seen, places_of, present_runs, read_tables
from vmdkit.vmdk.stream import find_footer
from vmdkit.vmdk.structs import GrainMarker, HostedHeader, Marker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from vmdkit.device import Device
    from vmdkit.vmdk.check_header import Copy
    from vmdkit.vmdk.structs import Codes

_SALVAGE = "vmdkit repair --onto NEW writes what can be read"
_LENGTH_ONLY = 4
_MOST_MARKERS = 1 << 16  # looked at between two grains
_AHEAD = 16 * MIB  # bytes of grains being inflated at once
_FIELDS = ("version", "capacity", "grain_size", "table_entries", "flags")
_TEXTS = {
    "gte-beyond-eof": "{} entries of the grain tables point behind the end of the file",
    "gte-metadata": "{} entries of the grain tables point into header or descriptor",
    "gte-shared": "{} entries share a grain with another entry",
    "grain-size": "{} grains have a size that cannot be",
    "grain-lba": "{} grains say that they belong elsewhere",
    "grain-inflate": "{} grains do not inflate, or fail their checksum",
    "grain-short": "{} grains inflate to less than a grain; what is missing reads as zero",
    "gt-mismatch": "{} entries differ between the two copies of the grain tables",
}


class _Grain(NamedTuple):
    """An entry to be looked at: where it is in the table, where its grain is, where that belongs."""

    place: int
    address: int
    guest: int


class StreamCheck(Finder):
    """One look at a stream. ``threads`` inflate; with ``shallow`` grains are not read."""

    def __init__(self, storage: Device, *, threads: int = 2, shallow: bool = False) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self.header: HostedHeader | None = None
        self.grains = 0
        self.leaked = 0
        self._threads = threads
        self._shallow = shallow
        self._seen = Seen()
        self._last = 0  # address of the grain before
        self._end = 0  # behind the grain before
        self._ascending = True
        self._strangers = 0
        self._front = 0  # where the header says that the first marker is
        self._first = 0  # address of the first grain; 0 before there is one
        self._markers: check_markers.MarkerCheck | None = None  # of layout A

    def run(self) -> StreamCheck:
        """Look at everything; findings are in ``findings`` afterwards."""
        header = check_header.check_header(self, self.storage)
        if header is None:
            return self
        check_header.check_text_area(self, self.storage, header)
        self.header, self._front = header, header.overhead
        footer_at = None
        if header.gd_offset == structs.GD_AT_END:
            footer_at = find_footer(self.storage)
            footer = self._check_footer(header, footer_at)
            if footer is None:
                return self
            check_markers.compare_footer(self, header, footer, footer_at or 0)
            header = footer
        copies = check_header.read_copies(self, self.storage, header)
        primary = copies[0]
        if primary is None:
            return self
        self._check_directory(primary)
        if footer_at is not None and header.flags & structs.FLAG_MARKERS:
            self._markers = check_markers.MarkerCheck(self, self.storage, header, primary, footer_at)
        self._check_tables(header, [copy for copy in copies if copy is not None])
        if not self._shallow:
            self._check_tail(header, footer_at)
        return self

    def _check_footer(self, header: HostedHeader, at: int | None) -> HostedHeader | None:
        if at is None:
            self.error(
                "stream-no-footer", "the stream has no footer: the file was probably cut off on its way",
                structure="footer", offset=self.storage.size, remedy=_SALVAGE,
            )  # fmt: skip
            return None
        footer = check_header.check_header(self, self.storage, at)
        if footer is None:
            return None
        for field in _FIELDS:
            ours, theirs = getattr(header, field), getattr(footer, field)
            if ours != theirs:
                self.error(
                    "stream-footer", f"{field} is {theirs} in the footer and {ours} in the header",
                    structure="footer", offset=at + footer.offset_of(field), remedy=_SALVAGE,
                )  # fmt: skip
                return None
        if footer.gd_offset == structs.GD_AT_END:
            self.error(
                "stream-footer", "the footer does not say where the grain directory is",
                structure="footer", offset=at + footer.offset_of("gd_offset"), remedy=_SALVAGE,
            )  # fmt: skip
            return None
        return footer

    def _check_directory(self, copy: Copy) -> None:
        bad = np.flatnonzero(copy.addresses < 0)
        if len(bad):
            self.error(
                "gde-invalid", f"{len(bad)} entries of the {copy.name} lead outside the file",
                structure=copy.name, offset=copy.offset + 4 * int(bad[0]), remedy=_SALVAGE,
            )  # fmt: skip

    # ── grains ───────────────────────────────────────────────────────────────────────────────────────────────

    def _check_tables(self, header: HostedHeader, copies: list[Copy]) -> None:
        low = header.descriptor_offset + header.descriptor_size
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[tuple[_Grain, Future[str]]] = deque()
            most = max(2, _AHEAD // header.grain_size)
            for entry in self._entries(header, copies, max(low, SECTOR)):
                if self._shallow:
                    continue
                data = self._packed(header, entry)
                if data is not None:
                    waiting.append((entry, pool.submit(_judge, data, header.grain_size, header.capacity - entry.guest)))
                while len(waiting) > most:
                    self._take(*waiting.popleft())
            while waiting:
                self._take(*waiting.popleft())
        if not self._ascending:
            self.note("stream-order", "grains do not follow one another in the order of the disk", structure="grain")
        for code, count in self._seen.counts.items():
            place, guest = self._seen.firsts[code]
            self.add(
                Severity.NOTE if code == "grain-short" else Severity.ERROR, code,
                f"{_TEXTS[code].format(count)}; the first concerns {guest:#x}",
                structure="grain table" if code.startswith("gt") else "compressed grain", offset=place, count=count,
                remedy="" if code == "grain-short" else _SALVAGE,
            )  # fmt: skip

    def _entries(self, header: HostedHeader, copies: list[Copy], low: int) -> Iterator[_Grain]:
        """Yield the entries that lead to a place in the file, in the order of the disk."""
        shape = check_header.shape_of(self.storage, header)
        taken = Occupancy(self.storage.size, SECTOR)
        for first, last in present_runs(self.storage, shape, *(copy.addresses for copy in copies)):
            raws = [read_tables(self.storage, shape, copy.addresses[first:last]) for copy in copies]
            base = first * shape.entries
            entries = np.frombuffer(raws[0], dtype="<u4")[: shape.grains - base]
            where = np.flatnonzero(entries)
            values = entries[where].astype(np.int64) * SECTOR
            places = places_of(copies[0].addresses[first:last], shape, where)
            guests = (where + base) * header.grain_size
            self.grains += len(where)
            beyond, inside = values >= self.storage.size, values >= low
            self._seen.note("gte-beyond-eof", np.flatnonzero(beyond), places, guests)
            self._seen.note("gte-metadata", np.flatnonzero(~inside), places, guests)
            good = np.flatnonzero(inside & ~beyond)
            shared = taken.take(values[good], SECTOR)
            self._seen.note("gte-shared", good[shared], places, guests)
            if len(raws) > 1 and raws[0] != raws[1]:
                self._compare(copies[0].addresses[first:last], base, raws, header)
            for at in good.tolist():
                yield _Grain(int(places[at]), int(values[at]), int(guests[at]))

    def _compare(self, addresses: Codes, base: int, raws: list[bytearray], header: HostedHeader) -> None:
        one, two = (np.frombuffer(raw, dtype="<u4") for raw in raws)
        everywhere = np.arange(len(one), dtype=np.int64)
        shape = check_header.shape_of(self.storage, header)
        places = places_of(addresses, shape, everywhere)
        self._seen.note("gt-mismatch", np.flatnonzero(one != two), places, (everywhere + base) * header.grain_size)

    def _packed(self, header: HostedHeader, entry: _Grain) -> memoryview | None:
        """Return the packed bytes of a grain whose marker is as it should be; look at what lies around it."""
        has_lba = bool(header.flags & structs.FLAG_MARKERS)
        size = GrainMarker.size_of() if has_lba else _LENGTH_ONLY
        if entry.address + size > self.storage.size:
            self._note("grain-size", entry)
            return None
        head = self.storage.pread(size, entry.address)
        length = GrainMarker.unpack(head).length if has_lba else int.from_bytes(head, "little")
        if not 0 < length <= 2 * header.grain_size + SECTOR or entry.address + size + length > self.storage.size:
            self._note("grain-size", entry)
            return None
        if has_lba and GrainMarker.unpack(head).lba != entry.guest:
            self._note("grain-lba", entry)
            return None
        end = entry.address + -(-(size + length) // SECTOR) * SECTOR
        if entry.address <= self._last:
            self._ascending = False
        if self._ascending and has_lba:
            self._walk(header, max(self._end, min(self._front, entry.address)), entry.address)
        self._first = self._first or entry.address
        self._last, self._end = entry.address, max(self._end, end)
        start = entry.address + size
        raw = self.storage.pread(min(end, self.storage.size) - start, start)
        if raw[length:].strip(b"\0"):
            check_markers.padding(self, start + length)
        return memoryview(raw)[:length]

    def _take(self, entry: _Grain, judged: Future[str]) -> None:
        code = judged.result()
        if code:
            self._note(code, entry)

    def _note(self, code: str, entry: _Grain) -> None:
        one = np.array([0], dtype=np.int64)
        where = entry.place if code.startswith("gt") else entry.address
        self._seen.note(code, one, np.array([where]), np.array([entry.guest]))

    # ── what lies between ────────────────────────────────────────────────────────────────────────────────────

    def _walk(self, header: HostedHeader, at: int, end: int) -> int:
        """Look at the markers from ``at`` to ``end``; return where the end-of-stream marker is, or ``end``."""
        for _ in range(_MOST_MARKERS):
            if at + GrainMarker.size_of() > end:
                return end
            head = self.storage.pread(min(SECTOR, end - at), at)
            marker = GrainMarker.unpack(head)
            if marker.length:
                size = GrainMarker.size_of() + marker.length
                if marker.length > 2 * header.grain_size + SECTOR or at + size > end:
                    self._stranger(at, end)
                    return end
                self._leak(at, -(-size // SECTOR) * SECTOR)
                at += -(-size // SECTOR) * SECTOR
                continue
            if len(head) < SECTOR:
                return end
            special = Marker.unpack(head)
            if self._markers is not None:
                self._markers.look(special, at)
            if special.type == structs.MARKER_EOS and not special.following and not any(head):
                return at
            at += SECTOR + (0 if special.type == structs.MARKER_PROGRESS else special.following)
        return end

    def _leak(self, at: int, size: int) -> None:
        self.leaked += size
        if not any(finding.code == "leak" for finding in self.findings):
            self.add(Severity.LEAK, "leak", "a grain that no entry leads to", structure="compressed grain", offset=at)

    def _stranger(self, at: int, end: int) -> None:
        self._strangers += 1
        if self._strangers == 1:
            self.note("stream-gap", f"{end - at} bytes between grains are no markers", structure="marker", offset=at)

    def _check_tail(self, header: HostedHeader, footer_at: int | None) -> None:
        """Look at what follows the last grain: tables and footer of layout A, and the end-of-stream marker."""
        size = self.storage.size
        start = footer_at + SECTOR if footer_at is not None else max(self._end, min(self._front, size))
        check_markers.check_front(
            self, self.storage, header, self._front, self._first or max(SECTOR, header.gd_offset - SECTOR)
        )
        if self._markers is not None and footer_at is not None and self._ascending:
            self._walk(header, self._end or min(self._front, footer_at - SECTOR), footer_at - SECTOR)
            if not self._strangers:
                self._markers.finish()
        rest = size - start
        if footer_at is None and self._in_tables(header, start):
            return  # tables at the end without markers: nothing says what should follow
        if rest < SECTOR:
            text = "there is no end-of-stream marker: strict readers take the file for cut off"
            if footer_at is None:
                self.note("stream-no-eos", f"{text} (qemu writes none)", structure="marker", offset=size)
            else:
                self.repairable("stream-no-eos", text, structure="marker", offset=size)
        elif rest > SECTOR:
            what = "zeros" if self._is_zero(start, size) else "something"
            self.note(
                "stream-trailing", f"{rest - SECTOR} bytes follow the end-of-stream marker: {what}",
                structure="marker", offset=start + SECTOR,
            )  # fmt: skip
        elif not self._is_zero(start, size):
            self.note("stream-no-eos", "the last sector is no end-of-stream marker", structure="marker", offset=start)

    def _in_tables(self, header: HostedHeader, start: int) -> bool:
        return header.gd_offset >= start

    def _is_zero(self, start: int, end: int) -> bool:
        return all(not any(self.storage.pread(min(MIB, end - at), at)) for at in range(start, end, MIB))


def _judge(data: bytearray | memoryview, grain: int, remaining: int) -> str:
    """Inflate a grain; return the code of what is wrong with it, or nothing."""
    try:
        out = inflate(data, grain)
    except VmdkitError:
        out = None
    if out is None:
        return "grain-inflate"
    return "grain-short" if len(out) < min(grain, remaining) else ""
