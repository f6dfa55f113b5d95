# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a hosted sparse extent: header, both directories, both copies of every table, every pointer (spec 1.7, 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import SECTOR
from vmdkit.vmdk import check_header, structs
from vmdkit.vmdk.check_findings import Finder, Severity
from vmdkit.vmdk.check_grains import Intervals, Occupancy, Seen, leaks, places_of, present_runs, read_tables
from vmdkit.vmdk.check_merge import merge
from vmdkit.vmdk.descriptor import looks_like_descriptor

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_grains import Entries, Mask
    from vmdkit.vmdk.check_header import Copy
    from vmdkit.vmdk.structs import Codes, HostedHeader

_GT = "grain table"
_MOST_COMPARED = 0x200  # grains of one table whose bytes are compared
_TEXT_HEAD = 4096  # bytes of a descriptor that tell it is one
_BESIDE = {"leak", "unclean", "header-padding"}  # what may be found beside wrong newline bytes
_TEXTS = {
    "gte-beyond-eof": "{} entries of the grain tables point behind the end of the file; reading there fails",
    "gte-metadata": "{} entries of the grain tables point into header, descriptor or tables; reading there fails",
    "gte-one": "{} entries are 1, which without the flag of zero grains is no grain; reading there fails",
    "gte-unaligned": "{} grains do not begin at a multiple of the grain",
    "gte-shared": "{} entries share a grain with another entry: writing the one changes the other",
    "gte-short": "{} grains are cut off by the end of the file; what is missing reads as zero",
    "gt-mismatch": "{} entries differ between the two copies of the grain tables; tools disagree about what they hold",
    "gt-conflict": "{} entries lead to different grains in the two copies of the grain tables, and either may be right",
}
_REMEDIES = {
    "gte-beyond-eof": "repair --discard-damaged gives them up",
    "gte-metadata": "repair --discard-damaged gives them up",
    "gte-one": "repair --discard-damaged gives them up",
    "gt-conflict": "compare the disk read with --directory primary and redundant, then repair --prefer one of them",
}
_SEVERITIES = {
    "gte-shared": Severity.REPAIRABLE,
    "gt-mismatch": Severity.REPAIRABLE,
    "gte-short": Severity.NOTE,
}


