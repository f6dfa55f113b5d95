# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The transmission phase of one client: cut the stream into requests, keep writes flowing.

::

    socket ──> inbox (the loop's) ──> quick ────────────────────> outbox (the loop's) ──> sender
                  │   tail: what is   │ what it leaves: Commands ───^
                  │   not complete    └──> pool ─────────────────────────────────────────────^
                  └──> piece: a payload that did not come whole, written MIB by MIB

A large write is never held as a whole: its pieces are written as they arrive, cut at multiples of a MiB so that
grains stay whole. The protocol does not promise that a write is atomic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmdkit.nbd.protocol import Command
from vmdkit.nbd.transmission import failure, parse, refuse, request_header
from vmdkit.units import MIB

if TYPE_CHECKING:
    from vmdkit.nbd.buffers import Buffers
    from vmdkit.nbd.commands import Commands
    from vmdkit.nbd.fastpath import Quick
    from vmdkit.nbd.sender import Outbox
    from vmdkit.nbd.session import Session
    from vmdkit.nbd.transmission import Request
    from vmdkit.nbd.transport import Transport

BURST: Final = 64  # batches served before other clients get their turn


class Serving:
    """One client after its handshake."""

    def __init__(
        self, session: Session, serve: Quick, commands: Commands, outbox: Outbox, inbox: memoryview, buffers: Buffers
    ) -> None:
        self._session = session
        self._header = request_header(session.mode)
        self._serve = serve
        self.commands = commands
        self._outbox = outbox
        self._inbox = inbox
        self._buffers = buffers
        self._tail = b""
        self._skip = 0  # bytes of a refused payload still to come
        self._refusal = b""  # the reply that is due then: libnbd is confused by one that comes before
        self._writing: _Writing | None = None
        self.ended = False  # DISC, or end of stream

    def begin(self, leftover: bytes) -> None:
        """Serve what came behind the handshake."""
        self._tail = leftover
        self.resume()

    @property
    def wants_read(self) -> bool:
        """Whether the socket should be polled for reading."""
        return not self.ended and not self.commands.held

    def resume(self) -> None:
        """Go on after the socket took replies or a job ended."""
        self.commands.advance()
        if self._tail and self.wants_read:
            count = len(self._tail)
            self._inbox[:count] = self._tail
            self._process(self._drop(count), count)

    @property
    def between(self) -> bool:
        """Whether the next bytes of the client begin a request, so that turns may take them."""
        return not (self._tail or self._skip or self._writing)

    def rest(self, at: int, stop: int, fill: int, sent: int, piece: tuple[int, int, int] | None) -> bool:
        """Go on where a turn ended: see ``turn.Owner``."""
        if not stop:
            self.ended = True
            return False
        if at != stop and piece is None and not sent:
            self._outbox.fill = fill  # the long way adds to it
        else:
            self.commands.send(self._outbox.view[sent:fill], piece)
        if self.commands.held:
            self._tail = bytes(self._inbox[at:stop])
        elif at != stop:
            return self._process(at, stop)
        return False

    def readable(self, transport: Transport) -> bool:
        """Take what the client sent; returns whether the last of it was a single request, complete."""
        inbox, single = self._inbox, False
        for _ in range(BURST):
            if self._writing is not None:
                if not self._receive(self._writing, transport):
                    return False
                single = self._writing is None
                continue
            have = len(self._tail)
            if have:
                inbox[:have] = self._tail
            got = transport.recv_into(inbox[have:] if have else inbox)
            if got is None:
                return single
            if got <= 0:
                self.ended = True
                return False
            single = self._process(self._drop(have + got), have + got)
            if not self.wants_read or (have + got < len(inbox) and not transport.waiting()):
                return single
        return False

    def _process(self, at: int, stop: int) -> bool:
        """Serve what stands complete in ``inbox[at:stop]``; keep the rest. Returns whether it was one request."""
        inbox, outbox, header = self._inbox, self._outbox, self._header
        served = 0
        while True:
            before = at
            at, outbox.fill = self._serve(at, stop, outbox.fill)
            served += (at - before) // header
            if stop - at < header:
                break
            self.commands.more_wait = stop - at >= 2 * header
            after = self._one(parse(self._session.mode, inbox, at), at + header, stop)
            if after < 0:
                break
            at = after
            served += 1
            if self.ended or self.commands.held:
                break
        self._tail = bytes(inbox[at:stop]) if at < stop and not self.ended else b""
        outbox.flush()
        return served == 1 and at == stop

    def _drop(self, stop: int) -> int:
        """Pass over what remains of a refused payload; at its end, reply."""
        drop = min(self._skip, stop)
        self._skip -= drop
        if self._refusal and not self._skip:
            self._outbox.put(self._refusal)
            self._refusal = b""
        return drop

    def _one(self, request: Request, body: int, stop: int) -> int:
        """Serve one request whose payload begins at ``body``; returns where the next begins, -1 if incomplete."""
        refusal = None if request.command == Command.DISC else refuse(self._session, request)
        here = min(request.payload, stop - body)
        if refusal is not None:
            reply = failure(self._session, request, *refusal)
            self._skip = request.payload - here
            if self._skip:
                self._refusal = reply
            else:
                self._outbox.put(reply)
        elif request.command == Command.DISC:
            self.ended = True
        elif request.command == Command.WRITE:
            self._write(request, self._inbox[body : body + here])
        elif here < request.payload:  # a filter of BLOCK_STATUS: small, wait for it
            return -1
        else:
            self.commands.execute(request, bytes(self._inbox[body : body + here]))
        return body + here

    # ── writes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, request: Request, data: memoryview) -> None:
        """Write a payload that is here, or begin to receive it."""
        if len(data) == request.payload:
            self.commands.written(request, self.commands.write(data, request.offset) if len(data) else None)
            return
        self._writing = writing = _Writing(request, self._buffers)
        while data:
            step = min(len(data), writing.due - writing.filled)
            writing.view[writing.filled : writing.filled + step] = data[:step]
            self._received(writing, step)
            data = data[step:]

    def _receive(self, writing: _Writing, transport: Transport) -> bool:
        """Receive more of a payload; False where nothing more is to be taken now."""
        got = transport.recv_into(writing.view[writing.filled : writing.due])
        if not got:
            self.ended = got is not None
            return False
        self._received(writing, got)
        return self.wants_read

    def _received(self, writing: _Writing, count: int) -> None:
        """Count what arrived; write the piece when it is complete, reply when all is."""
        writing.filled += count
        if writing.filled < writing.due:
            return
        if writing.error is None:
            writing.error = self.commands.write(writing.view[: writing.due], writing.offset)
        if writing.next_piece():
            return
        self._writing = None
        writing.close()
        self.commands.written(writing.request, writing.error)
        self._outbox.flush()

    def close(self) -> None:
        """Give back what is held; the client is gone."""
        self.commands.gone = True
        self._tail = b""
        if self._writing is not None:
            self._writing.close()
            self._writing = None


class _Writing:
    """A write whose payload is still arriving, and the piece of it that is being filled."""

    def __init__(self, request: Request, buffers: Buffers) -> None:
        self.request = request
        self.offset = request.offset
        self.error: Exception | None = None
        self.filled = 0
        self._end = request.offset + request.payload
        self._buffers = buffers
        self._buffer = buffers.take(min(request.payload, MIB))
        self.view = memoryview(self._buffer)
        self.due = self._piece()

    def _piece(self) -> int:
        """Return the length of the piece that begins at ``offset``."""
        return min(self._end - self.offset, MIB - self.offset % MIB)

    def next_piece(self) -> bool:
        """Move on; False at the end."""
        self.offset += self.due
        self.filled = 0
        self.due = self._piece()
        return self.due > 0

    def close(self) -> None:
        """Give the buffer back."""
        self.view.release()
        self._buffers.give(self._buffer)
