# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""One header block of a tar: its layout, its numbers, its checksum; and how the blocks we write look.

An OVA shall be a ustar archive (DSP0243 2.1.1, 5.4). ustar has eleven octal digits for a size, so a member of 8 GiB or
more needs an extension. GNU's (a binary number in the same field) is what VMware's own tools write and read; the other,
pax, is refused by vSphere (vmware/open-vmdk#65) and oVirt (oVirt/ovirt-engine#374). So what we write is ustar, and
GNU for members that are too large.
"""

from __future__ import annotations

from typing import Annotated, Final

from vmdkit.errors import CorruptError, UsageError
from vmdkit.record import Record
from vmdkit.units import GIB, KIB

BLOCK: Final = KIB // 2  # bytes of a header, and what members are padded to
RECORD: Final = 20 * BLOCK  # what tar programs fill up to at the end
LARGEST_USTAR: Final = 8 * GIB - 1  # bytes; eleven octal digits
LONGEST_NAME: Final = 100  # bytes; what all readers of a ustar archive take

USTAR_MAGIC: Final = b"ustar\x0000"
GNU_MAGIC: Final = b"ustar  \x00"

FILE_TYPES: Final = (b"0", b"\0", b"7")  # regular, regular of old, contiguous
DIRECTORY, GNU_NAME, GNU_LINK, GNU_SPARSE, PAX, PAX_GLOBAL = b"5", b"L", b"K", b"S", b"x", b"g"
LINKS: Final = (b"1", b"2")
DEVICES: Final = (b"3", b"4", b"6")  # character, block, FIFO

_BLANKS = b" " * 8


class TarHeader(Record, endian="<", size=BLOCK):
    """A header block (POSIX.1-1988 "ustar", GNU "oldgnu").

    ::

          0 name     100 mode     108 uid     116 gid     124 size     136 mtime    148 checksum   156 type
        157 link     257 magic, version       265 user    297 group    329 major    337 minor      345 prefix
    """

    name: Annotated[bytes, "100s"] = b""
    mode: Annotated[bytes, "8s"] = b"0000644\0"
    uid: Annotated[bytes, "8s"] = b"0000000\0"
    gid: Annotated[bytes, "8s"] = b"0000000\0"
    size: Annotated[bytes, "12s"] = b"00000000000\0"
    mtime: Annotated[bytes, "12s"] = b"00000000000\0"
    checksum: Annotated[bytes, "8s"] = _BLANKS
    type: Annotated[bytes, "1s"] = b"0"
    link: Annotated[bytes, "100s"] = b""
    magic: Annotated[bytes, "8s"] = USTAR_MAGIC
    user: Annotated[bytes, "32s"] = b""
    group: Annotated[bytes, "32s"] = b""
    major: Annotated[bytes, "8s"] = b"0000000\0"
    minor: Annotated[bytes, "8s"] = b"0000000\0"
    prefix: Annotated[bytes, "155s"] = b""
    pad: Annotated[bytes, "12s"] = b""


def padding(size: int) -> int:
    """Return how many bytes of zeros follow ``size`` bytes, up to a whole block."""
    return -size % BLOCK


def number(field: bytes) -> int:
    """Return the number in a field: octal digits, or GNU's binary. Raises ValueError for anything else."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError("a negative number")
        return int.from_bytes(bytes((field[0] & 0x3F,)) + field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError("no octal number")
    return int(digits, 8)


def is_binary(field: bytes) -> bool:
    """Tell whether a field holds GNU's binary number."""
    return bool(field[0] & 0x80)


def check(block: bytes | bytearray, *, path: str, offset: int) -> None:
    """Raise CorruptError unless the checksum of a header block is right; some sum signed bytes, as of old."""
    raw = bytes(block[:148]) + _BLANKS + bytes(block[156:])
    unsigned = sum(raw)
    signed = unsigned - 256 * sum(byte > 127 for byte in raw)
    try:
        stated = number(bytes(block[148:156]))
    except ValueError:
        stated = -1
    if stated not in (unsigned, signed):
        raise CorruptError("the checksum is wrong: this is no header", structure="tar", path=path, offset=offset)


def header(name: str, size: int, mtime: int = 0) -> bytes:
    """Return the header block of a regular file of ``size`` bytes, the same for the same arguments.

    Raises UsageError for a name that is longer than 100 bytes or not ASCII: some importer would not find it.
    """
    try:
        raw = name.encode("ascii")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!r}: the name of a member has to be ASCII") from error
    if not 0 < len(raw) <= LONGEST_NAME:
        raise UsageError(f"{name!r}: the name of a member has to have 1 to {LONGEST_NAME} characters")
    if not 0 <= mtime < 8**11:
        raise UsageError(f"a time of {mtime} cannot be written")
    made = TarHeader(name=raw, mtime=b"%011o\0" % mtime)
    if size <= LARGEST_USTAR:
        made.size = b"%011o\0" % size
    else:
        made.size, made.magic = b"\x80" + size.to_bytes(11, "big"), GNU_MAGIC
    made.checksum = b"%06o\0 " % sum(made.pack())
    return made.pack()
