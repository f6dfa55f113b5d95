# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""seSparse extents: the ``-sesparse.vmdk`` snapshot delta of VMFS6 (format spec 1.10). Read only.

::

    header │ volatile header │ journal │ GD │ GTs │ free bitmap │ backmap │ grains       regions, each at a 1 MiB step

Grains that the guest has unmapped read as zero, not as the parent's. A journal that waits to be replayed means that
the tables are not current: such a file is refused unless the caller takes that risk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.errors import CorruptError, UnsupportedError
from vmdkit.units import MIB
from vmdkit.vmdk import structs
from vmdkit.vmdk.extent_file import Doubt
from vmdkit.vmdk.structs import (
    SeSparseHeader,
    SeSparseVolatile,
    decode_sesparse_directory,
    decode_sesparse_table,
)
from vmdkit.vmdk.tables import GrainTables, TableExtent

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.structs import Codes

_WIDTH = 8
_MOST_TABLES = 8 * MIB  # directory entries; 128 TiB, twice the largest disk of VMFS6
_GRAIN = SeSparseHeader.grain_size
_TABLE = SeSparseHeader.table_size


class SeSparseExtent(TableExtent):
    """A seSparse delta."""

    def __init__(self, storage: Device, *, kind: str, ignore_journal: bool = False) -> None:
        header = _read_header(storage)
        doubts = _check_journal(storage, header, ignore_journal=ignore_journal)

        def decode(raw: bytes | bytearray) -> Codes:
            return decode_sesparse_table(raw, grains_offset=header.grains_offset, grain=_GRAIN, high=storage.size)

        entries = _TABLE // _WIDTH
        count = -(-header.capacity // (entries * _GRAIN))
        directory = decode_sesparse_directory(
            _read_directory(storage, header, count),
            tables_offset=header.tables_offset,
            table_size=_TABLE,
            high=min(storage.size, header.tables_offset + header.tables_size),
        )
        tables = GrainTables(storage, directory, entries=entries, width=_WIDTH, decode=decode)
        super().__init__(header.capacity, storage, tables, grain=_GRAIN, kind=kind)
        self.header = header
        self.doubts += doubts

    def open_for_writing(self, session: Session) -> None:
        """Refuse."""
        raise UnsupportedError(
            "nobody has documented how its journal is written; commit or convert it on its ESX host", path=self.path
        )

    def facts(self) -> dict[str, object]:
        """Add what the header says."""
        return {**super().facts(), "version": "2.1", "grain": self.grain}


def _read_header(storage: Device) -> SeSparseHeader:
    path = storage.name
    if storage.size < SeSparseHeader.size_of():
        raise CorruptError("the file is shorter than a header", structure="SeSparseHeader", path=path, offset=0)
    header = SeSparseHeader.unpack(storage.pread(SeSparseHeader.size_of(), 0), path=path)

    def wrong(field: str, text: str) -> CorruptError:
        return CorruptError(text, structure="SeSparseHeader", path=path, offset=header.offset_of(field))

    if header.magic != structs.SESPARSE_MAGIC:
        raise wrong("magic", f"{header.magic:#x} where {structs.SESPARSE_MAGIC:#x} is due")
    if header.version != structs.SESPARSE_VERSION:
        raise UnsupportedError(f"version {header.version:#x} of the seSparse format is unknown; 2.1 is", path=path)
    if header.flags:
        raise UnsupportedError(f"seSparse flags {header.flags:#x} are unknown", path=path)
    if header.grain_size != _GRAIN:
        raise wrong("grain_size", f"a grain of {header.grain_size} bytes; {_GRAIN} are due")
    if header.table_size != _TABLE:
        raise wrong("table_size", f"a grain table of {header.table_size} bytes; {_TABLE} are due")
    for region in ("tables_offset", "grains_offset"):
        if getattr(header, region) > storage.size:
            raise wrong(region, f"a region at {getattr(header, region):#x} lies behind the end of the file")
    return header


def _read_directory(storage: Device, header: SeSparseHeader, count: int) -> bytearray:
    """Read as much of the directory as the capacity needs, once it is known to lie in its region and the file."""
    need = count * _WIDTH
    if count > _MOST_TABLES or need > header.gd_size or header.gd_offset + need > storage.size:
        raise CorruptError(
            f"{count} directory entries are due for {header.capacity} bytes; "
            f"the region at {header.gd_offset:#x} has {header.gd_size} bytes, the file {storage.size}",
            structure="grain directory",
            path=storage.name,
            offset=header.offset_of("gd_offset"),
        )
    return storage.pread(need, header.gd_offset)


def _check_journal(storage: Device, header: SeSparseHeader, *, ignore_journal: bool) -> list[Doubt]:
    at = header.volatile_offset
    if at + SeSparseVolatile.size_of() > storage.size:
        raise CorruptError(
            "the volatile header lies behind the end of the file",
            structure="SeSparseHeader", path=storage.name, offset=header.offset_of("volatile_offset"),
        )  # fmt: skip
    volatile = SeSparseVolatile.unpack(storage.pread(SeSparseVolatile.size_of(), at), path=storage.name)
    if volatile.magic != structs.SESPARSE_VOLATILE_MAGIC:
        raise CorruptError(
            f"{volatile.magic:#x} where {structs.SESPARSE_VOLATILE_MAGIC:#x} is due",
            structure="SeSparseVolatile", path=storage.name, offset=at,
        )  # fmt: skip
    if not volatile.replay_journal:
        return []
    text = "its journal has not been replayed, so its tables are not current"
    if not ignore_journal:
        raise UnsupportedError(
            f"{text}; open and close it on its ESX host, or read it as it is (--ignore-journal)",
            path=storage.name,
            offset=at + SeSparseVolatile.offset_of("replay_journal"),
        )
    return [Doubt(text, storage.name, at)]
