# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Mend a hosted sparse extent (format spec 4.4), one step after the other.

Each step is durable before the next, leaves the file no worse if it is cut off anywhere, and is done again by the
next repair where it was. Data reach the file before any table leads to them; of the two copies of a table the
redundant is written first, so that who reads the primary sees the old state until the new one is whole.

A file in which entries lead behind its end is not made longer: those entries would then lead to something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import check_header, structs
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.check_grains import Occupancy, present_runs, read_tables
from vmdkit.vmdk.check_hosted import HostedCheck
from vmdkit.vmdk.check_merge import merge, write_order
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_grains import Entries
    from vmdkit.vmdk.check_header import Copy
    from vmdkit.vmdk.repair_steps import Steps
    from vmdkit.vmdk.structs import Codes

_WIDTH = 4
_BATCH = 16 * MIB  # bytes of grains copied between two barriers
_DAMAGED = ("gte-beyond-eof", "gte-metadata", "gte-one")
_LOSES = "the guest gets zeros, or the parent's bytes, where reading failed before"


def mend_hosted(storage: Device, steps: Steps, *, clear_unclean: bool = True) -> HostedCheck:
    """Do what is safe, and what consent was given to; return what a check finds afterwards. Raises OSError."""
    mender = _Mender(storage, steps)
    for work in (mender.tables, mender.copies, mender.damaged, mender.shared, mender.header_fields):
        if mender.check.header is None or not mender.check.copies or mender.check.is_sound():
            break
        work()
    if clear_unclean:
        mender.unclean()
    return mender.check


