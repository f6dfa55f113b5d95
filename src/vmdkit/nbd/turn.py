# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""One turn of a client with a plain socket: receive once, serve what is simple, send once.

::

    recv ──> quick (fastpath.py) ──> send            nearly always all
               │  ^
               └──┘ a large read: its head joins the outbox, and sendfile follows

What is neither, and what the socket does not take, is left to the client's owner, and with it the next turns until
nothing is held up any more.
"""

from __future__ import annotations

import errno
import os
import select
from bisect import bisect_right
from socket import MSG_MORE
from typing import TYPE_CHECKING, Final, Protocol

from vmdkit.errors import VmdkitError
from vmdkit.nbd.fastpath import ROOM, SMALL, SPEECH, longest
from vmdkit.nbd.regions import DATA, SHIFT

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmdkit.nbd.fastpath import Quick
    from vmdkit.nbd.regions import Regions
    from vmdkit.nbd.session import Session

    Turn = Callable[[int], bool]

_READ: Final = select.EPOLLIN


class Owner(Protocol):
    """The connection that a lane belongs to. ``event`` and ``rest`` return as a turn does."""

    def event(self, mask: int) -> bool:
        """Handle what poll reported, the long way."""

    def rest(self, at: int, stop: int, fill: int, sent: int) -> bool:
        """Go on: ``inbox[at:stop]`` was not served, ``out[sent:fill]`` and then the lane's piece were not sent.

        ``stop`` is 0 at the end of the stream.
        """

    def failed(self, error: Exception) -> None:
        """End the connection."""


class Lane:
    """What a turn needs to know of a client, gathered once.

    ``piece`` is what of a file (descriptor, offset, count) has to follow the outbox where a turn ended early.
    """

    __slots__ = ("fd", "inbox", "maximum", "out", "piece", "recv_into", "regions", "send", "serve", "size", "speech")

    def __init__(
        self, sock: socket.socket, session: Session, regions: Regions, inbox: memoryview, out: memoryview, serve: Quick
    ) -> None:
        self.fd, self.recv_into, self.send = sock.fileno(), sock.recv_into, sock.send
        self.speech, self.maximum, self.size = SPEECH[session.mode], longest(session), session.export.device.size
        self.regions, self.inbox, self.out, self.serve = regions, inbox, out, serve
        self.piece: tuple[int, int, int] | None = None


def turns(lane: Lane, owner: Owner) -> Turn:
    """Return the handler of poll's reports for a client that nothing holds up.

    It returns whether just one request came and was served: then the next mostly comes at once.
    """
    recv_into, send, serve, inbox, out = lane.recv_into, lane.send, lane.serve, lane.inbox, lane.out
    one = lane.speech.layout.size

    def turn(mask: int) -> bool:
        if mask != _READ:
            return owner.event(mask)
        at = fill = sent = 0
        stop = -1
        try:
            stop = recv_into(inbox)
            at, fill = serve(0, stop, 0)
            if at < stop:
                at, fill, sent = _large(lane, at, stop, fill)
            if fill and at == stop and lane.piece is None:  # else the long way adds to it
                sent = send(out[:fill])
        except BlockingIOError:  # the socket is full, or poll was wrong
            pass
        except Exception as error:
            owner.failed(error)
            return False
        if sent == fill and at == stop and stop and lane.piece is None:
            return stop == one
        return stop >= 0 and owner.rest(at, stop, fill, sent)

    return turn


def _large(lane: Lane, at: int, stop: int, fill: int) -> tuple[int, int, int]:
    """Go on where ``serve`` stopped, as long as there it is always a large read; returns ``(at, fill, sent)``.

    Where the socket does not take all, ``lane.piece`` is left, and ``out[sent:fill]`` goes before it.
    """
    header = lane.speech.layout.size
    while stop - at >= header and (head := _begin(lane, at, fill)):
        at, fill = at + header, fill + head
        sent = _send_piece(lane, fill)
        if lane.piece is not None:
            return at, fill, sent
        at, fill = lane.serve(at, stop, 0)
    return at, fill, 0


def _begin(lane: Lane, at: int, fill: int) -> int:
    """Write the head of a read that is one run of a file, if that is in the page cache; sendfile would wait.

    Returns its length, 0 for what is not such a read.
    """
    speech, regions = lane.speech, lane.regions
    word, cookie, offset, count = speech.layout.unpack_from(lane.inbox, at)
    if word != speech.read or not SMALL <= count <= min(lane.maximum, lane.size - offset):
        return 0
    if len(lane.out) - fill < ROOM:
        return 0
    try:
        starts, runs = regions.known.get(offset >> SHIFT) or regions.load(offset >> SHIFT)
        end, what, fd, delta = runs[bisect_right(starts, offset) - 1]
        if what != DATA or offset + count > end:
            return 0
        nowait = regions.nowait
        if nowait and os.preadv(fd, (regions.probe,), offset + delta + count - 1, nowait) != 1:
            return 0
    except (OSError, VmdkitError):
        return 0
    lane.piece = fd, offset + delta, count
    return speech.data(lane.out, fill, cookie, offset, count)


def _send_piece(lane: Lane, fill: int) -> int:
    """Send ``out[:fill]`` and the piece behind it; returns what went of the outbox, leaves the rest in ``piece``."""
    try:
        sent = lane.send(lane.out[:fill], MSG_MORE)
    except BlockingIOError:
        return 0
    if sent < fill or lane.piece is None:
        return sent
    fd, at, count = lane.piece
    try:
        while gone := os.sendfile(lane.fd, fd, at, count):
            at, count = at + gone, count - gone
            if not count:
                lane.piece = None
                return sent
    except BlockingIOError:
        lane.piece = fd, at, count
        return sent
    raise OSError(errno.EIO, "a file ends before what a reply has promised")
