# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The hot loop: receive, answer small plain reads, send. Everything else is somebody else's.

``serve_reads`` takes as many requests as it can from the front of an inbox and appends their replies to an outbox.
It stops, without having touched it, at the first request that is not wholly simple: another command, a flag, a
range that is refused, large, spread over several runs, not in a plain file, or not in the page cache. Whoever
calls it handles that one request the long way and comes back. ``serve_turn`` puts the system calls around it.
Compiled functions of the same signatures could take their places.

Costs in CPython 3.11, warm, 4 KiB (bench/bench_nbd.py): unpacking 0.2 us, look-up 0.3 us, preadv 0.8 us, packing
0.2 us; the two system calls around a batch are shared by its requests.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from socket import MSG_MORE
from typing import TYPE_CHECKING, Final

from vmdkit.errors import VmdkitError
from vmdkit.nbd.protocol import (
    DATA_CHUNK,
    EXTENDED_DATA_CHUNK,
    EXTENDED_HOLE_CHUNK,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_MAGIC,
    HOLE_CHUNK,
    REPLY_DONE,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STATUS_HEAD,
    STATUS_PAIR,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Mode,
)
from vmdkit.nbd.regions import DATA, SHIFT, ZERO
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmdkit.nbd.regions import Regions
    from vmdkit.nbd.session import Session

SMALL: Final = 96 * KIB  # from here on sendfile wins over copying twice
LONGEST_HEAD: Final = EXTENDED_HOLE_CHUNK.size  # bytes of the largest reply that carries no data
NOWAIT_REFUSED: Final = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))

# Plain numbers: comparing enumeration members would cost more than the rest of the test.
SIMPLE, STRUCTURED, EXTENDED = int(Mode.SIMPLE), int(Mode.STRUCTURED), int(Mode.EXTENDED)
DONE, OFFSET_DATA, OFFSET_HOLE = REPLY_DONE, int(Chunk.OFFSET_DATA), int(Chunk.OFFSET_HOLE)
BLOCK_STATUS_CHUNK, READ, BLOCK_STATUS = int(Chunk.BLOCK_STATUS), int(Command.READ), int(Command.BLOCK_STATUS)
MOST_QUICK: Final = 4 * MIB  # bytes; a longer question about status goes the long way
MOST_RUNS: Final = 64  # runs in a quick answer
_MOST_LUCK: Final = 8  # two of three tries have to succeed; this many more make up for a bad spell
_REST: Final = 50  # requests without trying, where they do not
ROOM: Final = 1024  # bytes; more than any reply written by _take

LAYOUTS: Final = (  # by mode: the request, its magic, the bytes before the data of a reply
    (REQUEST, REQUEST_MAGIC, SIMPLE_REPLY.size),
    (REQUEST, REQUEST_MAGIC, DATA_CHUNK.size),
    (EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC, EXTENDED_DATA_CHUNK.size),
)


