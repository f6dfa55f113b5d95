# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A non-blocking byte stream, plain or TLS, with one way to say "not now".

``recv_into`` returns None and ``send`` 0 where the call would have to wait; end of stream is 0 received. All other
trouble is an OSError (``ssl.SSLError`` is one).
"""

from __future__ import annotations

import os
import socket
import ssl
from abc import ABC, abstractmethod
from typing import Final

# Bytes the kernel may hold for a client, as far as net.core.wmem_max allows. With its default of 208 KiB each reply
# of 256 KiB, as nbdcopy asks for them, stops halfway; poll tells only when three quarters are gone: 1.3x against 2x.
_UNIX_BUFFER: Final = 1 << 20


class Transport(ABC):
    """What a connection reads from and writes to; owns the socket."""

    direct: bool  # whether send_file works

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor to poll."""

    @abstractmethod
    def recv_into(self, view: memoryview) -> int | None:
        """Receive what is there; None for nothing yet, 0 for the end."""

    @abstractmethod
    def send(self, view: memoryview, *, more: bool = False) -> int:
        """Send what fits; ``more``: hold it back until the next call if that saves a packet."""

    def send_file(self, fd: int, at: int, count: int) -> int | None:
        """Send from a file what fits; None for not now, 0 where the file ends before ``at``."""
        raise NotImplementedError

    def waiting(self) -> int:
        """Return how many received bytes no poll will announce."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Say goodbye as far as that works at once, and close."""


class PlainTransport(Transport):
    """A stream socket."""

    direct = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
        self.sock = sock
        self._fd = sock.fileno()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._fd

    def recv_into(self, view: memoryview) -> int | None:
        """Receive."""
        try:
            return self.sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, view: memoryview, *, more: bool = False) -> int:
        """Send."""
        try:
            return self.sock.send(view, socket.MSG_MORE if more else 0)
        except (BlockingIOError, InterruptedError):
            return 0

    def send_file(self, fd: int, at: int, count: int) -> int | None:
        """Send without the bytes passing through this process."""
        try:
            return os.sendfile(self._fd, fd, at, count)
        except (BlockingIOError, InterruptedError):
            return None

    def close(self) -> None:
        """Close."""
        self.sock.close()


class TlsTransport(Transport):
    """A TLS session over a stream socket, as its server; ``handshake`` until that returns true."""

    direct = False

    def __init__(self, plain: PlainTransport, context: ssl.SSLContext) -> None:
        self._sock = context.wrap_socket(plain.sock, server_side=True, do_handshake_on_connect=False)
        self._fd = self._sock.fileno()
        self.wants_write = False  # what the last handshake step is waiting for

    def handshake(self) -> bool:
        """Go on with the handshake; true when it is complete. Raises OSError where it failed."""
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            self.wants_write = False
            return False
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return False
        return True

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._fd

    def recv_into(self, view: memoryview) -> int | None:
        """Receive; a peer that goes without closing TLS ends the stream like one that does."""
        try:
            return self._sock.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0

    def send(self, view: memoryview, *, more: bool = False) -> int:
        """Send; TLS packs its own records, so ``more`` means nothing."""
        try:
            return self._sock.send(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def waiting(self) -> int:
        """Return the bytes of a decrypted record that were not taken yet."""
        return self._sock.pending()

    def close(self) -> None:
        """Send close_notify if it fits, and close without waiting for the peer's."""
        try:
            self._sock.unwrap()
        except (OSError, ValueError):
            pass
        self._sock.close()
