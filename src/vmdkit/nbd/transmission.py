# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Requests and replies of the transmission phase, as bytes.

::

    simple       request  magic flags command cookie offset length:32   reply  magic error cookie [data]
    structured   request  the same                         chunk  magic flags type cookie length:32 ...
    extended     request  the same, length:64              chunk  magic flags type cookie offset length:64 ...

Rules of this server where the protocol leaves a choice (docs/nbd.md lists them):

* Requests of no bytes succeed and do nothing, except BLOCK_STATUS: EINVAL.
* More bytes than the advertised maximum: EINVAL. Reading past the end: EINVAL; writing or zeroing: ENOSPC.
* Not aligned to the advertised minimum, an unknown command, a flag the command does not have, a command that was
  not advertised: EINVAL. Changing a read-only export: EPERM.
* Errors to clients with structured replies carry a sentence; it never names a path of the server.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from vmdkit.errors import RemoteProtocolError, VmdkitError
from vmdkit.nbd import protocol as p
from vmdkit.nbd.protocol import Chunk, Command, CommandFlag, Error, ExportFlag, Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmdkit.nbd.session import Session

_DONE = p.REPLY_DONE
_WIDE = 2**32  # what a 32-bit descriptor cannot say


class Request(NamedTuple):
    """One request; ``length`` is what it is about, ``payload`` what follows it, both in bytes."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: int


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

_FLAGS: Final[dict[int, int]] = {  # flags each command has, besides FUA, which may stand anywhere
    Command.READ: CommandFlag.DF,
    Command.WRITE: 0,
    Command.DISC: 0,
    Command.FLUSH: 0,
    Command.TRIM: 0,
    Command.CACHE: 0,
    Command.WRITE_ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: CommandFlag.REQ_ONE,
}
_NEEDS: Final[dict[int, ExportFlag]] = {  # what must have been advertised
    Command.FLUSH: ExportFlag.SEND_FLUSH,
    Command.TRIM: ExportFlag.SEND_TRIM,
    Command.CACHE: ExportFlag.SEND_CACHE,
    Command.WRITE_ZEROES: ExportFlag.SEND_WRITE_ZEROES,
}
_CHANGES: Final = frozenset((Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))


def request_header(mode: Mode) -> int:
    """Return the bytes of a request's header in ``mode``."""
    return p.EXTENDED_REQUEST.size if mode is Mode.EXTENDED else p.REQUEST.size


def parse(mode: Mode, buf: bytes | bytearray | memoryview, at: int) -> Request:
    """Return the request whose header is complete at ``at``.

    Raises RemoteProtocolError where the framing is lost: a wrong magic, or a payload so large that reading it
    to its end would serve only an attacker.
    """
    extended = mode is Mode.EXTENDED
    layout = p.EXTENDED_REQUEST if extended else p.REQUEST
    magic, flags, command, cookie, offset, length = layout.unpack_from(buf, at)
    if magic != (p.EXTENDED_REQUEST_MAGIC if extended else p.REQUEST_MAGIC):
        raise RemoteProtocolError(f"a request begins with {magic:#010x}")
    payload = length if command == Command.WRITE or (extended and flags & CommandFlag.PAYLOAD_LEN) else 0
    if payload > p.MAX_DROPPED:
        raise RemoteProtocolError(f"a request announces {payload} bytes of payload")
    return Request(command, flags, cookie, offset, length, payload)


def refuse(session: Session, request: Request) -> tuple[int, str] | None:
    """Return the error number and sentence for a request that must not reach the device; None for a good one."""
    command, _, _, offset, count, payload = request
    if command not in _FLAGS:
        return Error.EINVAL, f"command {command} is not known here"
    wrong = _wrong_flags(session, request)
    if wrong:
        return Error.EINVAL, f"{Command(command).name} has no flags {wrong:#x}"
    if command in _CHANGES and session.flags & ExportFlag.READ_ONLY:
        return Error.EPERM, "this export is read-only"
    if not _NEEDS.get(command, session.flags) & session.flags:
        return Error.EINVAL, f"{Command(command).name} was not advertised"
    if command == Command.FLUSH:
        return (Error.EINVAL, "FLUSH has neither offset nor length") if offset or count else None
    if command == Command.BLOCK_STATUS:
        if not session.contexts:
            return Error.EINVAL, "no context was selected"
        if payload:  # the range stands in the payload: a length and at least one context
            shape = (
                payload % p.COUNT.size or not p.OFFSET.size < payload <= p.OFFSET.size + p.COUNT.size * p.MAX_QUERIES
            )
            return (Error.EINVAL, f"BLOCK_STATUS with {payload} bytes of payload") if shape else None
        if not count:
            return Error.EINVAL, "BLOCK_STATUS of no bytes"
    return refuse_range(session, command, offset, count)


