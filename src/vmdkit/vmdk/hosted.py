# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hosted sparse extents, "KDMV": monolithicSparse and twoGbMaxExtentSparse (format spec 1.7).

::

    header │ descriptor │ RGD │ RGTs ... │ GD │ GTs ... │ padding │ grain │ grain │ ...
                                                        overhead ▲

There are two copies of all tables. **The primary directory is followed** (as qemu, 7-Zip and, measured, libvmdk do),
the caller may choose the other, and ``examine`` reports where they differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import CorruptError, FormatError, UnsupportedError
from vmdkit.units import GIB, MIB, SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.extent_file import Doubt
from vmdkit.vmdk.structs import HostedHeader, decode_sectors
from vmdkit.vmdk.tables import GrainTables, TableExtent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.allocate import Copy
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.structs import Codes

_MOST_TABLES = 4 * MIB  # directory entries; 128 TiB of 64 KiB grains, twice the largest disk VMware makes
_LARGEST_GRAIN = GIB  # qemu reads as much; an uncompressed grain is never held in memory
_LARGEST_PACKED_GRAIN = 8 * MIB  # a compressed grain is inflated whole
_MOST_ENTRIES = 4096  # entries in a table; the format says 512 always
_WIDTH = 4  # bytes of a pointer


def read_header(storage: Device, offset: int = 0) -> HostedHeader:
    """Read and check the header at ``offset``; raises FormatError or UnsupportedError with the field's offset."""
    path = storage.name
    if storage.size < offset + HostedHeader.size_of():
        raise CorruptError("the file is shorter than a header", structure="HostedHeader", path=path, offset=offset)
    header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), offset), path=path)
    _check_header(header, path, offset)
    return header


def _check_header(header: HostedHeader, path: str, base: int) -> None:
    def wrong(field: str, text: str) -> CorruptError:
        return CorruptError(text, structure="HostedHeader", path=path, offset=base + header.offset_of(field))

    if header.magic == structs.UNFINISHED_MAGIC:
        raise FormatError("the file is unfinished: its writer has not yet set the final header", path=path, offset=base)
    if header.magic != structs.HOSTED_MAGIC:
        raise wrong("magic", f"{header.magic!r} where 'KDMV' is due")
    if not 1 <= header.version <= 3:
        raise UnsupportedError(f"version {header.version} of the sparse format is unknown; 1, 2 and 3 are", path=path)
    unknown = header.flags & structs.INCOMPATIBLE_FLAGS & ~structs.KNOWN_FLAGS
    if unknown:
        raise UnsupportedError(
            f"the header has incompatible flags {unknown:#x}, which say that this reader must not try", path=path
        )
    if header.flags & structs.FLAG_NEWLINES and header.newlines != structs.NEWLINES:
        raise wrong("newlines", "the newline bytes are changed: a text-mode transfer has damaged the file")
    compressed = header.flags & structs.FLAG_COMPRESSED
    grain = header.grain_size
    if not grain or grain & (grain - 1) or grain > (_LARGEST_PACKED_GRAIN if compressed else _LARGEST_GRAIN):
        raise wrong("grain_size", f"a grain of {grain} bytes; a power of two from {SECTOR} is due")
    entries = header.table_entries
    if not 1 <= entries <= _MOST_ENTRIES or entries & (entries - 1):
        raise wrong("table_entries", f"{header.table_entries} entries in a grain table; 512 are due")
    if compressed and header.compression != structs.DEFLATE_ALGORITHM:
        raise UnsupportedError(f"compression algorithm {header.compression} is unknown; 1 is deflate", path=path)
    if header.flags & structs.FLAG_MARKERS and not compressed:
        raise wrong("flags", "grain markers without compressed grains")