def serve_reads(
    mode: int, size: int, regions: Regions, inbox: memoryview, at: int, stop: int, out: memoryview, fill: int
) -> tuple[int, int]:
    """Answer reads at ``inbox[at:stop]`` into ``out[fill:]``; returns the new ``at`` and ``fill``.

    ``size`` is the export's in bytes. Does not raise for what a client sends or a file refuses: it stops.
    """
    known, preadv, nowait = regions.known, os.preadv, regions.nowait
    room = len(out) - LONGEST_HEAD
    layout, right_magic, head = LAYOUTS[mode]
    step = layout.size
    try:
        for magic, flags, command, cookie, offset, count in layout.iter_unpack(
            inbox[at : at + (stop - at) // step * step]
        ):
            end = offset + count
            if command or flags or magic != right_magic or not 0 < count < SMALL or end > size or fill + count > room:
                break
            starts, runs = known.get(offset >> SHIFT) or regions.load(offset >> SHIFT)
            run_end, what, fd, delta = runs[bisect_right(starts, offset) - 1]
            if end > run_end:
                break
            if what == DATA:
                data = fill + head
                if preadv(fd, (out[data : data + count],), offset + delta, nowait) != count:
                    break  # cold, or the file is shorter than it was
                if mode == STRUCTURED:
                    DATA_CHUNK.pack_into(
                        out, fill, STRUCTURED_REPLY_MAGIC, DONE, OFFSET_DATA, cookie, count + 8, offset
                    )
                elif mode == SIMPLE:
                    SIMPLE_REPLY.pack_into(out, fill, SIMPLE_REPLY_MAGIC, 0, cookie)
                else:
                    EXTENDED_DATA_CHUNK.pack_into(
                        out, fill, EXTENDED_REPLY_MAGIC, DONE, OFFSET_DATA, cookie, offset, count + 8, offset
                    )
                fill = data + count
            elif what == ZERO and mode:
                if mode == STRUCTURED:
                    HOLE_CHUNK.pack_into(
                        out, fill, STRUCTURED_REPLY_MAGIC, DONE, OFFSET_HOLE, cookie, 12, offset, count
                    )
                    fill += HOLE_CHUNK.size
                else:
                    EXTENDED_HOLE_CHUNK.pack_into(
                        out, fill, EXTENDED_REPLY_MAGIC, DONE, OFFSET_HOLE, cookie, offset, 12, offset, count
                    )
                    fill += EXTENDED_HOLE_CHUNK.size
            else:
                break
            at += step
    except (OSError, VmdkitError) as error:  # met again, and reported, by whoever goes the long way
        if error.errno in NOWAIT_REFUSED:  # perhaps by a file system that always waits: so do we from now on
            regions.nowait = 0
    return at, fill


class Spin:
    """Try to receive the next request before sleeping, as long as that pays.

    After a single request the next mostly comes at once, and waking up takes longer than serving (nbd spec, section
    2). But on a busy machine the client cannot run while we try: so tries that fail too often are left out for the
    next _REST requests. That costs an idle client nothing, a busy machine one spin in fifty requests.
    """

    __slots__ = ("_luck", "tries")

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self._luck = _MOST_LUCK  # negative: how many requests to let pass

    def receive(self, recv_into: Callable[[memoryview], int], inbox: memoryview) -> int:
        """Try; returns the bytes received, 0 for none, -1 at the end of the stream."""
        if self._luck < 0:
            self._luck += 1
            return 0
        for _ in range(self.tries):
            try:
                got = recv_into(inbox)
            except BlockingIOError:
                continue
            self._luck = min(self._luck + 1, _MOST_LUCK)
            return got or -1
        self._luck -= 2
        if self._luck <= 0:
            self._luck = -_REST
        return 0


class Lane:
    """What the hot loop needs to know of a client with a plain socket, gathered once.

    ``piece`` is what of a file (descriptor, offset, count) has to follow the outbox where a turn ended early.
    """

    __slots__ = (
        "context", "fd", "header", "inbox", "maximum", "mode", "out", "piece", "recv_into", "regions", "send", "size",
        "spin",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, session: Session, regions: Regions, inbox: memoryview, out: memoryview, tries: int
    ) -> None:
        self.spin = Spin(tries)
        self.fd, self.recv_into, self.send = sock.fileno(), sock.recv_into, sock.send
        self.mode, self.size, self.maximum = int(session.mode), session.export.device.size, session.maximum
        self.regions, self.inbox, self.out = regions, inbox, out
        self.header = LAYOUTS[session.mode][0].size
        self.piece: tuple[int, int, int] | None = None
        # The one context of most clients; with several, or 64-bit replies, status goes the long way.
        one = session.mode is Mode.STRUCTURED and len(session.contexts) == 1
        self.context = next(iter(session.contexts.items())) if one and regions.constant else None


NOTHING: Final = (0, 0, 0, 0)
BURST: Final = 64  # batches served before other clients get their turn


def serve_turn(lane: Lane, *, spin: bool) -> tuple[int, int, int, int]:
    """Serve what a client has sent; returns ``(at, stop, fill, sent)``.

    ``inbox[at:stop]`` was not served, ``out[sent:fill]`` and then ``lane.piece`` were not sent; NOTHING where all
    was; ``stop`` is -1 at the end of the stream. With ``spin`` the next request is waited for a little after a
    single one. Raises OSError where the peer is gone.
    """
    recv_into, send, inbox, out = lane.recv_into, lane.send, lane.inbox, lane.out
    trying = False
    for _ in range(BURST):
        try:
            stop = recv_into(inbox)
        except BlockingIOError:
            stop = lane.spin.receive(recv_into, inbox) if trying else 0
            if not stop:
                return NOTHING
        if stop <= 0:
            return 0, -1, 0, 0
        at, fill = serve_reads(lane.mode, lane.size, lane.regions, inbox, 0, stop, out, 0)
        if at != stop:
            at, fill, sent = _serve_more(lane, at, stop, fill)
            if at != stop or lane.piece is not None or sent:
                return at, stop, fill, sent
        if fill:
            try:
                sent = send(out[:fill])
            except BlockingIOError:
                sent = 0
            if sent != fill:
                return at, stop, fill, sent
        trying = spin and stop == lane.header
        if not trying:
            return NOTHING
    return NOTHING


def _serve_more(lane: Lane, at: int, stop: int, fill: int) -> tuple[int, int, int]:
    """Go on where ``serve_reads`` stopped, as long as requests are large reads or small questions.

    Returns ``(at, fill, sent)`` as ``serve_turn``.
    """
    inbox, out = lane.inbox, lane.out
    while stop - at >= lane.header:
        head = _take(lane, at, fill)
        if not head:
            break
        at, fill = at + lane.header, fill + head
        if lane.piece is not None:
            sent = _send_piece(lane, fill)
            if sent < fill or lane.piece is not None:
                return at, fill, sent
            fill = 0
        at, fill = serve_reads(lane.mode, lane.size, lane.regions, inbox, at, stop, out, fill)
    return at, fill, 0


def _take(lane: Lane, at: int, fill: int) -> int:
    """Put the reply to one request into ``out[fill:]``, for a large read its head only and ``lane.piece``.

    Returns how many bytes, 0 for what is not served here.
    """
    layout, right_magic, _ = LAYOUTS[lane.mode]
    magic, flags, command, cookie, offset, count = layout.unpack_from(lane.inbox, at)
    if flags or magic != right_magic or not 0 < count <= lane.size - offset or len(lane.out) - fill < ROOM:
        return 0
    if command == READ and SMALL <= count <= lane.maximum:
        return _begin_piece(lane, fill, cookie, offset, count)
    if command == BLOCK_STATUS and lane.context is not None:
        return _answer_status(lane, fill, cookie, offset, count)
    return 0


def _begin_piece(lane: Lane, fill: int, cookie: int, offset: int, count: int) -> int:
    """Write the head of a read that is one run of a file, if that is in the page cache; sendfile would wait."""
    try:
        starts, runs = lane.regions.load(offset >> SHIFT)
        run_end, what, fd, delta = runs[bisect_right(starts, offset) - 1]
        if what != DATA or offset + count > run_end:
            return 0
        nowait = lane.regions.nowait
        if nowait and os.preadv(fd, (lane.regions.probe,), offset + delta + count - 1, nowait) != 1:
            return 0
    except (OSError, VmdkitError):
        return 0
    lane.piece = fd, offset + delta, count
    if lane.mode == STRUCTURED:
        DATA_CHUNK.pack_into(lane.out, fill, STRUCTURED_REPLY_MAGIC, DONE, OFFSET_DATA, cookie, count + 8, offset)
        return DATA_CHUNK.size
    if lane.mode == SIMPLE:
        SIMPLE_REPLY.pack_into(lane.out, fill, SIMPLE_REPLY_MAGIC, 0, cookie)
        return SIMPLE_REPLY.size
    EXTENDED_DATA_CHUNK.pack_into(
        lane.out, fill, EXTENDED_REPLY_MAGIC, DONE, OFFSET_DATA, cookie, offset, count + 8, offset
    )
    return EXTENDED_DATA_CHUNK.size


def _send_piece(lane: Lane, fill: int) -> int:
    """Send ``out[:fill]`` and the piece behind it; returns what went of the outbox, leaves the rest in ``piece``."""
    try:
        sent = lane.send(lane.out[:fill], MSG_MORE)
    except BlockingIOError:
        return 0
    if sent < fill or lane.piece is None:
        return sent
    fd, at, count = lane.piece
    while count:
        try:
            gone = os.sendfile(lane.fd, fd, at, count)
        except BlockingIOError:
            lane.piece = fd, at, count
            return sent
        if not gone:
            raise OSError(errno.EIO, "a file ends before what a reply has promised")
        at, count = at + gone, count - gone
    lane.piece = None
    return sent


def _answer_status(lane: Lane, fill: int, cookie: int, offset: int, count: int) -> int:
    """Write the reply to a question about a small range."""
    if lane.context is None or count > MOST_QUICK:
        return 0
    number, name = lane.context
    try:
        runs = lane.regions.status(name, offset, count, MOST_RUNS + 1)
    except (OSError, VmdkitError):
        return 0
    if len(runs) > MOST_RUNS:
        return 0
    length = 4 + 8 * len(runs)
    STATUS_HEAD.pack_into(lane.out, fill, STRUCTURED_REPLY_MAGIC, DONE, BLOCK_STATUS_CHUNK, cookie, length, number)
    at = fill + STATUS_HEAD.size
    for run in runs:
        STATUS_PAIR.pack_into(lane.out, at, *run)
        at += STATUS_PAIR.size
    return at - fill
