# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a COWD extent: the free sector, every table and grain, and that none overlaps another (format spec 1.9, 4.4).

Tables and grains lie between one another at any sector, so places are counted in sectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.check_findings import Finder, Severity
from vmdkit.vmdk.check_grains import (
    Intervals,
    Occupancy,
    Seen,
    Shape,
    leaks,
    overlapping,
    places_of,
    present_runs,
    read_tables,
)
from vmdkit.vmdk.structs import CowdHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes

_ENTRIES = 4096
_WIDTH = 4
_INCONSISTENT = 4  # flag bit (format spec 1.9)
_GIVE_UP = "repair --discard-damaged gives them up"
_TEXTS = {
    "gte-beyond-eof": ("{} entries of the grain tables point behind the end of the file", Severity.ERROR, _GIVE_UP),
    "gte-metadata": ("{} entries of the grain tables point into header or tables", Severity.ERROR, _GIVE_UP),
    "gte-shared": (
        "{} entries share a grain with another entry: writing the one changes the other",
        Severity.REPAIRABLE,
        "vmdkit repair",
    ),
    "gte-short": (
        "{} grains are cut off by the end of the file; what is missing reads as zero", Severity.NOTE, ""
    ),
}  # fmt: skip


class CowdCheck(Finder):
    """One look at a COWD extent."""

    def __init__(self, storage: Device) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self.header: CowdHeader | None = None
        self.directory: Codes = np.empty(0, dtype=np.int64)
        self.metadata = Intervals(self.directory, self.directory)
        self.grains = 0
        self.leaked = 0
        self.end = 0  # behind the last thing in use
        self._seen = Seen()

    def run(self) -> CowdCheck:
        """Look at everything; findings are in ``findings`` afterwards."""
        header = self._check_header()
        if header is None:
            return self
        self.header = header
        self._check_directory(header)
        self._check_entries(header)
        self._check_free(header)
        return self

    def _check_header(self) -> CowdHeader | None:
        storage = self.storage
        if storage.size < CowdHeader.size_of():
            self.error("header-short", f"the file has {storage.size} bytes, less than a header", structure="CowdHeader")
            return None
        header = CowdHeader.unpack(storage.pread(CowdHeader.size_of(), 0), path=storage.name)

        def wrong(field: str, code: str, text: str) -> None:
            self.error(code, text, structure="CowdHeader", offset=header.offset_of(field))

        if header.magic != structs.COWD_MAGIC:
            wrong("magic", "header-magic", f"{header.magic!r} where 'COWD' is due")
            return None
        if header.version != 1:
            self.unsupported(f"version {header.version} of the COWD format is unknown; 1 is", structure="CowdHeader")
            return None
        grain = header.grain_size
        if not grain or grain & (grain - 1) or grain > MIB:
            wrong("grain_size", "header-grain", f"a grain of {grain} bytes; a power of two up to 1 MiB is due")
            return None
        due = -(-header.capacity // (grain * _ENTRIES))
        if header.gd_entries != due:
            wrong("gd_entries", "header-entries", f"{header.gd_entries} directory entries; the capacity needs {due}")
        if not SECTOR <= header.gd_offset <= storage.size - due * _WIDTH or header.gd_entries < due:
            if header.gd_entries >= due:
                wrong("gd_offset", "gd-offset", f"the directory of {due} entries cannot lie at {header.gd_offset:#x}")
            return None
        header.gd_entries = due
        if header.gd_offset < CowdHeader.size_of():
            wrong("gd_offset", "metadata-overlap", f"the directory at {header.gd_offset:#x} lies inside the header")
        if header.flags & _INCONSISTENT:
            self.note("cowd-flags", "its flags say that it is inconsistent", structure="CowdHeader", offset=8)
        if header.unclean_shutdown:
            self.note(
                "unclean", "not closed cleanly: it is in use, or its writer has crashed",
                structure="CowdHeader", offset=header.offset_of("unclean_shutdown"),
            )  # fmt: skip
        return header

    def _shape(self, header: CowdHeader) -> Shape:
        return Shape(header.grain_size, _ENTRIES, self.storage.size, -(-header.capacity // header.grain_size))

    def _check_directory(self, header: CowdHeader) -> None:
        raw = np.frombuffer(bytes(self.storage.pread(header.gd_entries * _WIDTH, header.gd_offset)), dtype="<u4")
        addresses = raw.astype(np.int64) * SECTOR
        shape = self._shape(header)
        front = header.gd_offset + -(-header.gd_entries * _WIDTH // SECTOR) * SECTOR
        bad = (addresses != 0) & ((addresses < front) | (addresses + shape.raw > self.storage.size))
        if bad.any():
            self.error(
                "gde-invalid", f"{int(np.count_nonzero(bad))} directory entries lead outside the file or into other "
                "metadata", structure="grain directory", offset=header.gd_offset + _WIDTH * int(np.argmax(bad)),
            )  # fmt: skip
        addresses[bad] = -1
        where = np.flatnonzero(addresses > 0)
        shared = overlapping(addresses[where], shape.raw)
        if shared.any():
            self.error(
                "gde-shared", f"{int(np.count_nonzero(shared))} directory entries lead to a table of another entry",
                structure="grain directory", offset=header.gd_offset + _WIDTH * int(where[np.argmax(shared)]),
            )  # fmt: skip
        self.directory = addresses
        present = addresses[where]
        self.metadata = Intervals(
            np.concatenate([np.array([0, header.gd_offset], dtype=np.int64), present]),
            np.concatenate(
                [
                    np.array([CowdHeader.size_of(), front - header.gd_offset], dtype=np.int64),
                    np.full(len(present), shape.raw, dtype=np.int64),
                ]
            ),
        )
        self.end = int(self.metadata.ends.max())

    def _check_entries(self, header: CowdHeader) -> None:
        shape, first = self._shape(header), 0
        while True:
            taken = Occupancy(self.storage.size, SECTOR, first=first)
            for low, high in present_runs(self.storage, shape, self.directory):
                self._look(shape, low, high, taken, is_first=first == 0)
            self._find_leaks(header, taken)
            if taken.is_last:
                break
            first += taken.count
        for code, count in self._seen.counts.items():
            place, guest = self._seen.firsts[code]
            text, severity, remedy = _TEXTS[code]
            self.add(
                severity, code, f"{text.format(count)}; the first concerns {guest:#x}",
                structure="grain table", offset=place, remedy=remedy, count=count,
            )  # fmt: skip

    def _look(self, shape: Shape, low: int, high: int, taken: Occupancy, *, is_first: bool) -> None:
        raw = read_tables(self.storage, shape, self.directory[low:high])
        entries = np.frombuffer(raw, dtype="<u4")[: shape.grains - low * shape.entries]
        where = np.flatnonzero(entries)
        values = entries[where].astype(np.int64) * SECTOR
        places = places_of(self.directory[low:high], shape, where)
        guests = (where + low * shape.entries) * shape.grain
        inside = values < self.storage.size
        touches = self.metadata.touch(values, shape.grain) & inside
        if is_first:
            self.grains += len(values)
            seen = self._seen
            seen.note("gte-beyond-eof", np.flatnonzero(~inside), places, guests)
            seen.note("gte-metadata", np.flatnonzero(touches), places, guests)
            cut = inside & (values + shape.grain > self.storage.size)
            seen.note("gte-short", np.flatnonzero(cut), places, guests)
            self.end = max(self.end, int(values[inside & ~touches].max(initial=0)) + shape.grain)
        counted = np.flatnonzero(inside & ~touches)
        shared = taken.take(values[counted], shape.grain)
        self._seen.note("gte-shared", counted[shared], places, guests)

    def _find_leaks(self, header: CowdHeader, taken: Occupancy) -> None:
        front = header.gd_offset + -(-header.gd_entries * _WIDTH // SECTOR) * SECTOR
        count, size, first = leaks(self.storage, taken, self.metadata, front)
        if size >= header.grain_size:  # less is what lies between a table and an aligned grain
            self.leaked += size
            if not any(finding.code == "leak" for finding in self.findings):
                self.add(
                    Severity.LEAK, "leak", f"{count} sectors ({size} bytes) of the file belong to no entry",
                    structure="grain", offset=first, count=count, remedy="convert or commit the disk",
                )  # fmt: skip

    def _check_free(self, header: CowdHeader) -> None:
        offset = header.offset_of("free")
        if header.free < self.end:
            self.repairable(
                "cowd-free", f"the header counts {header.free} bytes in use, {self.end} are: the next writer would "
                "overwrite what is behind", structure="CowdHeader", offset=offset,
            )  # fmt: skip
        elif header.free > self.end and header.free > -(-self.storage.size // SECTOR) * SECTOR:
            self.note(
                "cowd-free", f"the header counts {header.free} bytes in use; the file has {self.storage.size}",
                structure="CowdHeader", offset=offset,
            )  # fmt: skip
        elif header.free > self.end and not any(finding.code == "leak" for finding in self.findings):
            self.note(
                "cowd-free", f"the header counts {header.free} bytes in use, {self.end} are; VMware calls this a hole",
                structure="CowdHeader", offset=offset,
            )  # fmt: skip