def directory_count(header: HostedHeader, path: str) -> int:
    """Return how many grain tables the capacity needs; raises CorruptError for more than any disk has.

    Nothing may be allocated before (users spec, A6).
    """
    count = -(-header.capacity // (header.grain_size * header.table_entries))
    if count > _MOST_TABLES:
        raise CorruptError(
            f"a capacity of {header.capacity} bytes needs {count} grain tables; {_MOST_TABLES} are the most",
            structure="HostedHeader", path=path, offset=header.offset_of("capacity"),
        )  # fmt: skip
    return count


def has_redundant(header: HostedHeader) -> bool:
    """Tell whether there is a second copy of the tables."""
    return bool(header.flags & structs.FLAG_REDUNDANT and header.rgd_offset)


def read_directory(storage: Device, header: HostedHeader, offset: int, *, low: int) -> Codes:
    """Read a grain directory of byte addresses at ``offset``; refuses one that the file cannot hold."""
    count = directory_count(header, storage.name)
    if not count:
        return np.empty(0, dtype=np.int64)
    if not 0 < offset <= storage.size - count * _WIDTH:
        raise CorruptError(
            f"the grain directory has {count} entries and cannot lie at {offset:#x} of {storage.size} bytes",
            structure="grain directory", path=storage.name, offset=min(offset, storage.size),
        )  # fmt: skip
    return decode_sectors(storage.pread(count * _WIDTH, offset), low=low, high=storage.size)


def read_tables(storage: Device, header: HostedHeader, directory_offset: int) -> GrainTables:
    """Return the tables found through the directory at ``directory_offset``."""
    low = _lowest_grain(header, storage)
    zero_grains = bool(header.flags & structs.FLAG_ZERO_GRAINS)

    def decode(raw: bytes | bytearray) -> Codes:
        return decode_sectors(raw, low=low, high=storage.size, zero_grains=zero_grains)

    return GrainTables(
        storage,
        read_directory(storage, header, directory_offset, low=SECTOR),
        entries=header.table_entries,
        width=_WIDTH,
        decode=decode,
    )


def _lowest_grain(header: HostedHeader, storage: Device) -> int:
    """Return the lowest address a grain can have: behind the metadata, where the header says how much that is."""
    return header.overhead if SECTOR < header.overhead <= storage.size else SECTOR


def _copy(tables: GrainTables, directory_offset: int) -> Copy:
    from vmdkit.vmdk.allocate import Copy

    if (tables.directory == structs.CORRUPT).any():
        raise CorruptError("the grain directory has entries that cannot be right; check and repair it before writing")
    return Copy(directory_offset, np.maximum(tables.directory, 0).tolist())


class HostedExtent(TableExtent):
    """An uncompressed hosted sparse extent."""

    def __init__(self, storage: Device, header: HostedHeader, *, kind: str, redundant: bool = False) -> None:
        if redundant and not has_redundant(header):
            raise UnsupportedError("there is no redundant grain directory to follow", path=storage.name)
        self.header = header
        self._redundant = redundant
        self._other = header.gd_offset if redundant else header.rgd_offset if has_redundant(header) else None
        offset = header.rgd_offset if redundant else header.gd_offset
        tables = read_tables(storage, header, offset)
        super().__init__(header.capacity, storage, tables, grain=header.grain_size, kind=kind)
        if header.unclean_shutdown:
            self.doubts.append(
                Doubt("not closed cleanly: it is in use, or its writer has crashed; its tables may be old", self.path)
            )
        if header.version == 3:
            self.doubts.append(Doubt("version 3 without compression, which no known product writes", self.path))

    def facts(self) -> dict[str, object]:
        """Add what the header says."""
        header = self.header
        return {
            **super().facts(),
            "version": header.version,
            "grain": header.grain_size,
            "flags": f"{header.flags:#x}",
            "unclean": bool(header.unclean_shutdown),
        }

    def open_for_writing(self, session: Session) -> None:
        """Get ready to be written: both copies of the tables have to be whole and equal.

        After a crash (the unclean flag is set) the file is checked, and mended where nobody has to decide.
        """
        from vmdkit.vmdk.allocate import TableWriter  # whoever only reads need not wait for what writers need
        from vmdkit.vmdk.repair import differing_tables, recover
        from vmdkit.vmdk.repair_hosted import mend_hosted

        header, storage = self.header, self._file
        unknown = header.flags & ~structs.KNOWN_FLAGS
        if header.version > 2 or unknown or header.table_entries != structs.HOSTED_ENTRIES or self._redundant:
            raise UnsupportedError(
                f"only versions 1 and 2 with known flags are written, through the primary directory "
                f"(version {header.version}, flags {header.flags:#x})",
                path=self.path,
            )
        if header.unclean_shutdown and recover(storage, mend_hosted):
            self.header = header = read_header(storage)
            self.tables = read_tables(storage, header, header.gd_offset)
        copies: list[Copy] = []
        if self._other is not None:
            other = read_tables(storage, header, self._other)
            differing = differing_tables(self.tables, other)
            if differing:
                raise CorruptError(
                    f"the two copies of {len(differing)} grain tables differ; check and repair it before writing",
                    structure="grain table", path=self.path,
                )  # fmt: skip
            copies.append(_copy(other, self._other))
        copies.append(_copy(self.tables, header.gd_offset))
        zero_code = structs.ZERO if header.flags & structs.FLAG_ZERO_GRAINS else None
        self.writer = TableWriter(self, copies, session, zero_code=zero_code)

    def mark_unclean(self, *, unclean: bool) -> None:
        """Set or clear the byte that tells of a writer that did not finish."""
        self._file.pwrite(bytes([unclean]), HostedHeader.offset_of("unclean_shutdown"))

    def examine(self) -> Iterator[Doubt]:
        """Compare both copies of the tables and check every pointer."""
        from vmdkit.vmdk.check import examine_hosted  # the check imports this module's readers

        yield from examine_hosted(self._file)