def _wrong_flags(session: Session, request: Request) -> int:
    """Return the bits of a request's flags that do not belong there."""
    allowed = int(_FLAGS[request.command])  # plain numbers: ~ of an enumeration knows only its own bits
    if session.flags & ExportFlag.SEND_FUA or request.command == Command.FLUSH:
        allowed |= int(CommandFlag.FUA)
    if session.mode is Mode.EXTENDED and (
        request.command == Command.WRITE
        or (request.command == Command.BLOCK_STATUS and session.flags & ExportFlag.BLOCK_STATUS_PAYLOAD)
    ):
        allowed |= int(CommandFlag.PAYLOAD_LEN)
    if session.mode is Mode.SIMPLE:
        allowed &= ~int(CommandFlag.DF)
    return request.flags & ~allowed


def refuse_range(session: Session, command: int, offset: int, count: int) -> tuple[int, str] | None:
    """Check alignment, length and end of a range; as ``refuse``."""
    size = session.export.device.size
    if count > session.maximum and command in (Command.READ, Command.WRITE):
        return Error.EINVAL, f"{count} bytes in one request; at most {session.maximum} are served"
    if offset + count > size:
        number = Error.ENOSPC if command in (Command.WRITE, Command.WRITE_ZEROES) else Error.EINVAL
        return number, f"{count} bytes at {offset} leave the export, which has {size}"
    if session.minimum > 1 and (offset % session.minimum or count % session.minimum):
        return Error.EINVAL, f"{count} bytes at {offset} are not aligned to {session.minimum}"
    return None


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────


def chunk(session: Session, request: Request, kind: Chunk, length: int, flags: int = _DONE) -> bytes:
    """Return the header of a chunk whose payload has ``length`` bytes."""
    if session.mode is Mode.EXTENDED:
        return p.EXTENDED_CHUNK.pack(
            p.EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, length
        )  # fmt: skip
    return p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)


def success(session: Session, request: Request) -> bytes:
    """Return the reply to a request that worked and has no data to give back."""
    if session.mode is Mode.SIMPLE:
        return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, request.cookie)
    if session.mode is Mode.EXTENDED or request.command in (Command.READ, Command.BLOCK_STATUS):
        return chunk(session, request, Chunk.NONE, 0)
    return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, request.cookie)  # legal here and shorter


def failure(session: Session, request: Request, number: int, text: str) -> bytes:
    """Return the reply to a request that failed."""
    if session.mode is Mode.SIMPLE:
        return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, number, request.cookie)
    message = text.encode("utf-8", "replace")[: p.MAX_STRING]
    head = chunk(session, request, Chunk.ERROR, p.ERROR_DATA.size + len(message))
    return head + p.ERROR_DATA.pack(number, len(message)) + message


def read_head(session: Session, request: Request, offset: int, count: int, *, done: bool) -> bytes:
    """Return what stands before ``count`` bytes of data; a simple reply has it once for the whole request."""
    if session.mode is Mode.SIMPLE:
        return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, request.cookie)
    head = chunk(session, request, Chunk.OFFSET_DATA, count + p.OFFSET.size, _DONE if done else 0)
    return head + p.OFFSET.pack(offset)


def hole(session: Session, request: Request, offset: int, count: int, *, done: bool) -> bytes:
    """Return the chunk that says ``count`` bytes at ``offset`` read as zero; never for simple replies."""
    head = chunk(session, request, Chunk.OFFSET_HOLE, p.OFFSET.size + p.COUNT.size, _DONE if done else 0)
    return head + p.OFFSET.pack(offset) + p.COUNT.pack(count)


def status(session: Session, request: Request, context: int, runs: Iterable[tuple[int, int]], *, done: bool) -> bytes:
    """Return the chunk of one context; ``runs`` are (length, flags), from the start of the request on."""
    flags = _DONE if done else 0
    if session.mode is Mode.EXTENDED:
        wide = [number for run in runs for number in run]
        body = p.STATUS_EXT_DATA.pack(context, len(wide) // 2) + b"".join(map(p.OFFSET.pack, wide))
        return chunk(session, request, Chunk.BLOCK_STATUS_EXT, len(body), flags) + body
    pairs = bytearray(p.COUNT.pack(context))
    for length, tag in runs:  # no longer than the request, whose length had 32 bits
        pairs += ((length % _WIDE) << 32 | tag % _WIDE).to_bytes(8, "big")
    return chunk(session, request, Chunk.BLOCK_STATUS, len(pairs), flags) + pairs


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────

_ON_THE_WIRE: Final = {
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EROFS: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EOPNOTSUPP: Error.ENOTSUP,
}
_KNOWN: Final = frozenset(Error)


def describe(error: BaseException) -> tuple[int, str]:
    """Return the number and sentence a client is told; a path of the server is not among them."""
    if isinstance(error, VmdkitError):
        number, text = error.errno, error.message
    elif isinstance(error, OSError):
        number, text = error.errno or errno.EIO, error.strerror or "input/output error"
    elif isinstance(error, MemoryError):
        number, text = errno.ENOMEM, "out of memory"
    else:
        number, text = errno.EIO, "internal error"
    number = _ON_THE_WIRE.get(number, number)
    return (number if number in _KNOWN else int(Error.EIO)), text