class _Mender:
    def __init__(self, storage: Device, steps: Steps) -> None:
        self.storage = storage
        self.steps = steps
        self.check = HostedCheck(storage).run()

    @property
    def header(self) -> HostedHeader:
        header = self.check.header
        return header if header is not None else HostedHeader()

    def _again(self) -> None:
        self.storage.flush()
        self.check = HostedCheck(self.storage).run()

    def _has(self, *codes: str) -> bool:
        return any(finding.code in codes for finding in self.check.findings)

    # ── directories ──────────────────────────────────────────────────────────────────────────────────────────

    def tables(self) -> None:
        """Point at tables whose pointer is lost: their own place, if it is free, or a copy at the end."""
        lost = self.check.lost_tables(self.header)
        places = [(copy, number, self.check.place_for(self.header, copy, number)) for copy, number in lost]
        if self._has("gte-beyond-eof"):
            places = [one for one in places if one[2]]
        if not places:
            return
        self.steps.add(
            "gde", self.storage.name, f"make {len(places)} grain tables again from their copies, and point at them"
        )
        raw = self.header.table_entries * _WIDTH
        pointers: list[tuple[int, int]] = []
        for copy, number, place in places:
            other = next(one for one in self.check.copies if one is not copy)
            at = place or self._grow(raw)
            self.storage.pwrite(self.storage.pread(raw, int(other.addresses[number])), at)
            pointers.append((copy.offset + number * _WIDTH, at))
        self.storage.flush()
        for where, at in pointers:
            self.storage.pwrite((at // SECTOR).to_bytes(_WIDTH, "little"), where)
        self._again()

    def _grow(self, count: int) -> int:
        """Make room for ``count`` bytes at the end of the file; return where."""
        grain = self.header.grain_size
        at = -(-self.storage.size // grain) * grain
        self.storage.resize(-(-(at + count) // grain) * grain)
        return at

    # ── two copies ───────────────────────────────────────────────────────────────────────────────────────────

    def copies(self) -> None:
        """Make the two copies of each table equal where it is decided what both should say."""
        numbers = self.check.differing
        if not numbers or len(self.check.copies) < len(("primary", "redundant")):
            return
        wanted = {number: entries for number in numbers if (entries := self._merged(number)) is not None}
        wanted = self._without_shared(wanted)
        if not wanted:
            return
        risk = f"the {self.steps.consent.prefer} copy wins where both may be right" if self.steps.consent.prefer else ""
        self.steps.add("gt", self.storage.name, f"make both copies of {len(wanted)} grain tables equal", risk)
        for copy in reversed(self.check.copies):
            self._write(copy, wanted)
        self._again()

    def _entries(self, copy: Copy, number: int) -> Entries:
        raw = self.header.table_entries * _WIDTH
        entries: Entries = np.frombuffer(self.storage.pread(raw, int(copy.addresses[number])), dtype="<u4")
        return entries

    def _merged(self, number: int) -> Entries | None:
        """Return what table ``number`` should say; None where that is not decided."""
        one, two = (self._entries(copy, number) for copy in self.check.copies)
        sound = self.check.sound(one), self.check.sound(two)
        merged = merge(one, two, *sound, crashed=bool(self.header.unclean_shutdown))
        entries = merged.entries.copy()
        undecided = merged.undecided
        alike = self.check.alike(one, two, undecided)
        entries[alike] = two[alike]  # which is another grain than that of any other entry, or the table is left alone
        undecided[alike] = False
        if self.steps.consent.prefer:
            side, good = (one, sound[0]) if self.steps.consent.prefer == "primary" else (two, sound[1])
            entries[undecided & good] = side[undecided & good]
            undecided = undecided & ~good
        grains = -(-self.header.capacity // self.header.grain_size) - number * self.header.table_entries
        return None if undecided[: max(grains, 0)].any() else entries

    def _without_shared(self, wanted: dict[int, Entries]) -> dict[int, Entries]:
        """Leave out tables of which a changed entry would get a grain that another entry has."""
        while wanted:
            bad = self._sharing(wanted)
            if not bad:
                break
            wanted = {number: entries for number, entries in wanted.items() if number not in bad}
        return wanted

    def _sharing(self, wanted: dict[int, Entries]) -> set[int]:
        primary, grain = self.check.copies[0], self.header.grain_size
        shape = check_header.shape_of(self.storage, self.header)
        changed = {number: entries[entries != self._entries(primary, number)] for number, entries in wanted.items()}
        first, bad = 0, set()
        while any((values > 1).any() for values in changed.values()):
            taken = Occupancy(self.storage.size, grain, first=first)
            for low, high in present_runs(self.storage, shape, primary.addresses):
                raw = read_tables(self.storage, shape, primary.addresses[low:high])
                entries = np.frombuffer(raw, dtype="<u4").copy()
                for number in wanted.keys() & set(range(low, high)):
                    part = entries[(number - low) * shape.entries : (number - low + 1) * shape.entries]
                    part[part != wanted[number]] = 0
                taken.take(self._places(entries), grain)
            for number, values in changed.items():
                if taken.take(self._places(values), grain).any():
                    bad.add(number)
            if taken.is_last:
                break
            first += taken.count
        return bad

    def _places(self, entries: Entries) -> Codes:
        addresses = entries.astype(np.int64) * SECTOR
        places: Codes = addresses[(addresses > SECTOR) & (addresses < self.storage.size)]
        return places

    def _write(self, copy: Copy, wanted: dict[int, Entries]) -> None:
        """Write tables of one copy, sector by sector, so that a cut leaves what is mended in the same way."""
        late: list[tuple[int, bytes]] = []
        for number, entries in wanted.items():
            old = self._entries(copy, number)
            first, last = write_order(old, entries, self.check.sound(old))
            raw, place = entries.astype("<u4").tobytes(), int(copy.addresses[number])
            for sector in first:
                self.storage.pwrite(raw[sector * SECTOR : (sector + 1) * SECTOR], place + sector * SECTOR)
            late += [(place + at * SECTOR, raw[at * SECTOR : (at + 1) * SECTOR]) for at in last]
        self.storage.flush()
        for place, data in late:
            self.storage.pwrite(data, place)
        self.storage.flush()

    # ── entries ──────────────────────────────────────────────────────────────────────────────────────────────

    def damaged(self) -> None:
        """Give up what leads nowhere, with consent."""
        if not self.steps.consent.discard_damaged or not self._has(*_DAMAGED, "gde-invalid"):
            return
        for copy in reversed(self.check.copies):
            for number in np.flatnonzero(copy.addresses < 0).tolist():
                self.steps.add("discard", self.storage.name, f"give up table {number} of the {copy.name}", _LOSES)
                self.storage.pwrite(bytes(_WIDTH), copy.offset + number * _WIDTH)
        count = self._each_table(self._discarded)
        if count:
            self.steps.add("discard", self.storage.name, f"give up {count} entries that lead nowhere", _LOSES)
        self._again()

    def _discarded(self, entries: Entries, taken: Occupancy) -> Entries | None:
        addresses = entries.astype(np.int64) * SECTOR
        grain = self.header.grain_size
        bad = (addresses >= self.storage.size) | self.check.metadata.touch(addresses, grain)
        bad &= (entries != 0) & ~((entries == 1) & bool(self.header.flags & structs.FLAG_ZERO_GRAINS))
        if not bad.any():
            return None
        new = entries.copy()
        new[bad] = 0
        return new

    def shared(self) -> None:
        """Give each entry a grain of its own: both read as before, and a write to one leaves the other alone."""
        if not self._has("gte-shared") or self._has("gte-beyond-eof", "gde-shared", "gt-conflict", "gt-mismatch"):
            return
        count = self._each_table(self._own_grains)
        self.steps.add("copy", self.storage.name, f"copy {count} grains that two entries share")
        self._again()

    def _own_grains(self, entries: Entries, taken: Occupancy) -> Entries | None:
        grain = self.header.grain_size
        where = np.flatnonzero((entries > 1) & (entries.astype(np.int64) * SECTOR < self.storage.size))
        shared = where[taken.take(entries[where].astype(np.int64) * SECTOR, grain)]
        if not len(shared):
            return None
        new = entries.copy()
        waiting = 0
        for index in shared.tolist():
            at, old = self._grow(grain), int(entries[index]) * SECTOR
            new[index] = at // SECTOR
            if self.steps.is_plan:
                continue
            self.storage.pwrite(self.storage.pread(min(grain, self.storage.size - old), old), at)
            waiting += grain
            if waiting >= _BATCH:
                self.storage.flush()
                waiting = 0
        self.storage.flush()
        return new

    def _each_table(self, change: _Change) -> int:
        """Let ``change`` say what each table should be, and write that to both copies; return how many entries."""
        shape = check_header.shape_of(self.storage, self.header)
        primary, size = self.check.copies[0], self.storage.size
        first = count = 0
        while True:
            taken = Occupancy(size, self.header.grain_size, first=first)
            for low, high in list(present_runs(self.storage, shape, primary.addresses)):
                for number in range(low, high):
                    if primary.addresses[number] <= 0:
                        continue
                    old = self._entries(primary, number)
                    new = change(old[: max(0, shape.grains - number * shape.entries)], taken)
                    if new is None:
                        continue
                    count += int(np.count_nonzero(new != old[: len(new)]))
                    whole = np.concatenate([new, old[len(new) :]])
                    for copy in reversed(self.check.copies):
                        if copy.addresses[number] > 0:
                            self._write(copy, {number: whole})
            if taken.is_last:
                return count
            first += taken.count

    # ── header ───────────────────────────────────────────────────────────────────────────────────────────────

    def header_fields(self) -> None:
        """Set right what the header says of the file, where the file itself shows what that has to be."""
        overhead = self.check.overhead()
        wrong = any(
            finding.code == "header-overhead" and finding.severity is Severity.REPAIRABLE
            for finding in self.check.findings
        )
        if wrong and overhead is not None:
            self.steps.add("header", self.storage.name, f"set the bytes before the first grain to {overhead}")
            raw = (overhead // SECTOR).to_bytes(8, "little")
            self.storage.pwrite(raw, HostedHeader.offset_of("overhead"))
            self._again()
        if any(
            finding.code == "header-newlines" and finding.severity is Severity.REPAIRABLE
            for finding in self.check.findings
        ):
            self.steps.add("header", self.storage.name, "set the newline bytes, the only thing that is wrong")
            self.storage.pwrite(structs.NEWLINES, HostedHeader.offset_of("newlines"))
            self._again()

    def unclean(self) -> None:
        """Clear the unclean flag, once nothing is wrong any more."""
        if self.check.header is None or not self.header.unclean_shutdown or not self.check.is_sound():
            return
        if any(finding.severity is Severity.UNCHECKED for finding in self.check.findings):
            return
        self.steps.add("unclean", self.storage.name, "say that the file is whole: it is")
        self.storage.pwrite(b"\0", HostedHeader.offset_of("unclean_shutdown"))
        self._again()


if TYPE_CHECKING:
    from collections.abc import Callable

    _Change = Callable[[Entries, Occupancy], Entries | None]
