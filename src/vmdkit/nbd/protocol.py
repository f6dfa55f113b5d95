# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The constants and wire records of NBD, grouped as the specification groups them.

Everything on the wire is big-endian. Where a limit is ours and not the protocol's, a comment says why.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from vmdkit.units import KIB, MIB

DEFAULT_PORT: Final = 10809  # registered with IANA

# ── limits of this server (users spec, A11): checked before anything is allocated ────────────────────────────────

MAX_STRING: Final = 4096  # bytes of any name; the protocol's own limit
MAX_OPTION: Final = 64 * KIB  # bytes of one option's data; a name and a few dozen queries fit many times over
MAX_OPTIONS: Final = 256  # options in one handshake; clients send fewer than ten
MAX_QUERIES: Final = 64  # context queries in one option; devices offer a handful of contexts
MAX_REQUEST: Final = 32 * MIB  # bytes read or written by one request, as qemu
MAX_DROPPED: Final = 64 * MIB  # a refused payload up to this is read and dropped (libnbd's largest request)
MAX_EXTENTS: Final = 128 * KIB  # descriptors in one block status chunk, 1 MiB of 32-bit ones, as qemu

# ── handshake ────────────────────────────────────────────────────────────────────────────────────────────────────

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
OLD_MAGIC: Final = 0x00420281861253  # in the place of OPTION_MAGIC: the handshake of before 2011, without options

GREETING: Final = struct.Struct(">QQH")  # INIT_MAGIC, OPTION_MAGIC, handshake flags
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # OPTION_MAGIC, option, length of data
OPTION_REPLY: Final = struct.Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply type, length of data
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")  # size, transmission flags; then 124 zeroes unless NO_ZEROES
OLD_GREETING: Final = struct.Struct(">QHH")  # size, global flags, transmission flags; then the padding
PADDING: Final = bytes(124)

INFO_EXPORT_DATA: Final = struct.Struct(">HQH")  # Info.EXPORT, size, transmission flags
INFO_BLOCK_SIZE_DATA: Final = struct.Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum


class HandshakeFlag(IntFlag):
    """What the server sends in its greeting and the client answers."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Opt(IntEnum):
    """Options a client may send while negotiating."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(IntEnum):
    """Types of replies to options; errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_POLICY = 2**31 + 2
    ERR_INVALID = 2**31 + 3
    ERR_PLATFORM = 2**31 + 4
    ERR_TLS_REQD = 2**31 + 5
    ERR_UNKNOWN = 2**31 + 6
    ERR_SHUTDOWN = 2**31 + 7
    ERR_BLOCK_SIZE_REQD = 2**31 + 8
    ERR_TOO_BIG = 2**31 + 9
    ERR_EXT_HEADER_REQD = 2**31 + 10


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """Transmission flags: what an export allows."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    ROTATIONAL = 16
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_RESIZE = 512
    SEND_CACHE = 1024
    SEND_FAST_ZERO = 2048
    BLOCK_STATUS_PAYLOAD = 4096


# ── transmission ─────────────────────────────────────────────────────────────────────────────────────────────────

REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
EXTENDED_REQUEST: Final = struct.Struct(">IHHQQQ")  # the same with a length of 64 bits
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length of payload
EXTENDED_CHUNK: Final = struct.Struct(">IHHQQQ")  # magic, flags, type, cookie, offset of request, length of payload

# A chunk's header and the start of its payload in one, for the replies that are sent most.
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")  # CHUNK, offset; the data follows
EXTENDED_DATA_CHUNK: Final = struct.Struct(">IHHQQQQ")
STATUS_HEAD: Final = struct.Struct(">IHHQII")  # CHUNK, context
STATUS_PAIR: Final = struct.Struct(">II")  # length, flags
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")  # CHUNK, offset, length of hole
EXTENDED_HOLE_CHUNK: Final = struct.Struct(">IHHQQQQI")

OFFSET: Final = struct.Struct(">Q")
COUNT: Final = struct.Struct(">I")
ERROR_DATA: Final = struct.Struct(">IH")  # error, length of the message that follows
STATUS_EXT_DATA: Final = struct.Struct(">II")  # context, number of descriptors; each is two 64-bit numbers
REPLY_DONE: Final = 1  # the flag of the last chunk of a reply


class Chunk(IntEnum):
    """Types of structured reply chunks; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 2**15 + 1
    ERROR_OFFSET = 2**15 + 2


class Command(IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of requests."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16
    PAYLOAD_LEN = 32


class Mode(IntEnum):
    """How replies look, as negotiated; the later ones include what the earlier ones can say."""

    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2


class Error(IntEnum):
    """The only error numbers that may stand in a reply."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
