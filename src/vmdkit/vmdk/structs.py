# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every binary structure of the VMDK formats; with the descriptor text, the only place where sectors exist.

All integers are little-endian. Fields typed ``Sectors…`` are sector counts on disk and bytes in Python. Unpacking
gives the shape; the drivers beside this file check the values against the size of the file.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import numpy as np

from vmdkit.record import U8, U16, U32, U64, Bytes4, Record, Sectors32, Sectors64
from vmdkit.units import SECTOR

HOSTED_MAGIC: Final = b"KDMV"
UNFINISHED_MAGIC: Final = b"kdmv"  # open-vmdk's mark while it is still writing (format spec 1.7)
COWD_MAGIC: Final = b"COWD"
SESPARSE_MAGIC: Final = 0x00000000CAFEBABE
SESPARSE_VOLATILE_MAGIC: Final = 0x00000000CAFECAFE
SESPARSE_VERSION: Final = 0x0000000200000001

FLAG_NEWLINES: Final = 1 << 0
FLAG_REDUNDANT: Final = 1 << 1
FLAG_ZERO_GRAINS: Final = 1 << 2
FLAG_COMPRESSED: Final = 1 << 16
FLAG_MARKERS: Final = 1 << 17
KNOWN_FLAGS: Final = FLAG_NEWLINES | FLAG_REDUNDANT | FLAG_ZERO_GRAINS | FLAG_COMPRESSED | FLAG_MARKERS
INCOMPATIBLE_FLAGS: Final = 0xFFFF0000

GD_AT_END: Final = 0xFFFFFFFFFFFFFFFF * SECTOR  # gdOffset of a stream whose directory is in the footer
NEWLINES: Final = b"\n \r\n"
DEFLATE_ALGORITHM: Final = 1
HOSTED_ENTRIES: Final = 512  # in a grain table of everything that is written (format spec 1.7)

MARKER_EOS, MARKER_GT, MARKER_GD, MARKER_FOOTER, MARKER_PROGRESS = range(5)


class HostedHeader(Record, endian="<", size=SECTOR):
    """Header of a hosted sparse extent, "KDMV"; also the footer of a stream (format spec 1.7).

    ::

         0 magic        4 version      8 flags       12 capacity     20 grain size   28 descriptor offset
        36 descriptor size   44 entries in a grain table   48 redundant directory   56 directory
        64 overhead    72 unclean shutdown   73 newline test bytes   77 compression   79 padding
    """

    magic: Bytes4 = HOSTED_MAGIC
    version: U32 = 1
    flags: U32 = FLAG_NEWLINES | FLAG_REDUNDANT
    capacity: Sectors64 = 0
    grain_size: Sectors64 = 128 * SECTOR
    descriptor_offset: Sectors64 = 0
    descriptor_size: Sectors64 = 0
    table_entries: U32 = 512
    rgd_offset: Sectors64 = 0
    gd_offset: Sectors64 = 0
    overhead: Sectors64 = 0
    unclean_shutdown: U8 = 0
    newlines: Bytes4 = NEWLINES
    compression: U16 = 0
    pad: Annotated[bytes, "433s"] = b""


class GrainMarker(Record, endian="<", size=12):
    """Head of a compressed grain: where the grain belongs, and how many bytes of zlib data follow (1.8)."""

    lba: Sectors64 = 0
    length: U32 = 0


LENGTH_ONLY: Final = 4  # bytes before the data of a grain where markers are off
_GRAIN_HEAD = struct.Struct("<QI")
_GRAIN_LENGTH = struct.Struct("<I")


def grain_head(buf: bytes | bytearray | memoryview, at: int, *, has_lba: bool) -> tuple[int | None, int]:
    """Return lba and length as GrainMarker has them, ten times as fast; no lba where markers are off (1.8)."""
    if has_lba:
        lba, length = _GRAIN_HEAD.unpack_from(buf, at)
        return lba * SECTOR, length
    return None, _GRAIN_LENGTH.unpack_from(buf, at)[0]


class Marker(Record, endian="<", size=SECTOR):
    """Metadata marker of a stream: ``length`` is 0, ``type`` says what the following ``following`` bytes are (1.8).

    Types: 0 end of stream, 1 grain table, 2 grain directory, 3 footer, 4 progress (nothing follows).
    """

    following: Sectors64 = 0
    length: U32 = 0
    type: U32 = 0
    pad: Annotated[bytes, "496s"] = b""


class CowdHeader(Record, endian="<", size=4 * SECTOR):
    """Header of a copy-on-write disk, "COWD", the delta of vmfsSparse (format spec 1.9).

    The union at 32 is taken as the child's: parent file name and generation.
    """

    magic: Bytes4 = COWD_MAGIC
    version: U32 = 1
    flags: U32 = 3
    capacity: Sectors32 = 0
    grain_size: Sectors32 = SECTOR
    gd_offset: Sectors32 = 4 * SECTOR
    gd_entries: U32 = 0
    free: Sectors32 = 0
    parent_name: Annotated[bytes, "1024s"] = b""
    parent_generation: U32 = 0
    generation: U32 = 0
    disk_name: Annotated[bytes, "60s"] = b""
    description: Annotated[bytes, "512s"] = b""
    saved_generation: U32 = 0
    reserved: Annotated[bytes, "8s"] = b""
    unclean_shutdown: U32 = 0
    pad: Annotated[bytes, "396s"] = b""


