# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Fixed VHD: the bytes of the disk, and a footer of one sector. What Azure takes.

Facts are those of Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0 (2006), sections "Hard Disk
Footer Format" and "Appendix: CHS Calculation". All numbers are big-endian.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Final

from vmdkit.errors import CorruptError
from vmdkit.record import U8, U16, U32, U64, Bytes4, Record
from vmdkit.units import SECTOR

_FIXED = 2
_NO_OFFSET = (1 << 64) - 1  # a fixed disk has no further structures
_EPOCH = 946684800  # seconds: 2000-01-01 00:00 UTC, from which its clock counts
_MOST_CYLINDERS, _MOST_HEADS, _MOST_SECTORS = 65535, 16, 255
FOOTER: Final = SECTOR  # bytes


class VhdFooter(Record, endian=">", size=SECTOR):
    """The last sector of a VHD.

    ::

         0 cookie      8 features   12 version     16 data offset   24 time          28 creator     32 its version
        36 its system 40 first size 48 size        56 cylinders     58 heads         59 sectors     60 type of disk
        64 checksum   68 identity   84 saved state 85 reserved

    The creator is said to be Windows: readers that know only some creators (qemu among them) take the size of other
    disks from the geometry, which cannot say every size.
    """

    cookie: Annotated[bytes, "8s"] = b"conectix"
    features: U32 = 2  # a bit that is always set
    version: U32 = 0x00010000
    data_offset: U64 = _NO_OFFSET
    time: U32 = 0
    creator: Bytes4 = b"win "
    creator_version: U32 = 0x00060003
    creator_system: Bytes4 = b"Wi2k"
    first_size: U64 = 0
    size: U64 = 0
    cylinders: U16 = 0
    heads: U8 = 0
    sectors: U8 = 0
    disk_type: U32 = _FIXED
    checksum: U32 = 0
    identity: Annotated[bytes, "16s"] = b""
    saved_state: U8 = 0
    reserved: Annotated[bytes, "427s"] = b""


def geometry(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors of a track for a disk of ``size`` bytes, as the appendix has them."""
    total = min(size // SECTOR, _MOST_CYLINDERS * _MOST_HEADS * _MOST_SECTORS)
    if total >= _MOST_CYLINDERS * _MOST_HEADS * 63:
        return total // _MOST_SECTORS // _MOST_HEADS, _MOST_HEADS, _MOST_SECTORS
    sectors = 17
    tracks = total // sectors
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > _MOST_HEADS:
        sectors, heads = 31, _MOST_HEADS
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, _MOST_HEADS
        tracks = total // sectors
    return tracks // heads, heads, sectors


def footer(size: int, *, now: float | None = None, identity: bytes | None = None) -> bytes:
    """Return the footer of a fixed disk of ``size`` bytes, whole sectors; ``now`` is Unix time (default: the clock)."""
    cylinders, heads, sectors = geometry(size)
    seconds = int(time.time() if now is None else now) - _EPOCH
    made = VhdFooter(
        time=min(max(seconds, 0), 0xFFFFFFFF),
        first_size=size,
        size=size,
        cylinders=cylinders,
        heads=heads,
        sectors=sectors,
        identity=uuid.uuid4().bytes if identity is None else identity,
    )
    made.checksum = checksum(made.pack())
    return made.pack()


def checksum(raw: bytes | bytearray) -> int:
    """Return what the checksum of a footer must be: the complement of the sum of all its other bytes."""
    at = VhdFooter.offset_of("checksum")
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF


def check_footer(raw: bytes | bytearray, size: int, path: str) -> None:
    """Raise CorruptError unless ``raw`` is the footer of a fixed disk of ``size`` bytes."""
    found = VhdFooter.unpack(raw, path=path)
    if found.cookie != VhdFooter.cookie or found.checksum != checksum(raw):
        raise CorruptError("what ends the file is no footer", structure="VhdFooter", path=path, offset=size)
    if (found.size, found.disk_type) != (size, _FIXED):
        raise CorruptError(
            f"it tells of {found.size} bytes, type {found.disk_type}; {size} and type {_FIXED} are due",
            structure="VhdFooter", path=path, offset=size,
        )  # fmt: skip