class HostedCheck(Finder):
    """One look at a hosted extent. What repair needs to know stays behind in the fields."""

    def __init__(self, storage: Device, *, with_leaks: bool = True) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self._with_leaks = with_leaks
        self.header: HostedHeader | None = None
        self.copies: list[Copy] = []
        self.area = (0, 0)
        self.metadata = Intervals(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        self.differing: list[int] = []  # tables whose copies differ
        self.grains = 0
        self.leaked = 0
        self.lowest = 0  # address of the first grain
        self.end = 0  # behind the last grain
        self._seen = Seen()
        self._extras: list[tuple[Codes, Codes]] = []  # addresses only the redundant copy has, and their entries

    def run(self) -> HostedCheck:
        """Look at everything; findings are in ``findings`` afterwards."""
        header = check_header.check_header(self, self.storage)
        if header is None:
            return self
        self.header = header
        self.area = check_header.check_text_area(self, self.storage, header)
        if header.unclean_shutdown:
            self.note(
                "unclean", "not closed cleanly: it is in use, or its writer has crashed",
                structure="HostedHeader", offset=header.offset_of("unclean_shutdown"),
            )  # fmt: skip
        found = check_header.read_copies(self, self.storage, header)
        self.copies = [copy for copy in found if copy is not None]
        if found[0] is None or not self.copies:
            return self
        self._check_directories(header)
        self._check_entries(header)
        self._check_overhead(header)
        self._judge_newlines()
        return self

    # ── directories ──────────────────────────────────────────────────────────────────────────────────────────

    def _check_directories(self, header: HostedHeader) -> None:
        shared = check_header.mark_bad_tables(header, self.copies, self.area)
        raw = header.table_entries * 4
        starts, lengths = check_header.fixed_metadata(header, self.copies, self.area)
        self._check_regions(starts, lengths)
        for copy in self.copies:
            starts = np.concatenate([starts, copy.present])
            lengths = np.concatenate([lengths, np.full(len(copy.present), raw, dtype=np.int64)])
        self.metadata = Intervals(starts, lengths)
        for copy in self.copies:
            self._bad_entries(header, copy)
            numbers = shared[copy.name]
            if len(numbers):
                self.error(
                    "gde-shared", f"{len(numbers)} entries of the {copy.name} lead to a table of another entry",
                    structure=copy.name, offset=copy.offset + 4 * int(numbers[0]),
                )  # fmt: skip
        self._check_missing(header)
        self._check_order(header)

    def _check_regions(self, starts: Codes, lengths: Codes) -> None:
        order = np.argsort(starts)
        if (starts[order][1:] < (starts + lengths)[order][:-1]).any():
            self.error(
                "metadata-overlap", "header, descriptor area and grain directories overlap one another",
                structure="HostedHeader",
            )  # fmt: skip

    def _bad_entries(self, header: HostedHeader, copy: Copy) -> None:
        bad = np.flatnonzero(copy.addresses < 0)
        if not len(bad):
            return
        what = f"{len(bad)} entries of the {copy.name} lead outside the file or into other metadata"
        self._lost(header, copy, bad.tolist(), "gde-invalid", what)

    def _lost(self, header: HostedHeader, copy: Copy, numbers: list[int], code: str, what: str) -> None:
        mended = all(self.place_for(header, copy, number) is not None for number in numbers)
        self.add(
            Severity.REPAIRABLE if mended else Severity.ERROR, code, what, structure=copy.name,
            offset=copy.offset + 4 * numbers[0], count=len(numbers), remedy="vmdkit repair" if mended else "",
        )  # fmt: skip

    def place_for(self, header: HostedHeader, copy: Copy, number: int) -> int | None:
        """Return where table ``number`` of ``copy``, whose pointer is lost or missing, can be set right; else None.

        The other copy has to have the table, sound. 0 means that the place where it has to lie is not free, or that
        tables do not follow one another here: then the end of the file has to do.
        """
        other = next((one for one in self.copies if one is not copy), None)
        if other is None or other.addresses[number] <= 0:
            return None
        raw = header.table_entries * 4
        entries = np.frombuffer(self.storage.pread(raw, int(other.addresses[number])), dtype="<u4")
        if not self.sound(entries).all():
            return None
        place = check_header.expected_place(header, copy, number)
        if place is None or place + raw > min(header.overhead, self.storage.size):
            return 0
        return 0 if self.metadata.touch(np.array([place]), raw)[0] else place

    def lost_tables(self, header: HostedHeader) -> list[tuple[Copy, int]]:
        """Return the tables, by copy, whose pointer is missing or cannot be right, and which the other copy has."""
        return [
            (copy, number)
            for copy in self.copies
            for number in np.flatnonzero(copy.addresses <= 0).tolist()
            if self.place_for(header, copy, number) is not None
        ]

    def _check_missing(self, header: HostedHeader) -> None:
        if len(self.copies) > 1:
            for copy, other in (self.copies, self.copies[::-1]):
                numbers = np.flatnonzero((copy.addresses == 0) & (other.addresses > 0)).tolist()
                if numbers:
                    what = f"{len(numbers)} tables differ between the two copies: the {copy.name} lacks them"
                    self._lost(header, copy, numbers, "gde-mismatch", what)
        missing = int(np.count_nonzero(np.all([copy.addresses == 0 for copy in self.copies], axis=0)))
        if missing:
            self.note(
                "gde-missing", f"{missing} grain tables are not there; VMware allocates all when it makes a disk",
                structure="grain directory", offset=self.copies[0].offset,
            )  # fmt: skip

    def _check_order(self, header: HostedHeader) -> None:
        for copy in self.copies:
            present = copy.present
            if len(present) > 1 and (np.diff(present) != header.table_entries * 4).any():
                self.note(
                    "gd-order", f"the tables of the {copy.name} do not follow one another; recent VMware programs "
                    "ignore the directory and expect them to", structure=copy.name, offset=copy.offset,
                )  # fmt: skip

    # ── entries ──────────────────────────────────────────────────────────────────────────────────────────────

    def sound(self, entries: Entries) -> Mask:
        """Tell which raw entries can be right by themselves: none, a zero grain, or a grain where grains can be."""
        addresses = entries.astype(np.int64) * SECTOR
        header = self.header
        grain = header.grain_size if header is not None else SECTOR
        good = (addresses < self.storage.size) & (addresses % grain == 0) & ~self.metadata.touch(addresses, grain)
        zeros = header is not None and bool(header.flags & structs.FLAG_ZERO_GRAINS)
        sound: Mask = good | (entries == 0) | ((entries == 1) & zeros)
        return sound

    def _check_entries(self, header: HostedHeader) -> None:
        shape = check_header.shape_of(self.storage, header)
        self.lowest, first = self.storage.size, 0
        while True:
            taken = Occupancy(self.storage.size, header.grain_size, first=first)
            for low, high in present_runs(self.storage, shape, *(copy.addresses for copy in self.copies)):
                self._look(header, low, high, taken, is_first=first == 0)
            self._look_at_extras(taken)
            if self._with_leaks:
                self._find_leaks(header, taken)
            if taken.is_last:
                break
            first += taken.count
        for code, count in self._seen.counts.items():
            place, guest = self._seen.firsts[code]
            self.add(
                _SEVERITIES.get(code, Severity.ERROR), code,
                f"{_TEXTS[code].format(count)}; the first concerns {guest:#x}", structure=_GT, offset=place,
                remedy=_REMEDIES.get(code, "vmdkit repair" if code in _SEVERITIES else ""), count=count,
            )  # fmt: skip

    def _look(self, header: HostedHeader, low: int, high: int, taken: Occupancy, *, is_first: bool) -> None:
        """Look at tables ``low`` to ``high`` (exclusive) of both copies."""
        shape = check_header.shape_of(self.storage, header)
        primary = self.copies[0].addresses[low:high]
        raws = [read_tables(self.storage, shape, copy.addresses[low:high]) for copy in self.copies]
        base = low * shape.entries
        entries = np.frombuffer(raws[0], dtype="<u4")[: shape.grains - base]
        where = np.flatnonzero(entries)
        values = entries[where].astype(np.int64) * SECTOR
        if header.flags & structs.FLAG_ZERO_GRAINS:
            where, values = where[values != SECTOR], values[values != SECTOR]
        places, guests = places_of(primary, shape, where), (where + base) * header.grain_size
        inside = values < self.storage.size
        if is_first:
            self.grains += len(values)
            self._judge(values, places, guests, inside)
            if len(values):
                good = values[inside & ~self.metadata.touch(values, header.grain_size)]
                self.lowest = min(self.lowest, int(good.min(initial=self.lowest)))
                self.end = max(self.end, int(good.max(initial=0)) + header.grain_size)
            if len(raws) > 1 and raws[0] != raws[1]:
                self._compare(header, low, *(_meaning(raw, shape.grains - base) for raw in raws))
        counted = np.flatnonzero(inside & (values >= 2 * SECTOR))
        shared = taken.take(values[counted], header.grain_size)
        if shared.any():
            self._seen.note("gte-shared", counted[shared], places, guests)

    def _judge(self, values: Codes, places: Codes, guests: Codes, inside: Mask) -> None:
        grain = self.header.grain_size if self.header is not None else SECTOR
        one = values == SECTOR
        touches = self.metadata.touch(values, grain) & inside
        self._seen.note("gte-one", np.flatnonzero(one), places, guests)
        self._seen.note("gte-beyond-eof", np.flatnonzero(~inside), places, guests)
        self._seen.note("gte-metadata", np.flatnonzero(touches & ~one), places, guests)
        self._seen.note("gte-unaligned", np.flatnonzero(inside & ~touches & (values % grain != 0)), places, guests)
        self._seen.note("gte-short", np.flatnonzero(inside & (values + grain > self.storage.size)), places, guests)

    def _compare(self, header: HostedHeader, low: int, one: Entries, two: Entries) -> None:
        """Judge tables whose copies differ; a table that one copy lacks is the directory's matter."""
        shape = check_header.shape_of(self.storage, header)
        rows = np.flatnonzero((one != two).reshape(-1, shape.entries).any(axis=1))
        for row in rows.tolist():
            number = low + row
            if min(int(copy.addresses[number]) for copy in self.copies) <= 0:
                continue
            part = slice(row * shape.entries, (row + 1) * shape.entries)
            merged = merge(
                one[part], two[part], self.sound(one[part]), self.sound(two[part]),
                crashed=bool(header.unclean_shutdown),
            )  # fmt: skip
            self.differing.append(number)
            guests = (np.arange(shape.entries, dtype=np.int64) + number * shape.entries) * header.grain_size
            places = int(self.copies[0].addresses[number]) + 4 * np.arange(shape.entries, dtype=np.int64)
            differs = one[part] != two[part]
            merged.undecided[self.alike(one[part], two[part], merged.undecided)] = False
            self._seen.note("gt-mismatch", np.flatnonzero(differs & ~merged.undecided), places, guests)
            self._seen.note("gt-conflict", np.flatnonzero(merged.undecided), places, guests)
            extra = merged.entries[merged.extra].astype(np.int64) * SECTOR
            kept = extra > SECTOR
            self._extras.append((extra[kept], guests[merged.extra][kept]))

    def alike(self, one: Entries, two: Entries, where: Mask) -> Codes:
        """Return which of the entries ``where`` lead, in both copies, to grains that hold the same bytes.

        So a repair leaves them that was cut off while it gave an entry a grain of its own: either may be followed.
        """
        numbers = np.flatnonzero(where & self.sound(one) & self.sound(two) & (one > 1) & (two > 1))
        grain = self.header.grain_size if self.header is not None else SECTOR
        same = [
            number
            for number in numbers[:_MOST_COMPARED].tolist()
            if self._grain(int(one[number]), grain) == self._grain(int(two[number]), grain)
        ]
        return np.array(same, dtype=np.int64)

    def _grain(self, entry: int, grain: int) -> bytes:
        at = entry * SECTOR
        return bytes(self.storage.pread(min(grain, self.storage.size - at), at)).ljust(grain, b"\0")

    def _look_at_extras(self, taken: Occupancy) -> None:
        """Find entries of the redundant copy alone whose grain another entry has: then nobody knows whose it is."""
        grain = self.header.grain_size if self.header is not None else SECTOR
        for addresses, guests in self._extras:
            shared = np.flatnonzero(taken.take(addresses, grain))
            self._seen.note("gt-conflict", shared, np.zeros(len(addresses), dtype=np.int64), guests)

    def _find_leaks(self, header: HostedHeader, taken: Occupancy) -> None:
        start = header.overhead if self.metadata.end_of_first() <= header.overhead <= self.lowest else 0
        count, size, first = leaks(self.storage, taken, self.metadata, start or min(self.lowest, self._front_end()))
        if count:
            self.leaked += size
            if not any(finding.code == "leak" for finding in self.findings):
                self.add(
                    Severity.LEAK, "leak", f"{count} grains ({size} bytes) of the file belong to no entry",
                    structure="grain", offset=first, count=count, remedy="convert or compact the disk",
                )  # fmt: skip

    def _front_end(self) -> int:
        below = self.metadata.ends[self.metadata.starts < self.lowest]
        return int(below.max()) if len(below) else SECTOR

    def _check_overhead(self, header: HostedHeader) -> None:
        front = self._front_end()
        offset = header.offset_of("overhead")
        if header.overhead > self.lowest or (header.overhead > self.storage.size and not self.grains):
            self.add(
                Severity.REPAIRABLE if self.overhead() is not None else Severity.ERROR, "header-overhead",
                f"the header counts {header.overhead} bytes of metadata; grains begin at {self.lowest:#x}",
                structure="HostedHeader", offset=offset, remedy="vmdkit repair",
            )  # fmt: skip
        elif header.overhead < front:
            self.note(
                "header-overhead", f"the header counts {header.overhead} bytes of metadata; {front} are there",
                structure="HostedHeader", offset=offset,
            )  # fmt: skip

    def _text_is_there(self) -> bool:
        at, length = self.area
        raw = self.storage.pread(min(length, _TEXT_HEAD), at) if length else b""
        return not any(raw) or looks_like_descriptor(raw)

    def overhead(self) -> int | None:
        """Return what the header should say of the bytes before the first grain; None where nothing fits."""
        if self.header is None:
            return None
        due = -(-self._front_end() // self.header.grain_size) * self.header.grain_size
        return due if due <= self.lowest or not self.grains else None

    def _judge_newlines(self) -> None:
        """Where nothing else is unusual, four bytes of the header are all that is wrong, and can be set right.

        A transfer that changed them and more has moved everything behind its first line end: then the descriptor
        does not begin where it should, and the directories are empty or lead nowhere.
        """
        others = [finding for finding in self.findings if finding.code != "header-newlines"]
        if (
            len(others) == len(self.findings)
            or {finding.code for finding in others} - _BESIDE
            or not self._text_is_there()
        ):
            return
        self.findings = others
        offset = self.header.offset_of("newlines") if self.header is not None else None
        self.repairable(
            "header-newlines", "the newline bytes of the header are wrong, and nothing else is",
            structure="HostedHeader", offset=offset,
        )  # fmt: skip


def _meaning(raw: bytearray, grains: int) -> Entries:
    """Return entries with those behind the end of the disk set to nothing."""
    entries: Entries = np.frombuffer(raw, dtype="<u4").copy()
    entries[max(grains, 0) :] = 0
    return entries
