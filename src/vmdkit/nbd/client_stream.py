# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A blocking byte stream to a server, plain or TLS, that one thread may read while another writes.

Nothing here waits for ever: a call that has nothing to report raises TimeoutError after a ``tick``, and its caller
looks at the clock. On a plain socket the kernel keeps that time (SO_RCVTIMEO), so that a whole MiB is received by one
system call (MSG_WAITALL) straight into its place, with the interpreter's lock let go of once.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEVAL: Final = struct.Struct("@ll")  # socket(7): seconds and microseconds
_BUFFER: Final = 1 << 20  # bytes the kernel may hold for the server, as far as net.core.wmem_max allows
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a host that is gone: one minute


class Stream(ABC):
    """What a connection is read from and written to. Errors are OSError; it owns the socket."""

    @abstractmethod
    def recv_into(self, view: memoryview, *, exact: bool) -> int:
        """Receive something, or all of ``view`` if ``exact`` and that is possible; 0 is the end of the stream.

        Raises TimeoutError where nothing came during a tick.
        """

    @abstractmethod
    def send(self, parts: Sequence[bytes | memoryview], patience: float) -> None:
        """Send all of ``parts``. Raises TimeoutError where the server has not taken them after ``patience`` seconds."""

    @abstractmethod
    def shutdown(self) -> None:
        """End both directions, so that whoever is in a call comes back."""

    @abstractmethod
    def finish(self) -> None:
        """Say that nothing more will be sent."""

    @abstractmethod
    def close(self) -> None:
        """Give back the descriptor; nobody may be in a call."""


class PlainStream(Stream):
    """A stream socket."""

    def __init__(self, sock: socket.socket, tick: float) -> None:
        self.sock = sock
        sock.settimeout(None)
        timeval = _TIMEVAL.pack(int(tick), int(tick % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, timeval)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        elif sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def recv_into(self, view: memoryview, *, exact: bool) -> int:
        """Receive."""
        try:
            return self.sock.recv_into(view, 0, socket.MSG_WAITALL if exact else 0)
        except BlockingIOError:
            raise TimeoutError from None

    def send(self, parts: Sequence[bytes | memoryview], patience: float) -> None:
        """Send."""
        limit = time.monotonic() + patience
        try:
            sent = self.sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        if sent == sum(map(len, parts)):
            return
        for part in parts:
            view = memoryview(part)
            view, sent = view[sent:], sent - min(sent, len(view))
            while view:
                if time.monotonic() > limit:
                    raise TimeoutError
                try:
                    view = view[self.sock.send(view) :]
                except BlockingIOError:
                    continue

    def shutdown(self) -> None:
        """End it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side has done so

    def finish(self) -> None:
        """End our half."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Close."""
        self.sock.close()


class TlsStream(Stream):
    """A TLS session over a socket. OpenSSL's state is for one thread at a time, so a lock stands before it."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, hostname: str | None, tick: float, limit: float
    ) -> None:
        """Do the TLS handshake until the clock says ``limit``. Raises OSError (ssl.SSLError is one)."""
        self.sock = context.wrap_socket(sock, server_hostname=hostname, do_handshake_on_connect=False)
        try:
            self.sock.settimeout(max(limit - time.monotonic(), 0.001))
            self.sock.do_handshake()
        except BaseException:
            self.sock.close()
            raise
        self.sock.setblocking(False)
        self._lock = threading.Lock()
        self._tick = tick

    def recv_into(self, view: memoryview, *, exact: bool) -> int:
        """Receive one record, or what is left of it."""
        while True:
            with self._lock:
                try:
                    return self.sock.recv_into(view)
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
                except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    return 0
            if not self._wait(event):
                raise TimeoutError

    def send(self, parts: Sequence[bytes | memoryview], patience: float) -> None:
        """Send, the header and what is behind it in as few records as there can be."""
        limit = time.monotonic() + patience
        for part in _joined(parts):
            view = memoryview(part)
            while view:
                with self._lock:
                    try:
                        view = view[self.sock.send(view) :]
                        continue
                    except ssl.SSLWantReadError:
                        event = select.POLLIN
                    except ssl.SSLWantWriteError:
                        event = select.POLLOUT
                self._wait(event)
                if time.monotonic() > limit:
                    raise TimeoutError

    def _wait(self, event: int) -> bool:
        poll = select.poll()
        poll.register(self.sock.fileno(), event)
        return bool(poll.poll(self._tick * 1000))

    def shutdown(self) -> None:
        """End it, without waiting for the other side's goodbye."""
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def finish(self) -> None:
        """Send close_notify as far as that works at once."""
        with self._lock:
            try:
                self.sock.unwrap()
            except (OSError, ValueError):
                pass

    def close(self) -> None:
        """Close."""
        self.sock.close()


def _joined(parts: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """Put a header before the first bytes of what follows it: 16 KiB is one TLS record."""
    if len(parts) < 2:
        return parts
    head, body = parts[0], memoryview(parts[1])
    room = (16 << 10) - len(head)
    return (bytes(head) + bytes(body[:room]), body[room:], *parts[2:])


def connected(family: int, address: object, timeout: float) -> socket.socket:
    """Return a socket of ``family`` connected to ``address``. Raises OSError; TimeoutError is one."""
    if family < 0:
        raise UnsupportedError("this system has no sockets of that kind")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock
