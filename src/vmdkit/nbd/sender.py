# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Send now what fits, keep the rest in order until the socket takes more."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Final

from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.nbd.transport import Transport

_SENDFILE_STEP: Final = 4 * MIB  # bytes for one call, so that a fast client cannot keep the loop to itself


class _Bytes:
    """Bytes to send, and what to do when they are gone."""

    __slots__ = ("release", "view")

    def __init__(self, view: memoryview, release: Callable[[], None] | None) -> None:
        self.view = view
        self.release = release


class _Piece:
    """A piece of a file to send."""

    __slots__ = ("at", "count", "fd")

    def __init__(self, fd: int, at: int, count: int) -> None:
        self.fd, self.at, self.count = fd, at, count


class Sender:
    """The outgoing side of one connection. Methods raise OSError where the peer is gone."""

    __slots__ = ("_queue", "_transport", "queued")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: deque[_Bytes | _Piece] = deque()
        self.queued = 0  # bytes held in memory

    @property
    def blocked(self) -> bool:
        """Whether something waits for the socket."""
        return bool(self._queue)

    @property
    def direct(self) -> bool:
        """Whether files can be sent without reading them."""
        return self._transport.direct

    def rebase(self, transport: Transport) -> None:
        """Send through another transport from now on; nothing may be queued."""
        self._transport = transport

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send or keep a copy of ``data``, whose memory may be used again at once."""
        view = memoryview(data)
        if not self._queue:
            view = view[self._transport.send(view, more=more) :]
        if view:
            self._push(memoryview(bytes(view)), None)

    def send_owned(self, view: memoryview, release: Callable[[], None] | None = None) -> None:
        """Send or keep ``view`` itself; ``release`` is called when its memory is no longer needed."""
        if not self._queue:
            try:
                view = view[self._transport.send(view) :]
            except OSError:
                if release is not None:
                    release()
                raise
        if view:
            self._push(view, release)
        elif release is not None:
            release()

    def _push(self, view: memoryview, release: Callable[[], None] | None) -> None:
        self._queue.append(_Bytes(view, release))
        self.queued += len(view)

    def send_file(self, fd: int, at: int, count: int) -> None:
        """Send ``count`` bytes at ``at`` of a file; raises OSError where the file ends too early.

        The reply's header has promised the bytes by then, so that error has to end the connection.
        """
        self._queue.append(_Piece(fd, at, count))
        if len(self._queue) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        queue = self._queue
        while queue:
            item = queue[0]
            if isinstance(item, _Piece):
                if not self._flush_piece(item):
                    return
            else:
                sent = self._transport.send(item.view)
                self.queued -= sent
                if sent < len(item.view):
                    item.view = item.view[sent:]
                    if not sent:
                        return
                    continue
                if item.release is not None:
                    item.release()
            queue.popleft()

    def _flush_piece(self, piece: _Piece) -> bool:
        while piece.count:
            sent = self._transport.send_file(piece.fd, piece.at, min(piece.count, _SENDFILE_STEP))
            if sent is None:
                return False
            if not sent:
                raise OSError(errno.EIO, f"a file ends before {piece.at + piece.count}, which a reply has promised")
            piece.at += sent
            piece.count -= sent
        return True

    def drop(self) -> None:
        """Forget what waits: the peer is gone."""
        for item in self._queue:
            if isinstance(item, _Bytes) and item.release is not None:
                item.release()
        self._queue.clear()
        self.queued = 0


class Outbox:
    """Gather the replies of one turn, to be sent by one call; the memory is shared by all clients of a loop.

    Between turns it is empty: whoever puts something in flushes before giving up control.
    """

    __slots__ = ("_sender", "fill", "view")

    def __init__(self, view: memoryview, sender: Sender) -> None:
        self.view = view
        self.fill = 0  # bytes in use; the fast path moves it
        self._sender = sender

    def put(self, data: bytes) -> None:
        """Append a reply."""
        count = len(data)
        if count > len(self.view):
            self.flush()
            self._sender.send(data)
            return
        at = self.room(count)
        self.view[at : at + count] = data
        self.fill = at + count

    def room(self, count: int) -> int:
        """Make room for ``count`` bytes (no more than the outbox has) and return where they go."""
        if len(self.view) - self.fill < count:
            self.flush()
        return self.fill

    def flush(self, *, more: bool = False) -> None:
        """Pass what was gathered to the sender."""
        if self.fill:
            count, self.fill = self.fill, 0
            self._sender.send(self.view[:count], more=more)
