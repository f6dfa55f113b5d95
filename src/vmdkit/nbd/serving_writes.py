# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The transmission phase of a client that may write: whole requests, payload included, out of one large inbox.

::

    socket ──> inbox ──> quick, serve_writes, as long as either can ──> outbox ──> sender
               │  of this client alone, while a request of its is not complete; else the next client takes it
               └──> larger payloads are written MiB by MiB as they come (serving.py)

Requests stay where they were received: a grain goes from there to its file in one call. Moving what is not complete
to the front of the inbox is rare, since it has room for several of the usual requests.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

from vmdkit.nbd.fastpath import quick
from vmdkit.nbd.fastwrite import Writes, serve_writes
from vmdkit.nbd.protocol import Command
from vmdkit.nbd.serving import BURST, Serving
from vmdkit.nbd.transmission import parse, refuse
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from vmdkit.nbd.buffers import Buffers
    from vmdkit.nbd.commands import Commands
    from vmdkit.nbd.fastpath import Quick
    from vmdkit.nbd.regions import Regions
    from vmdkit.nbd.sender import Outbox
    from vmdkit.nbd.session import Session
    from vmdkit.nbd.transport import Transport
    from vmdkit.nbd.turn import Owner, Turn

_INBOX: Final = MIB
_WHOLE: Final = 512 * KIB  # bytes; a payload of more is not waited for
_FEW: Final = 32  # bytes of the reply to one write
_READ: Final = select.EPOLLIN


class WriteServing(Serving):
    """One client after its handshake, to whom the export is writable."""

    def __init__(
        self, session: Session, regions: Regions, serve: Quick, commands: Commands, outbox: Outbox, inbox: memoryview,
        buffers: Buffers,
    ) -> None:  # fmt: skip
        super().__init__(session, serve, commands, outbox, inbox, buffers)
        self._regions = regions
        self._writes = Writes(session, regions, commands)
        self._own: bytearray | None = None  # what ``_inbox`` shows, while this client has it
        self._bound: bytearray | None = None  # what ``_inbox`` and ``_serve`` were made for; nearly always the same
        self._at = self._stop = 0  # what of it was received and not served
        self._due = 0  # bytes that the request at ``_at`` has, as far as is known

    def begin(self, leftover: bytes) -> None:
        """Serve what came behind the handshake."""
        if leftover:
            self._take_inbox()
            self._inbox[: len(leftover)] = leftover
            self._stop = len(leftover)
        self.resume()

    def resume(self) -> None:
        """Go on after the socket took replies or a job ended."""
        self.commands.advance()
        if self._at < self._stop and self.wants_read:
            self._work()
        self._give_inbox()

    @property
    def between(self) -> bool:
        """Always: the turns of writers take what is not complete, too."""
        return True

    def readable(self, transport: Transport) -> bool:
        """Take what the client sent; returns whether more mostly comes at once."""
        soon = False
        for _ in range(BURST):
            if self._writing is not None:
                if not self._receive(self._writing, transport):
                    break
                soon = True
                continue
            room = self._room()
            got = transport.recv_into(room)
            if got is None:
                break
            if not got:
                self.ended = True
                break
            self._stop += got
            soon = self._work()
            if not self.wants_read or (self._writing is None and got < len(room) and not transport.waiting()):
                break
        self._give_inbox()
        return soon and self.wants_read

    def _take_inbox(self) -> None:
        if self._own is None:
            self._own = self._buffers.take(_INBOX)
            if self._own is not self._bound:
                self._bound, self._inbox = self._own, memoryview(self._own)
                self._serve = quick(self._session, self._regions, self._inbox, self._outbox.view)

    def _give_inbox(self) -> None:
        """Give the inbox back where nothing is left in it."""
        if self._own is not None and self._at == self._stop:
            self._buffers.give(self._own)
            self._own, self._at, self._stop = None, 0, 0

    def _room(self) -> memoryview:
        """Return where to receive to: behind what is there, with room for the rest of an incomplete request."""
        self._take_inbox()
        at, stop, inbox = self._at, self._stop, self._inbox
        if at == stop:
            self._at = self._stop = 0
            return inbox
        if at and at + max(self._due, self._header) > len(inbox):
            inbox[: stop - at] = inbox[at:stop]
            self._at, self._stop = 0, stop - at
        return inbox[self._stop :]

    def _work(self) -> bool:
        """Serve what stands complete in the inbox; returns whether more mostly comes at once."""
        outbox, header, writes = self._outbox, self._header, self._writes
        inbox, stop = self._inbox, self._stop
        if self._skip:
            self._at += self._drop(stop - self._at)
        self._due = served = 0
        while stop - self._at >= header:
            begun = self._at
            self._at, outbox.fill, error = serve_writes(writes, inbox, begun, stop, outbox.view, outbox.fill)
            if error is not None:
                request = parse(self._session.mode, inbox, self._at)
                self.commands.fail(request, error)
                self._at += header + request.payload
            elif self._at < stop:
                self._at, outbox.fill = self._serve(self._at, stop, outbox.fill)
            if self._at == begun and not self._long_way(begun, stop):
                break
            served += 1
            if self.ended or self.commands.held:
                break
        if self.ended:
            self._at = stop
        replies = outbox.fill
        outbox.flush()
        # Little was asked for, so the client waits for little; or it is sending the rest of a request.
        return self._at < stop or (served == 1 and replies <= _FEW)

    def _long_way(self, at: int, stop: int) -> bool:
        """Serve the one request at ``at`` that the hot loops have left; False where more of it has to come."""
        request = parse(self._session.mode, self._inbox, at)
        body = at + self._header
        waits = request.command == Command.WRITE and stop - body < request.payload <= _WHOLE
        if waits and refuse(self._session, request) is None:
            self._due = self._header + request.payload
            return False
        self.commands.more_wait = stop - at >= 2 * self._header
        after = self._one(request, body, stop)
        if after < 0:
            self._due = self._header + request.payload
            return False
        self._at = after
        return True

    def close(self) -> None:
        """Give back what is held; the client is gone."""
        super().close()
        self._at = self._stop
        self._give_inbox()
        self._bound = None


def write_turns(serving: WriteServing, transport: Transport, owner: Owner) -> Turn:
    """Return the handler of poll's reports for a client with a plain socket, as ``turn.turns``."""

    def turn(mask: int) -> bool:
        if mask != _READ:
            return owner.event(mask)
        try:
            soon = serving.readable(transport)
        except Exception as error:
            owner.failed(error)
            return False
        return soon if serving.wants_read else owner.event(0)

    return turn