class SeSparseHeader(Record, endian="<", size=SECTOR):
    """Constant header of a seSparse extent: sizes, then an (offset, size) pair for each region (1.10)."""

    magic: U64 = SESPARSE_MAGIC
    version: U64 = SESPARSE_VERSION
    capacity: Sectors64 = 0
    grain_size: Sectors64 = 8 * SECTOR
    table_size: Sectors64 = 64 * SECTOR
    flags: U64 = 0
    reserved: Annotated[bytes, "32s"] = b""
    volatile_offset: Sectors64 = 0
    volatile_size: Sectors64 = 0
    journal_header_offset: Sectors64 = 0
    journal_header_size: Sectors64 = 0
    journal_offset: Sectors64 = 0
    journal_size: Sectors64 = 0
    gd_offset: Sectors64 = 0
    gd_size: Sectors64 = 0
    tables_offset: Sectors64 = 0
    tables_size: Sectors64 = 0
    bitmap_offset: Sectors64 = 0
    bitmap_size: Sectors64 = 0
    backmap_offset: Sectors64 = 0
    backmap_size: Sectors64 = 0
    grains_offset: Sectors64 = 0
    grains_size: Sectors64 = 0
    pad: Annotated[bytes, "304s"] = b""


class SeSparseVolatile(Record, endian="<", size=SECTOR):
    """Volatile header of a seSparse extent; a journal to be replayed means the tables are not current (1.10)."""

    magic: U64 = SESPARSE_VOLATILE_MAGIC
    free_table: U64 = 0
    next_transaction: U64 = 0
    replay_journal: U64 = 0
    pad: Annotated[bytes, "480s"] = b""


# ── tables: arrays of pointers, decoded to byte addresses ────────────────────────────────────────────────────────

Codes = np.ndarray[tuple[int], np.dtype[np.int64]]

UNALLOCATED: Final = -1  # not here: ask the parent, or zero
ZERO: Final = -2  # reads as zero whatever the parent holds
CORRUPT: Final = -3  # the entry breaks the format

_STEP = 1 << 16  # entries decoded at once where there may be millions


def decode_sectors(raw: bytes | bytearray, *, low: int, high: int, zero_grains: bool = False) -> Codes:
    """Decode u32 sector pointers to byte addresses, UNALLOCATED, ZERO or CORRUPT (1.7, 1.9).

    An address below ``low`` or not below ``high`` (both bytes) is CORRUPT; 1 is a zero grain where the header
    allows it.
    """
    entries = np.frombuffer(raw, dtype="<u4")
    codes = entries.astype(np.int64)
    codes *= SECTOR
    codes[(codes < low) | (codes >= high)] = CORRUPT
    codes[entries == 0] = UNALLOCATED
    if zero_grains:
        codes[entries == 1] = ZERO
    return codes


def encode_sectors(codes: Codes) -> bytes:
    """Encode byte addresses, UNALLOCATED and ZERO as u32 sector pointers: what ``decode_sectors`` reads.

    Addresses must be whole sectors below 2^32 of them, and none CORRUPT; the writer sees to both.
    """
    entries = codes // SECTOR
    entries[codes == UNALLOCATED] = 0
    entries[codes == ZERO] = 1
    return entries.astype("<u4").tobytes()


def decode_sesparse_directory(raw: bytes | bytearray, *, tables_offset: int, table_size: int, high: int) -> Codes:
    """Decode seSparse directory entries: 0 none, else 0x10000000 in the upper half and a table number below (1.10)."""
    entries = np.frombuffer(raw, dtype="<u8")
    codes = np.empty(len(entries), dtype=np.int64)
    for at in range(0, len(entries), _STEP):  # the directory of 64 TiB has four million entries
        some, out = entries[at : at + _STEP], codes[at : at + _STEP]
        out[:] = (some & np.uint64(0xFFFFFFFF)).astype(np.int64) * table_size + tables_offset
        out[((some >> np.uint64(32)) != 0x10000000) | (out + table_size > high)] = CORRUPT
        out[some == 0] = UNALLOCATED
    return codes


def decode_sesparse_table(raw: bytes | bytearray, *, grains_offset: int, grain: int, high: int) -> Codes:
    """Decode seSparse table entries; the top four bits are the type (1.10).

    0 unallocated, 1 unmapped by the guest and 2 zero (both read as zero), 3 allocated: the grain's number is
    bits 48 to 59 as its low twelve bits and bits 0 to 47 above them.
    """
    entries = np.frombuffer(raw, dtype="<u8")
    kind = entries >> np.uint64(60)
    low = (entries >> np.uint64(48)) & np.uint64(0xFFF)
    above = entries & np.uint64(0xFFFFFFFFFFFF)
    most = np.uint64(max(high - grains_offset, 0) // grain >> 12)  # what cannot be in the file never becomes int64
    sane = (kind == 3) & (above <= most)
    index = (low | (np.where(sane, above, np.uint64(0)) << np.uint64(12))).astype(np.int64)
    codes = index * grain + grains_offset
    codes[~sane | (codes >= high)] = CORRUPT
    codes[(kind == 1) | (kind == 2)] = ZERO
    codes[entries == 0] = UNALLOCATED
    return codes
