# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where a server is, and how it is reached: TCP, Unix, vsock, a socket that is there, or a program to be started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UsageError
from vmdkit.nbd.client_stream import connected
from vmdkit.nbd.uri import NbdUri, Transport, parse_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE: Final = 5.0  # seconds that a program we started gets to end by itself
# sd_listen_fds(3): the socket is descriptor 3, and only the process named in LISTEN_PID may take it. A shell can say
# its own number, and becomes the program.
_ACTIVATE: Final = 'LISTEN_PID=$$; LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 3<&0 </dev/null'


class Address(ABC):
    """A place where a server can be reached. ``again`` tells whether several times."""

    name: str  # for messages
    host: str  # what a certificate must be for
    again: bool

    @abstractmethod
    def connect(self, timeout: float) -> socket.socket:
        """Return a connected socket. Raises OSError."""

    def close(self) -> None:
        """Give back what reaching it took."""


@dataclass(frozen=True)
class TcpAddress(Address):
    """A host and a port."""

    host: str
    port: int | str
    name: str = ""
    again: bool = True

    def connect(self, timeout: float) -> socket.socket:
        """Try each address of the host in turn."""
        limit = time.monotonic() + timeout
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(error.errno, f"the host is not found: {error.strerror}", self.name) from error
        last: OSError = OSError(0, "no address", self.name)
        for family, _, _, _, address in found:
            try:
                return connected(family, address, max(limit - time.monotonic(), 0.001))
            except TimeoutError:
                last = TimeoutError(f"{self.name}: no connection within {timeout:g} seconds")
            except OSError as error:
                last = OSError(error.errno, error.strerror, self.name)
        raise last


@dataclass(frozen=True)
class UnixAddress(Address):
    """A Unix socket; a path that begins with NUL is in the abstract namespace."""

    path: str
    name: str = ""
    host: str = "localhost"
    again: bool = True

    def connect(self, timeout: float) -> socket.socket:
        """Connect."""
        try:
            return connected(socket.AF_UNIX, self.path, timeout)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: no connection within {timeout:g} seconds") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


@dataclass(frozen=True)
class VsockAddress(Address):
    """A virtual machine or its host."""

    cid: int
    port: int
    name: str = ""
    host: str = "localhost"
    again: bool = True

    def connect(self, timeout: float) -> socket.socket:
        """Connect."""
        try:
            return connected(getattr(socket, "AF_VSOCK", -1), (self.cid, self.port), timeout)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: no connection within {timeout:g} seconds") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


class SocketAddress(Address):
    """A socket that is connected already, or its descriptor; it is taken over."""

    host = "localhost"
    again = False

    def __init__(self, sock: socket.socket | int, name: str = "") -> None:
        self._sock = socket.socket(fileno=sock) if isinstance(sock, int) else sock
        self.name = name or f"socket {self._sock.fileno()}"

    def connect(self, timeout: float) -> socket.socket:
        """Return it."""
        return self._sock


class CommandAddress(Address):
    """A program that speaks NBD on standard input and output, as ``vmdkit serve -s`` and ``nbdkit -s`` do."""

    host = "localhost"
    again = False

    def __init__(self, command: Sequence[str]) -> None:
        self.name = _shown(command)
        self._command = list(command)
        self.process: subprocess.Popen[bytes] | None = None

    def connect(self, timeout: float) -> socket.socket:
        """Start it. Raises OSError where there is no such program."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(self._command, stdin=theirs.fileno(), stdout=theirs.fileno())
            except BaseException:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Wait until it has ended; it does when its input ends."""
        _end(self.process, wait_first=True)


class ActivatedAddress(Address):
    """A program that takes its listening socket from systemd, or from us in its place."""

    host = "localhost"
    again = True

    def __init__(self, command: Sequence[str]) -> None:
        if not command:
            raise UsageError("the command that starts the server is missing")
        self.name = _shown(command)
        self._command = list(command)
        self._directory = ""
        self.process: subprocess.Popen[bytes] | None = None

    def connect(self, timeout: float) -> socket.socket:
        """Start it, once, and connect."""
        if self.process is None:
            self._start()
        return connected(socket.AF_UNIX, self.path, timeout)

    @property
    def path(self) -> str:
        """The socket that was given to it."""
        return os.path.join(self._directory, "nbd.sock")

    def _start(self) -> None:
        if shutil.which(self._command[0]) is None:
            raise FileNotFoundError(2, os.strerror(2), self._command[0])
        self._directory = tempfile.mkdtemp(prefix="vmdkit-")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.path)
            listener.listen()
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", _ACTIVATE, "sh", *self._command], stdin=listener.fileno()
            )  # fmt: skip

    def close(self) -> None:
        """Ask it to end, and remove the socket."""
        _end(self.process, wait_first=False)
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""


def _shown(command: Sequence[str]) -> str:
    if not command:
        raise UsageError("the command that starts the server is missing")
    return f"[ {' '.join(command)} ]"


def _end(process: subprocess.Popen[bytes] | None, *, wait_first: bool) -> None:
    """See a program to its end: by itself, else by SIGTERM, else by SIGKILL."""
    if process is None:
        return
    steps = (None, signal.SIGTERM, signal.SIGKILL) if wait_first else (signal.SIGTERM, signal.SIGKILL)
    for step in steps:
        if step is not None:
            process.send_signal(step)
        try:
            process.wait(_PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def address_of(uri: NbdUri | str) -> Address:
    """Return where a URI points to."""
    uri = parse_uri(uri) if isinstance(uri, str) else uri
    if uri.transport is Transport.UNIX:
        return UnixAddress(uri.path, uri.text)
    if uri.transport is Transport.VSOCK:
        return VsockAddress(int(uri.host), uri.port, uri.text)
    return TcpAddress(uri.host, uri.port, uri.text)
