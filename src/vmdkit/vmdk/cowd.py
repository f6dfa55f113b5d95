# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""COWD extents: the ``-delta.vmdk`` of vmfsSparse, and redo logs of old ESX (format spec 1.9).

::

    header (2 KiB) │ GD │ GT │ grain │ grain │ GT │ grain │ ...      tables and grains in order of their first write

No second copy of anything, no zero grains; an entry of 0 is the parent's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import CorruptError, UnsupportedError
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.extent_file import Doubt
from vmdkit.vmdk.structs import CowdHeader, decode_sectors
from vmdkit.vmdk.tables import GrainTables, TableExtent

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.structs import Codes

_ENTRIES = 4096
_WIDTH = 4
_LARGEST_GRAIN = MIB  # format spec 1.9


class CowdExtent(TableExtent):
    """A vmfsSparse delta."""

    def __init__(self, storage: Device, *, kind: str) -> None:
        header = _read_header(storage)
        tables = _read_tables(storage, header)
        super().__init__(header.capacity, storage, tables, grain=header.grain_size, kind=kind)
        self.header = header
        if header.unclean_shutdown:
            self.doubts.append(Doubt("not closed cleanly: its metadata may be old", self.path))
        if header.free > -(-storage.size // SECTOR) * SECTOR:
            self.doubts.append(
                Doubt(
                    f"the header counts {header.free} bytes in use; the file has {storage.size}",
                    self.path,
                    header.offset_of("free"),
                )
            )

    def facts(self) -> dict[str, object]:
        """Add what the header says."""
        header = self.header
        return {
            **super().facts(),
            "version": header.version,
            "grain": header.grain_size,
            "unclean": bool(header.unclean_shutdown),
        }

    def open_for_writing(self, session: Session) -> None:
        """Get ready to be written; after a crash the file is checked, and mended where nobody has to decide."""
        from vmdkit.vmdk.allocate import Copy, TableWriter  # whoever only reads need not wait for these
        from vmdkit.vmdk.repair import recover
        from vmdkit.vmdk.repair_cowd import mend_cowd

        if self.header.unclean_shutdown and recover(self._file, mend_cowd):
            self.header = _read_header(self._file)
            self.tables = _read_tables(self._file, self.header)
        if (self.tables.directory == structs.CORRUPT).any():
            raise CorruptError("the grain directory has entries that cannot be right", path=self.path)
        copy = Copy(self.header.gd_offset, np.maximum(self.tables.directory, 0).tolist())
        self.writer = TableWriter(
            self, [copy], session, zero_code=None, first_free=self.header.free, before_barrier=self._note_end
        )

    def _note_end(self, end: int) -> None:
        """Write where the used file ends, so that no pointer ever lies behind it (VMware checks that)."""
        self._file.pwrite((end // SECTOR).to_bytes(4, "little"), CowdHeader.offset_of("free"))

    def mark_unclean(self, *, unclean: bool) -> None:
        """Set or clear the word that tells of a writer that did not finish."""
        self._file.pwrite(int(unclean).to_bytes(4, "little"), CowdHeader.offset_of("unclean_shutdown"))


def _read_tables(storage: Device, header: CowdHeader) -> GrainTables:
    low = header.gd_offset + header.gd_entries * _WIDTH

    def decode(raw: bytes | bytearray) -> Codes:
        return decode_sectors(raw, low=low, high=storage.size)

    directory = decode(storage.pread(header.gd_entries * _WIDTH, header.gd_offset))
    return GrainTables(storage, directory, entries=_ENTRIES, width=_WIDTH, decode=decode)


def _read_header(storage: Device) -> CowdHeader:
    path = storage.name
    if storage.size < CowdHeader.size_of():
        raise CorruptError("the file is shorter than a header", structure="CowdHeader", path=path, offset=0)
    header = CowdHeader.unpack(storage.pread(CowdHeader.size_of(), 0), path=path)

    def wrong(field: str, text: str) -> CorruptError:
        return CorruptError(text, structure="CowdHeader", path=path, offset=header.offset_of(field))

    if header.magic != structs.COWD_MAGIC:
        raise wrong("magic", f"{header.magic!r} where 'COWD' is due")
    if header.version != 1:
        raise UnsupportedError(f"version {header.version} of the COWD format is unknown; 1 is", path=path)
    grain = header.grain_size
    if not grain or grain & (grain - 1) or grain > _LARGEST_GRAIN:
        raise wrong("grain_size", f"a grain of {grain} bytes; a power of two up to {_LARGEST_GRAIN} is due")
    due = -(-header.capacity // (grain * _ENTRIES))
    if header.gd_entries < due:
        raise wrong("gd_entries", f"{header.gd_entries} directory entries; the capacity needs {due}")
    header.gd_entries = due  # more are padding
    if not SECTOR <= header.gd_offset <= storage.size - due * _WIDTH:
        raise wrong("gd_offset", f"the directory of {due} entries cannot lie at {header.gd_offset:#x} of this file")
    return header
