# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``NBD``: a handle with the calls of libnbd, so that a program written for it runs with one changed import::

    import vmdkit.nbd as nbd

    h = nbd.NBD()
    h.connect_command(["nbdkit", "-s", "memory", "1M"])
    h.pwrite(b"hello", 0)
    print(h.get_size(), h.pread(5, 0))

One connection, and no limits but the server's: whoever wants reads split, connections pooled, and lost ones replaced
uses ``vmdkit.open``. The asynchronous calls of libnbd (``aio_…``, ``poll``) are not here: threads may share a handle,
and their requests are under way together.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import TYPE_CHECKING, Any, Final

from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError
from vmdkit.nbd import handle_names as n
from vmdkit.nbd.client_core import Request
from vmdkit.nbd.handle_facts import Knowing
from vmdkit.nbd.handle_names import Trouble
from vmdkit.nbd.handle_state import DEAD, READY, call
from vmdkit.nbd.protocol import Chunk, Command, ExportFlag, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    Buffer = bytes | bytearray | memoryview

_MOST: Final = 64 << 20  # bytes of one read or write, as libnbd
_COMMANDS: Final = {
    Command.READ: "read",
    Command.WRITE: "write",
    Command.FLUSH: "flush",
    Command.TRIM: "trim",
    Command.CACHE: "cache",
    Command.WRITE_ZEROES: "write-zeroes",
    Command.BLOCK_STATUS: "block-status",
}
_FLAGS: Final = {  # command -> flags that may be given, and would be sent
    Command.READ: 0,
    Command.WRITE: n.CMD_FLAG_FUA,
    Command.FLUSH: 0,
    Command.TRIM: n.CMD_FLAG_FUA,
    Command.CACHE: 0,
    Command.WRITE_ZEROES: n.CMD_FLAG_FUA | n.CMD_FLAG_NO_HOLE | n.CMD_FLAG_FAST_ZERO,
    Command.BLOCK_STATUS: n.CMD_FLAG_REQ_ONE,
}
_OFFERS: Final = {  # command -> the flag of a server that offers it
    Command.FLUSH: (ExportFlag.SEND_FLUSH, "flush"),
    Command.TRIM: (ExportFlag.SEND_TRIM, "trim"),
    Command.CACHE: (ExportFlag.SEND_CACHE, "cache"),
    Command.WRITE_ZEROES: (ExportFlag.SEND_WRITE_ZEROES, "zero"),
}
_MODIFIERS: Final = (
    (n.CMD_FLAG_FUA, ExportFlag.SEND_FUA, "the FUA flag"),
    (n.CMD_FLAG_DF, ExportFlag.SEND_DF, "the DF flag"),
    (n.CMD_FLAG_FAST_ZERO, ExportFlag.SEND_FAST_ZERO, "the fast zero flag"),
)
_CHANGES: Final = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_CHUNKS: Final = {Chunk.OFFSET_DATA: n.READ_DATA, Chunk.OFFSET_HOLE: n.READ_HOLE, Chunk.ERROR: n.READ_ERROR}


