# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""One client of a loop, from greeting to end: who is in charge of its socket, and when it is closed.

::

    Negotiation ──STARTTLS──> TLS handshake ──> Negotiation ──GO──> Serving ──DISC, end──> ending ──> closed

Nothing is read from a client that does not take its replies: while the sender is blocked or too much of this
client is under way, its socket is not polled for reading.
"""

from __future__ import annotations

import logging
import select
import time
from typing import TYPE_CHECKING, Final

from vmdkit.errors import RemoteProtocolError
from vmdkit.nbd.commands import Commands
from vmdkit.nbd.fastpath import quick
from vmdkit.nbd.negotiation import Negotiation, State
from vmdkit.nbd.sender import Outbox, Sender
from vmdkit.nbd.serving import Serving
from vmdkit.nbd.serving_writes import WriteServing, write_turns
from vmdkit.nbd.transport import PlainTransport, TlsTransport, Transport
from vmdkit.nbd.turn import Lane, turns

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmdkit.nbd.loop import Loop
    from vmdkit.nbd.turn import Turn

_log = logging.getLogger(__name__)

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR


class Connection:
    """A client; all methods run in the loop's thread."""

    def __init__(self, loop: Loop, sock: socket.socket, peer: str) -> None:
        self._loop = loop
        self._plain = PlainTransport(sock)
        self._transport: Transport = self._plain
        self._securing: TlsTransport | None = None  # during a TLS handshake
        self._sender = Sender(self._transport)
        self._negotiation = Negotiation(loop.config.exports, loop.config.tls_mode)
        self._serving: Serving | None = None
        self._lane: Lane | None = None  # none for TLS, and where writing is allowed
        self._turn: Turn | None = None  # what handles events while nothing holds the client up
        self._ending = False
        self.interest = 0  # what the loop polls for; the loop's own note
        self.deadline = time.monotonic() + loop.config.handshake_seconds
        self.peer = peer
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._transport.fileno()

    @property
    def negotiated(self) -> bool:
        """Whether the handshake is over."""
        return self._serving is not None

    # ── what the loop calls; nothing that concerns one client is ever raised to it ───────────────────────────

    def start(self) -> None:
        """Say hello."""
        self._guarded(self._greet)

    def event(self, mask: int) -> bool:
        """Handle what poll reported; returns as ``turn.turns`` says."""
        try:
            single = self._event(mask)
            self._settle()
        except Exception as error:
            self.failed(error)
            return False
        return single

    def rest(self, at: int, stop: int, fill: int, sent: int) -> bool:
        """Go on where a turn ended."""
        lane, serving = self._lane, self._serving
        if lane is None or serving is None:  # for mypy: without them there are no turns
            return False
        piece, lane.piece = lane.piece, None
        try:
            single = serving.rest(at, stop, fill, sent, piece)
            self._settle()
        except Exception as error:
            self.failed(error)
            return False
        return single

    def finished(self, deliver: Callable[[], None]) -> None:
        """Take the result of a pool job, then go on with what was held back."""
        self._guarded(lambda: self._deliver(deliver))

    def failed(self, error: Exception) -> None:
        """End it because of an error; returns to the loop in any case."""
        if isinstance(error, RemoteProtocolError):
            self.close(f"broke the protocol: {error}")
        elif isinstance(error, OSError):  # the peer went away, or TLS failed
            _log.debug("client %s: connection lost: %s", self.peer, error)
            self.close("" if self.negotiated else f"connection lost: {error}")
        else:
            _log.error("client %s: this is a bug in the server, please report it: %r", self.peer, error, exc_info=error)
            self.close()

    def close(self, why: str = "") -> None:
        """End it now. Jobs in the pool run to their end; their replies are dropped."""
        if self.closed:
            return
        self.closed = True
        if why:
            _log.info("client %s: %s", self.peer, why)
        if self._serving is not None:
            self._serving.close()
        self._sender.drop()
        self._loop.forget(self)
        (self._securing or self._transport).close()

    # ── inside the guard ─────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, action: Callable[[], object]) -> None:
        if self.closed:
            return
        try:
            action()
            self._settle()
        except Exception as error:
            self.failed(error)

    def _greet(self) -> None:
        self._sender.send(self._negotiation.greeting())

    def _event(self, mask: int) -> bool:
        if self._securing is not None:
            self._secure(self._securing)
            return False
        if self._sender.blocked:
            self._sender.flush()
            if self._serving is not None and not self._sender.blocked:
                self._serving.resume()
        if mask & _READ and self._wants_read():
            return self._readable()
        if mask & _GONE:
            raise ConnectionResetError("the peer is gone")
        return False

    def _deliver(self, deliver: Callable[[], None]) -> None:
        deliver()
        if self._serving is not None:
            self._serving.resume()

    def _wants_read(self) -> bool:
        if self._ending:
            return False
        if self._serving is None:
            return not self._sender.blocked
        return self._serving.wants_read

    def _settle(self) -> None:
        """Decide what to wait for; close what is finished."""
        if self._securing is not None:
            self._loop.watch(self, _WRITE if self._securing.wants_write else _READ, self.event)
            return
        serving = self._serving
        if serving is not None and serving.ended:
            self._ending = True
        if self._ending and not self._sender.blocked and (serving is None or serving.commands.idle):
            self.close()
            return
        mask = _WRITE if self._sender.blocked else 0
        if self._wants_read():
            mask |= _READ
            if self._transport.waiting():  # decrypted already, so poll will never tell; in turn with the others
                self._loop.call(self._read_again)
        turn = self._turn if mask == _READ and serving is not None and serving.between else None
        self._loop.watch(self, mask, turn or self.event)

    def _read_again(self) -> None:
        self._guarded(lambda: self._wants_read() and self._readable())

    def _readable(self) -> bool:
        if self._serving is not None:
            return self._serving.readable(self._transport)
        inbox = self._loop.inbox
        while not self._ending and self._serving is None and self._securing is None and not self._sender.blocked:
            got = self._transport.recv_into(inbox)
            if got is None:
                break
            if not got:
                self._ending = True
                break
            self._negotiate(inbox[:got])
        return False

    def _negotiate(self, data: memoryview) -> None:
        negotiation = self._negotiation
        reply = negotiation.feed(data)
        if reply:
            self._sender.send(reply)
        if negotiation.state is State.CLOSED:
            _log.info("client %s: %s", self.peer, negotiation.reason)
            self._ending = True
        elif negotiation.state is State.TLS:
            self._start_tls()
        elif negotiation.state is State.TRANSMISSION:
            self._serve()

    def _start_tls(self) -> None:
        context = self._loop.config.tls_context
        if context is None or self._sender.blocked:  # a peer that does not take even the acknowledgement
            raise RemoteProtocolError("STARTTLS cannot go on")
        self._securing = TlsTransport(self._plain, context)

    def _secure(self, transport: TlsTransport) -> None:
        if transport.handshake():
            self._transport, self._securing = transport, None
            self._sender.rebase(transport)
            self._negotiation.restarted()
            self._readable()  # what came with the last record of the handshake

    def _serve(self) -> None:
        session = self._negotiation.session
        assert session is not None  # noqa: S101  # for mypy; the state says so
        loop = self._loop
        regions = loop.regions(session.export)
        outbox = Outbox(loop.outbox, self._sender)
        commands = Commands(session, regions, self._sender, outbox, loop.pool, loop.buffers, self)
        serve = quick(session, regions, loop.inbox, loop.outbox)
        plain = self._transport is self._plain
        if session.export.writable:
            writing = WriteServing(session, regions, serve, commands, outbox, loop.inbox, loop.buffers)
            self._serving, self._turn = writing, write_turns(writing, self._plain, self) if plain else None
        else:
            self._serving = Serving(session, serve, commands, outbox, loop.inbox, loop.buffers)
            if plain:
                self._lane = Lane(self._plain.sock, session, regions, loop.inbox, loop.outbox, serve)
                self._turn = turns(self._lane, self)
        loop.served(self)
        self._serving.begin(self._negotiation.leftover())
