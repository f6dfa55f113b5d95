# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Mend a COWD extent (format spec 1.9, 4.4): the free sector first, since every writer goes by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import SECTOR
from vmdkit.vmdk.check_cowd import CowdCheck
from vmdkit.vmdk.check_grains import Occupancy
from vmdkit.vmdk.structs import CowdHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_grains import Entries
    from vmdkit.vmdk.repair_steps import Steps

_WIDTH = 4
_ENTRIES = 4096
_LOSES = "the guest gets the parent's bytes where reading failed before"


def mend_cowd(storage: Device, steps: Steps, *, clear_unclean: bool = True) -> CowdCheck:
    """Do what is safe, and what consent was given to; return what a check finds afterwards. Raises OSError."""
    mender = _Mender(storage, steps)
    for work in (mender.free, mender.damaged, mender.shared):
        if mender.check.header is None or mender.check.is_sound():
            break
        work()
    if clear_unclean:
        mender.unclean()
    return mender.check


class _Mender:
    def __init__(self, storage: Device, steps: Steps) -> None:
        self.storage = storage
        self.steps = steps
        self.check = CowdCheck(storage).run()

    @property
    def header(self) -> CowdHeader:
        header = self.check.header
        return header if header is not None else CowdHeader()

    def _again(self) -> None:
        self.storage.flush()
        self.check = CowdCheck(self.storage).run()

    def _has(self, *codes: str) -> bool:
        return any(finding.code in codes for finding in self.check.findings)

    def _set_free(self, end: int) -> None:
        self.storage.pwrite((end // SECTOR).to_bytes(_WIDTH, "little"), CowdHeader.offset_of("free"))
        self.storage.flush()

    def free(self) -> None:
        """Let the header count everything that is in use."""
        if self.header.free >= self.check.end:
            return
        self.steps.add("free", self.storage.name, f"set the end of what is in use to {self.check.end}")
        self._set_free(-(-self.check.end // SECTOR) * SECTOR)
        self._again()

    def damaged(self) -> None:
        """Give up what leads nowhere, with consent."""
        if not self.steps.consent.discard_damaged:
            return
        for number in np.flatnonzero(self.check.directory < 0).tolist():
            self.steps.add("discard", self.storage.name, f"give up table {number}", _LOSES)
            self.storage.pwrite(bytes(_WIDTH), self.header.gd_offset + number * _WIDTH)
        count = 0
        for number in np.flatnonzero(self.check.directory > 0).tolist():
            old = self._entries(number)
            addresses = old.astype(np.int64) * SECTOR
            bad = (addresses >= self.storage.size) | self.check.metadata.touch(addresses, self.header.grain_size)
            bad &= old != 0
            if bad.any():
                count += int(np.count_nonzero(bad))
                self._write(number, old, np.where(bad, 0, old).astype(np.uint32))
        if count:
            self.steps.add("discard", self.storage.name, f"give up {count} entries that lead nowhere", _LOSES)
        self._again()

    def shared(self) -> None:
        """Give each entry a grain of its own: reserved, then written, then pointed at."""
        if not self._has("gte-shared") or self._has("gte-beyond-eof", "gde-shared"):
            return
        grain, count, first, size = self.header.grain_size, 0, 0, self.storage.size
        end = max(-(-size // SECTOR) * SECTOR, self.header.free)
        while True:
            taken = Occupancy(size, SECTOR, first=first)
            for number in np.flatnonzero(self.check.directory > 0).tolist():
                old = self._entries(number)
                where = np.flatnonzero(old)
                shared = where[taken.take(old[where].astype(np.int64) * SECTOR, grain)]
                if not len(shared):
                    continue
                new = old.copy()
                for index in shared.tolist():
                    new[index] = end // SECTOR
                    end += grain
                self._set_free(end)
                self.storage.resize(end)
                if not self.steps.is_plan:
                    for index in shared.tolist():
                        data = self.storage.pread(grain, int(old[index]) * SECTOR)
                        self.storage.pwrite(data, int(new[index]) * SECTOR)
                self.storage.flush()
                self._write(number, old, new)
                self.storage.flush()
                count += len(shared)
            if taken.is_last:
                break
            first += taken.count
        self.steps.add("copy", self.storage.name, f"copy {count} grains that two entries share")
        self._again()

    def _entries(self, number: int) -> Entries:
        raw = self.storage.pread(_ENTRIES * _WIDTH, int(self.check.directory[number]))
        entries: Entries = np.frombuffer(raw, dtype="<u4")
        return entries

    def _write(self, number: int, old: Entries, new: Entries) -> None:
        """Write the sectors of a table that have changed."""
        place, raw = int(self.check.directory[number]), new.astype("<u4").tobytes()
        before = old.tobytes()
        for at in range(0, len(raw), SECTOR):
            if raw[at : at + SECTOR] != before[at : at + SECTOR]:
                self.storage.pwrite(raw[at : at + SECTOR], place + at)

    def unclean(self) -> None:
        """Clear the unclean flag, once nothing is wrong any more."""
        if self.check.header is None or not self.header.unclean_shutdown or not self.check.is_sound():
            return
        self.steps.add("unclean", self.storage.name, "say that the file is whole: it is")
        self.storage.pwrite(bytes(_WIDTH), CowdHeader.offset_of("unclean_shutdown"))
        self._again()