class NBD(Knowing):
    """A connection to an NBD server."""

    @call(READY)
    def pread(self, count: int, offset: int, flags: int = 0) -> bytearray:
        """Return ``count`` bytes at ``offset``."""
        self._check(Command.READ, offset, count, flags)
        buf = bytearray(count)
        self._run(Request(Command.READ, offset, count, flags, memoryview(buf)))
        return buf

    @call(READY)
    def pread_structured(self, count: int, offset: int, chunk: Callable[..., Any], flags: int = 0) -> bytearray:
        """Return bytes as pread, and call ``chunk(bytes, offset, status, error)`` for each piece that came."""
        self._check(Command.READ, offset, count, flags, n.CMD_FLAG_DF)
        buf = bytearray(count)
        view = memoryview(buf)
        request = Request(Command.READ, offset, count, flags, view)
        request.log = []
        trouble: Trouble | None = None
        try:
            self._run(request)
        except Trouble as error:
            trouble = error
        for kind, at, length, number in request.log:
            piece = view[at - offset : at - offset + length] if kind != Chunk.ERROR else memoryview(b"")
            self._tell(Command.READ, chunk, piece, at, _CHUNKS[Chunk(kind)], error=number)
        if trouble is not None:
            raise trouble
        return buf

    @call(READY)
    def pwrite(self, buf: Buffer, offset: int, flags: int = 0) -> None:
        """Write all of ``buf`` at ``offset``."""
        view = memoryview(buf).cast("B")
        self._check(Command.WRITE, offset, len(view), flags)
        self._run(Request(Command.WRITE, offset, len(view), flags), view)

    @call(READY)
    def zero(self, count: int, offset: int, flags: int = 0) -> None:
        """Make bytes zero."""
        self._check(Command.WRITE_ZEROES, offset, count, flags)
        self._run(Request(Command.WRITE_ZEROES, offset, count, flags))

    @call(READY)
    def trim(self, count: int, offset: int, flags: int = 0) -> None:
        """Say that bytes are not needed."""
        self._check(Command.TRIM, offset, count, flags)
        self._run(Request(Command.TRIM, offset, count, flags))

    @call(READY)
    def cache(self, count: int, offset: int, flags: int = 0) -> None:
        """Have the server bring bytes near."""
        self._check(Command.CACHE, offset, count, flags)
        self._run(Request(Command.CACHE, offset, count, flags))

    @call(READY)
    def flush(self, flags: int = 0) -> None:
        """Have the server make durable what was written."""
        self._check(Command.FLUSH, 0, 0, flags)
        self._run(Request(Command.FLUSH, 0, 0, flags))

    @call(READY)
    def block_status(self, count: int, offset: int, extent: Callable[..., Any], flags: int = 0) -> None:
        """Call ``extent(context, offset, [length, flags, ...], error)`` for each context that was negotiated."""
        if self._strict & n.STRICT_COMMANDS:
            if self._mode is Mode.SIMPLE:
                raise Trouble("server does not support structured replies", errno.ENOTSUP)
            if not self._contexts:
                raise Trouble(
                    "did not negotiate any metadata contexts, either you did not call nbd_add_meta_context before "
                    "connecting or the server does not support it",
                    errno.ENOTSUP,
                )
        self._check(Command.BLOCK_STATUS, offset, count, flags)
        request = Request(Command.BLOCK_STATUS, offset, count, flags)
        request.wanted = frozenset(self._contexts)
        self._run(request)
        for number, (lengths, states) in request.extents.items():
            entries = [value for pair in zip(lengths, states, strict=True) for value in pair]
            self._tell(Command.BLOCK_STATUS, extent, self._contexts[number], offset, entries)

    # ── what they share ──────────────────────────────────────────────────────────────────────────────────────

    def _check(self, command: Command, offset: int, count: int, flags: int, more: int = 0) -> None:
        """Refuse what the server would, as far as the strict mode says; see ``set_strict_mode``."""
        strict, offered = self._strict, self._told().flags
        if strict & n.STRICT_FLAGS and flags & ~(_FLAGS[command] | more):
            raise Trouble(f"flags: invalid value for flag: {flags:#x}", errno.EINVAL)
        if strict & n.STRICT_COMMANDS:
            self._check_offered(command, offered)
        if strict & n.STRICT_FLAGS:
            for flag, offer, name in _MODIFIERS:
                if flags & flag and not offered & offer:
                    raise Trouble(f"server does not support {name}", errno.EINVAL)
        if not 0 <= flags < 1 << 16 or not 0 <= count < 1 << 64 or not 0 <= offset < 1 << 64:
            raise Trouble("request out of bounds", errno.EINVAL)
        if command != Command.FLUSH:
            self._check_range(command, offset, count, strict)

    def _check_range(self, command: Command, offset: int, count: int, strict: int) -> None:
        if strict & n.STRICT_ZERO_SIZE and not count:
            raise Trouble("count cannot be 0", errno.EINVAL)
        if strict & n.STRICT_BOUNDS and offset + count > self._told().size:
            raise Trouble("request out of bounds", errno.ENOSPC if command in _CHANGES else errno.EINVAL)
        sizes = self._told().sizes
        if strict & n.STRICT_ALIGN and sizes is not None and (offset % sizes[0] or count % sizes[0]):
            raise Trouble("request is unaligned", errno.EINVAL)
        if command in (Command.READ, Command.WRITE) and count > _MOST:
            raise Trouble(f"request too large: maximum request size is {_MOST}", errno.ERANGE)
        if count >= 1 << 32 and self._mode is not Mode.EXTENDED:
            raise Trouble(f"request too large: maximum request size is {(1 << 32) - 1}", errno.ERANGE)

    def _check_offered(self, command: Command, offered: int) -> None:
        if command == Command.WRITE:
            if offered & ExportFlag.READ_ONLY:
                raise Trouble("server does not support write operations", errno.EPERM)
        elif command in _OFFERS and not offered & _OFFERS[command][0]:
            raise Trouble(f"server does not support {_OFFERS[command][1]} operations", errno.EINVAL)

    def _run(self, request: Request, payload: memoryview | None = None) -> None:
        connection = self._connection
        if connection is None:
            raise Trouble("there is no connection", errno.ENOTCONN)
        name = _COMMANDS[Command(request.command)]
        try:
            connection.call(request, payload)
        except ReplyError as error:
            raise Trouble(f"{name}: command failed", error.errno) from error
        except ConnectionLostError as error:
            self.state = DEAD
            raise Trouble(f"{name}: command failed", errno.ENOTCONN) from error
        except RemoteProtocolError as error:
            self.state = DEAD
            raise Trouble(f"{name}: {error.message}", errno.EPROTO) from error

    def _tell(self, command: Command, callback: Callable[..., Any], *words: Any, error: int = 0) -> None:
        """Call back; what goes wrong there is shown as Python shows it, and fails the command."""
        number = ctypes.c_int(error)
        try:
            answer = callback(*words, number)
        except Exception:
            sys.excepthook(*sys.exc_info())
            answer = -1
        if answer is not None and answer == -1:
            raise Trouble(f"{_COMMANDS[command]}: command failed", number.value or errno.EPROTO)
