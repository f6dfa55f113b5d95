# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The transmission phase of a client as a machine without input or output.

::

    begin(request) ─▶ header to send            wants() ─▶ memory to fill ─▶ filled(n) ─▶ requests that are done

    HEAD ──HEADS[mode, magic]──▶ PAYLOAD ──CHUNKS[command, type]──▶ HEAD        in the inbox, 64 KiB
                                    └── of a read ──▶ DATA ─────────▶ HEAD        in the caller's own buffer

A pair that is in neither table was not to be sent. Whatever a server says is held against the request it answers,
before memory is taken for it and before a byte of the caller's is touched: a reply that belongs to nothing, ranges
that leave the request, overlap or are missing, extents without length or past the end, contexts that were not agreed
on, each raise RemoteProtocolError, after which the connection is dead (users spec, A15).
"""

from __future__ import annotations

import os
import sys
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from vmdkit.errors import RemoteProtocolError, ReplyError
from vmdkit.kernels import ZEROS
from vmdkit.nbd import protocol as p
from vmdkit.nbd.protocol import Chunk, Command, CommandFlag, Error, Mode
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    import struct
    from _thread import LockType
    from collections.abc import Callable

    from vmdkit.nbd.client_negotiate import Agreement

# Limits of what a server may say.
MOST_EXTENTS: Final = MIB  # in one chunk; nbdkit sends that many
MOST_ERRORS: Final = 64  # chunks with an error in one reply; servers send one
_LONGEST_ERROR: Final = p.MAX_STRING + 64  # bytes of payload: a text, and what else a later protocol may add
_FEWEST_BYTES: Final = 256  # of a chunk, on average; the protocol says that servers should keep to 512
_INBOX: Final = 64 * KIB
LARGE: Final = 32 * KIB  # bytes; of a read from this size on nothing but headers passes through the inbox

_KNOWN_ERRORS: Final = frozenset(int(error) for error in Error)
_ERROR_BIT: Final = 0x8000
_DF, _REQ_ONE = int(CommandFlag.DF), int(CommandFlag.REQ_ONE)  # plain: testing a flag of an enum takes a microsecond
_NAMES: Final = {int(command): command.name.replace("_", " ").lower() for command in Command}

Extents = tuple["array[int]", "array[int]"]  # lengths and flags, side by side


class Request:
    """One request and what has come of it; used once."""

    __slots__ = (
        "command", "cookie", "count", "data", "done", "error", "errors", "extents", "flags", "length", "log", "offset",
        "parts", "pieces", "view", "wake", "wanted",
    )  # fmt: skip

    def __init__(self, command: int, offset: int, count: int, flags: int = 0, view: memoryview | None = None) -> None:
        self.command = command
        self.offset = offset
        self.count = count
        self.flags = flags
        self.length = count  # as the header says; of a block status with a payload, the payload's
        self.view = view  # where the bytes of a read go
        self.cookie = 0
        self.done = False
        self.error: Exception | None = None
        self.data = 0  # bytes of a read that have come
        self.parts = 0  # chunks that have come
        self.pieces: list[tuple[int, int]] = []  # what came of a read, as (start, end), ascending, joined
        self.errors: list[int] = []  # offsets of errors; -1 for none given
        self.wanted: frozenset[int] = frozenset()  # contexts that must answer
        self.extents: dict[int, Extents] = {}
        self.log: list[tuple[int, int, int, int]] | None = None  # chunk type, offset, length, error, where wanted
        self.wake: LockType | None = None  # the connection's

    def __str__(self) -> str:
        name = _NAMES.get(self.command, str(self.command))
        return f"the {name} of {self.count} bytes at {self.offset:#x}" if self.count else f"the {name}"


class Core:
    """The state of one connection. ``begin`` may be called by any thread that holds the connection's lock."""

    def __init__(self, peer: str, agreement: Agreement) -> None:
        self.peer = peer
        self.agreement = agreement
        self.pending: dict[int, Request] = {}
        self.large = 0  # reads under way whose bytes should not pass through the inbox; kept by the connection
        self._mode = agreement.mode
        self._request = p.EXTENDED_REQUEST if self._mode is Mode.EXTENDED else p.REQUEST
        self._magic = p.EXTENDED_REQUEST_MAGIC if self._mode is Mode.EXTENDED else p.REQUEST_MAGIC
        # Replies to what was never asked cannot be prepared by a server that does not know where we begin.
        self._cookie = int.from_bytes(os.urandom(8), "big") >> 1
        self._inbox = memoryview(bytearray(_INBOX))
        self._start = self._end = 0
        self._head = _HEAD_SIZES[self._mode]
        self._need = self._head  # bytes that the next step takes from the inbox
        self._step: Callable[[memoryview], None] = self._take_head
        self._sink: memoryview | None = None  # what is left of a payload that has a place of its own
        self._then: Callable[[], None] = self._nothing
        self._current: Request | None = None
        self._last = False  # whether the chunk at hand ends its reply
        self._chunk = (0, 0, 0)  # its type, the length of its payload, and what its handler wants to remember
        self._body: memoryview | None = None
        self._finished: list[Request] = []
        self._trouble: RemoteProtocolError | None = None  # what was wrong behind them

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, request: Request) -> bytes:
        """Number a request, expect its reply, and return the header to send."""
        self._cookie += 1
        request.cookie = self._cookie
        flags = request.flags
        if request.command == Command.WRITE and self._mode is Mode.EXTENDED:
            flags |= CommandFlag.PAYLOAD_LEN
        header = self._request.pack(
            self._magic, flags, request.command, request.cookie, request.offset, request.length
        )  # fmt: skip
        self.pending[request.cookie] = request
        return header

    def goodbye(self) -> bytes:
        """Return the request to disconnect; it has no reply."""
        return self._request.pack(self._magic, 0, Command.DISC, 0, 0, 0)

    # ── the driver's side ────────────────────────────────────────────────────────────────────────────────────

    def wants(self) -> memoryview:
        """Return memory for what comes next, never empty; all of it is wanted if ``exact()``."""
        if self._trouble is not None:
            raise self._trouble
        if self._sink is not None:
            return self._sink
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._inbox) - self._start < self._need:
            rest = bytes(self._inbox[self._start : self._end])
            self._inbox[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        if self.large:  # a head, and the offset behind it; what follows has a better place to go
            return self._inbox[self._end : self._start + max(self._need, self._head + 8)]
        return self._inbox[self._end :]

    def exact(self) -> bool:
        """Tell whether the reply goes on until all that is wanted is there."""
        return self._sink is not None

    def idle(self) -> bool:
        """Tell whether nothing has come of the next reply yet."""
        return self._sink is None and self._start == self._end and self._step == self._take_head

    def filled(self, count: int) -> list[Request]:
        """Take ``count`` bytes that were put where ``wants`` said; return the requests that are done now.

        Raises RemoteProtocolError; where replies were whole before what is wrong, by the next call of ``wants``.
        """
        try:
            self._parse(count)
        except RemoteProtocolError as error:
            if not self._finished:
                raise
            self._trouble = error
        if self._finished:
            finished, self._finished = self._finished, []
            return finished
        return []

    def _parse(self, count: int) -> None:
        if self._sink is not None:
            if count < len(self._sink):
                self._sink = self._sink[count:]
                return
            self._sink = None
            self._then()
        else:
            self._end += count
        while self._sink is None and self._end - self._start >= self._need:
            start = self._start
            self._start += self._need
            self._step(self._inbox[start : self._start])

    # ── heads ────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_head(self, head: memoryview) -> None:
        magic = int.from_bytes(head[:4], "big")
        found = HEADS.get((self._mode, magic))
        if found is None:
            due = " or ".join(f"{number:#x}" for mode, number in HEADS if mode is self._mode)
            raise self._broken(f"a reply begins with {magic:#x}; {due} was expected")
        layout, handler = found
        if layout.size > len(head):
            self._start -= len(head)
            self._need = layout.size
            return
        handler(self, *layout.unpack(head))

    def _simple(self, _magic: int, error: int, cookie: int) -> None:
        request = self._asked(cookie)
        if self._mode is not Mode.SIMPLE and (
            request.command == Command.READ or (request.command == Command.BLOCK_STATUS and not error)
        ):
            raise self._broken(f"a simple reply to {request}; with structured replies agreed on it must have parts")
        self._last = True
        if error:
            self._fail(request, error, "", -1)
        elif request.view is not None:
            request.data = request.count
            self._note(request, Chunk.OFFSET_DATA, request.offset, request.count)
            self._receive(request.view)
            return
        self._end_chunk()

    def _structured(self, _magic: int, flags: int, kind: int, cookie: int, length: int) -> None:
        self._begin_chunk(self._asked(cookie), flags, kind, length)

    def _extended(self, _magic: int, flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
        request = self._asked(cookie)
        if offset != request.offset:
            raise self._broken(f"a reply to {request} that speaks of {offset:#x}")
        self._begin_chunk(request, flags, kind, length)

    def _asked(self, cookie: int) -> Request:
        request = self.pending.get(cookie)
        if request is None:
            raise self._broken(f"a reply with cookie {cookie:#x}; no request that waits has it")
        self._current = request
        return request

    def _begin_chunk(self, request: Request, flags: int, kind: int, length: int) -> None:
        self._last = bool(flags & p.REPLY_DONE)
        request.parts += 1
        if request.parts > 64 + request.count // _FEWEST_BYTES:
            raise self._broken(f"{request.parts} chunks in reply to {request}")
        if kind & _ERROR_BIT:
            if not 6 <= length <= _LONGEST_ERROR:
                raise self._broken(f"an error of {length} bytes in reply to {request}; 6 to {_LONGEST_ERROR} are taken")
            self._payload(kind, length, length, self._error)
            return
        found = CHUNKS.get((request.command, kind)) or CHUNKS.get((-1, kind))
        if found is None:
            raise self._broken(f"a chunk of type {kind} in reply to {request}, where it does not belong")
        handler, least, most = found
        if not least <= length <= most(request):
            raise self._broken(
                f"a chunk of type {kind} with {length} bytes in reply to {request}; {least} to {most(request)} may be"
            )
        handler(self, request, kind, length)

    # ── payloads ─────────────────────────────────────────────────────────────────────────────────────────────

    def _payload(self, kind: int, length: int, need: int, step: Callable[[memoryview], None]) -> None:
        """Have ``step`` called with the next ``need`` bytes of a payload of ``length``."""
        self._chunk = kind, length, 0
        if need <= len(self._inbox):
            self._need, self._step = need, step
            return
        body = self._body = memoryview(bytearray(need))  # bounded by what CHUNKS allows

        def taken() -> None:
            self._body = None
            step(body)

        self._receive(body, taken)

    def _receive(self, view: memoryview, then: Callable[[], None] | None = None) -> None:
        """Fill ``view`` from the inbox, then straight from the driver; go on with ``then``, or end the chunk."""
        have = min(self._end - self._start, len(view))
        view[:have] = self._inbox[self._start : self._start + have]
        self._start += have
        then = then or self._end_chunk
        if have == len(view):
            then()
        else:
            self._sink, self._then = view[have:], then

    def _none(self, request: Request, kind: int, length: int) -> None:
        if not self._last:
            raise self._broken(f"an empty chunk in reply to {request} that does not end it")
        self._end_chunk()

    def _data(self, request: Request, kind: int, length: int) -> None:
        self._payload(kind, length, 8, self._data_offset)

    def _data_offset(self, payload: memoryview) -> None:
        request, (_, length, _) = self._request_at_hand(), self._chunk
        offset, length = int.from_bytes(payload, "big"), length - 8
        start = self._cover(request, offset, length)
        self._note(request, Chunk.OFFSET_DATA, offset, length)
        if request.view is not None:
            self._receive(request.view[start : start + length])

    def _hole(self, request: Request, kind: int, length: int) -> None:
        self._payload(kind, length, length, self._hole_body)

    def _hole_body(self, payload: memoryview) -> None:
        request = self._request_at_hand()
        offset, length = int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big")
        start = self._cover(request, offset, length)
        self._note(request, Chunk.OFFSET_HOLE, offset, length)
        if request.view is not None:
            for at in range(start, start + length, len(ZEROS)):
                step = min(len(ZEROS), start + length - at)
                request.view[at : at + step] = ZEROS[:step]
        self._end_chunk()

    def _status(self, request: Request, kind: int, length: int) -> None:
        if (kind == Chunk.BLOCK_STATUS_EXT) is not (self._mode is Mode.EXTENDED):
            raise self._broken(f"a chunk of type {kind} in reply to {request}; the other width was agreed on")
        self._payload(kind, length, length, self._status_body)

    def _status_body(self, payload: memoryview) -> None:
        request, (kind, length, _) = self._request_at_hand(), self._chunk
        context = int.from_bytes(payload[:4], "big")
        if context not in request.wanted:
            raise self._broken(f"the status of context number {context}, which was not agreed on, or not asked for")
        if context in request.extents:
            raise self._broken(f"the status of context number {context} twice in one reply")
        wide = kind == Chunk.BLOCK_STATUS_EXT
        head, each = (8, 16) if wide else (4, 8)
        count, rest = divmod(length - head, each)
        if rest or (wide and int.from_bytes(payload[4:8], "big") != count):
            raise self._broken(f"the status of a context in {length} bytes, which are no whole number of extents")
        request.extents[context] = self._extents(request, payload[head:], "Q" if wide else "I")
        self._end_chunk()

    def _extents(self, request: Request, payload: memoryview, code: str) -> Extents:
        words = array(code)
        words.frombytes(payload)
        if sys.byteorder == "little":
            words.byteswap()
        lengths, flags = words[0::2], words[1::2]
        total = sum(lengths)
        if 0 in lengths:
            raise self._broken(f"an extent of no bytes in reply to {request}")
        if total - lengths[-1] >= request.count:
            raise self._broken(f"more extents than {request} has bytes")
        if request.offset + total > self.agreement.size:
            raise self._broken(
                f"extents up to {request.offset + total:#x} in reply to {request}; the export has "
                f"{self.agreement.size:#x} bytes"
            )
        if request.flags & _REQ_ONE and (len(lengths) != 1 or total > request.count):
            raise self._broken(f"{len(lengths)} extents of {total} bytes in reply to {request}, which asked for one")
        return lengths, flags

    def _error(self, payload: memoryview) -> None:
        request, (kind, length, _) = self._request_at_hand(), self._chunk
        number, size = p.ERROR_DATA.unpack_from(payload)
        offset, fixed = -1, p.ERROR_DATA.size
        if kind == Chunk.ERROR_OFFSET:
            fixed += 8
        if size > min(length - fixed, p.MAX_STRING):
            raise self._broken(f"an error in reply to {request} with a text of {size} bytes in a chunk of {length}")
        text = bytes(payload[6 : 6 + size]).decode("utf-8", "replace")
        if not number:
            raise self._broken(f"an error chunk in reply to {request} that says 0, which is no error")
        if kind == Chunk.ERROR_OFFSET:
            offset = int.from_bytes(payload[6 + size : 14 + size], "big")
            if not request.offset <= offset < request.offset + max(request.count, 1):
                raise self._broken(f"an error at {offset:#x} in reply to {request}")
        self._fail(request, number, text, offset)
        self._end_chunk()

    # ── what has come of a request ───────────────────────────────────────────────────────────────────────────

    def _request_at_hand(self) -> Request:
        request = self._current
        if request is None:  # cannot be: a payload follows its head
            raise self._broken("a payload that belongs to nothing")
        return request

    def _cover(self, request: Request, offset: int, length: int) -> int:
        """Mark a part of a read as arrived; return where it begins in the buffer."""
        start, end = offset - request.offset, offset - request.offset + length
        if start < 0 or end > request.count or not length:
            raise self._broken(f"{length} bytes at {offset:#x} in reply to {request}")
        if request.flags & _DF and request.data:
            raise self._broken(f"a second piece in reply to {request}, which asked for one")
        for error in request.errors:
            if offset <= error < offset + length:
                raise self._broken(f"bytes at {offset:#x} in reply to {request}, after an error at {error:#x}")
        pieces = request.pieces
        if not pieces or start > pieces[-1][1]:
            pieces.append((start, end))
        elif start == pieces[-1][1]:
            pieces[-1] = pieces[-1][0], end
        else:
            self._cover_between(request, start, end)
        request.data += length
        return start

    def _cover_between(self, request: Request, start: int, end: int) -> None:
        pieces = request.pieces
        at = bisect_right(pieces, (start, start))
        before = pieces[at - 1] if at else (-1, -1)
        after = pieces[at] if at < len(pieces) else (request.count + 1, request.count + 1)
        if before[1] > start or after[0] < end:
            raise self._broken(f"bytes at {request.offset + start:#x} twice in reply to {request}")
        low, high = (at - 1, before[0]) if before[1] == start else (at, start)
        pieces[low : at + (after[0] == end)] = [(high, after[1] if after[0] == end else end)]

    def _note(self, request: Request, kind: int, offset: int, length: int, error: int = 0) -> None:
        if request.log is not None:
            request.log.append((kind, offset, length, error))

    def _fail(self, request: Request, number: int, text: str, offset: int) -> None:
        if len(request.errors) >= MOST_ERRORS:
            raise self._broken(f"more than {MOST_ERRORS} errors in reply to {request}")
        number = number if number in _KNOWN_ERRORS else int(Error.EINVAL)  # as the protocol says
        request.errors.append(offset)
        self._note(request, Chunk.ERROR, max(offset, 0), 0, number)
        if request.error is None:
            said = f": {text}" if text else ""
            request.error = ReplyError(
                f"the server could not do {request}: {os.strerror(number)}{said}", number, path=self.peer,
                offset=offset if offset >= 0 else None,
            )  # fmt: skip

    def _end_chunk(self) -> None:
        self._need, self._step = self._head, self._take_head
        request, self._current = self._request_at_hand(), None
        if not self._last:
            return
        if request.error is None:
            if request.view is not None and request.data != request.count:
                raise self._broken(f"only {request.data} bytes in reply to {request}, and no error")
            missing = request.wanted - request.extents.keys()
            if missing:
                names = ", ".join(self.agreement.contexts[number] for number in sorted(missing))
                raise self._broken(f"no status of {names} in reply to {request}, and no error")
        del self.pending[request.cookie]
        self._finished.append(request)

    def _nothing(self) -> None:
        """Stand where nothing is to be done."""

    def _broken(self, message: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"the server broke the protocol: {message}", path=self.peer)


_HEAD_SIZES: Final = {Mode.SIMPLE: 16, Mode.STRUCTURED: 16, Mode.EXTENDED: 32}

HEADS: Final[dict[tuple[Mode, int], tuple[struct.Struct, Callable[..., None]]]] = {
    (Mode.SIMPLE, p.SIMPLE_REPLY_MAGIC): (p.SIMPLE_REPLY, Core._simple),
    (Mode.STRUCTURED, p.SIMPLE_REPLY_MAGIC): (p.SIMPLE_REPLY, Core._simple),
    (Mode.STRUCTURED, p.STRUCTURED_REPLY_MAGIC): (p.CHUNK, Core._structured),
    (Mode.EXTENDED, p.EXTENDED_REPLY_MAGIC): (p.EXTENDED_CHUNK, Core._extended),
}

# (command, type of chunk) -> what takes it, and the least and the most bytes of its payload; -1 is any command
CHUNKS: Final[
    dict[tuple[int, int], tuple[Callable[[Core, Request, int, int], None], int, Callable[[Request], int]]]
] = {
    (-1, Chunk.NONE): (Core._none, 0, lambda _: 0),
    (Command.READ, Chunk.OFFSET_DATA): (Core._data, 9, lambda request: 8 + request.count),
    (Command.READ, Chunk.OFFSET_HOLE): (Core._hole, 12, lambda _: 12),
    (Command.BLOCK_STATUS, Chunk.BLOCK_STATUS): (Core._status, 12, lambda _: 4 + 8 * MOST_EXTENTS),
    (Command.BLOCK_STATUS, Chunk.BLOCK_STATUS_EXT): (Core._status, 24, lambda _: 8 + 16 * MOST_EXTENTS),
}
