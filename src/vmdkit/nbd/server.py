# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A server in one process: ``Service`` runs in the thread that calls it, ``Server`` in a thread of its own."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UsageError
from vmdkit.nbd import listening
from vmdkit.nbd.export import Export, Exports
from vmdkit.nbd.loop import SPIN, Config, Loop
from vmdkit.nbd.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from vmdkit.nbd.connection import Connection
    from vmdkit.nbd.listening import Listener

_log = logging.getLogger(__name__)

MOST_CLIENTS: Final = 64  # connections at once; each may hold up to about 35 MiB (docs/nbd.md)
RETRY: Final = 1.0  # seconds until clients are taken again where that failed; one that leaves makes it sooner
_ACCEPTS: Final = 16  # connections taken before those that are open get their turn


@dataclass(frozen=True, slots=True)
class Options:
    """How a server treats its clients.

    ``most_clients`` further ones wait until one leaves; 0 is no limit. ``persistent`` false ends the service when
    the last client has left. ``processes`` is the most that may serve (``workers``).
    """

    tls: Tls = Tls()  # noqa: RUF009  # immutable
    most_clients: int = MOST_CLIENTS
    persistent: bool = True
    handshake_seconds: float = 10.0
    threads: int = 4
    spin: int = SPIN
    processes: int = 1

    def config(self, exports: Exports) -> Config:
        """Return what a loop needs of this."""
        return Config(exports, self.tls.mode, self.tls.context, self.handshake_seconds, self.threads, self.spin)


class Service:
    """Serve in the calling thread until ``stop``, or, not persistent, until the last client has left."""

    def __init__(self, exports: Exports, listeners: Sequence[Listener], options: Options) -> None:
        self._options = options
        self._listeners = {listener.sock.fileno(): listener.sock for listener in listeners}
        self._loop = Loop(options.config(exports))
        self._loop.on_closed = self._closed
        self._accepting = False
        self._accept(on=True)

    def add(self, sock: socket.socket, peer: str = "") -> None:
        """Serve one more client; before ``run``, or in its thread."""
        self._loop.add(sock, peer)

    def add_soon(self, sock: socket.socket, peer: str = "") -> None:
        """Serve one more client; from any thread."""
        self._loop.call(lambda: self.add(sock, peer))

    def when_readable(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` once, when ``fd`` is readable."""

        def once(_: int) -> None:
            self._loop.drop_source(fd)
            action()

        self._loop.add_source(fd, once)

    def run(self) -> None:
        """Serve."""
        try:
            self._loop.run()
        finally:
            self._loop.close()

    def stop(self) -> None:
        """End soon; from any thread or signal handler."""
        self._loop.stop()

    def _accept(self, *, on: bool) -> None:
        if on == self._accepting:
            return
        self._accepting = on
        for fd, sock in self._listeners.items():
            if on:
                sock.setblocking(False)
                self._loop.add_source(fd, lambda _, sock=sock: self._take(sock))  # type: ignore[misc]
            else:
                self._loop.drop_source(fd)

    @property
    def _full(self) -> bool:
        return 0 < self._options.most_clients <= self._loop.clients

    def _take(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            if self._full:
                self._accept(on=False)
                return
            try:
                taken = accept(listener)
            except OSError as error:  # trying at once again would fail again, and keep those waiting who are served
                _log.warning("no new client can be taken: %s", error.strerror)
                self._accept(on=False)
                self._loop.later(RETRY, lambda: self._accept(on=True))
                return
            if taken is None:
                return
            self.add(*taken)

    def _closed(self, connection: Connection) -> None:
        self._accept(on=True)
        last = connection.negotiated and not self._options.persistent
        if not self._loop.clients and (last or not self._listeners):  # without an address nobody else can come
            self.stop()


def accept(listener: socket.socket) -> tuple[socket.socket, str] | None:
    """Return a new client and what to call it in the log; None where there is none.

    Raises OSError where none can be taken: nothing is free any more, or the network had its say (accept(2), "Error
    handling").
    """
    try:
        sock, address = listener.accept()
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        return None
    return sock, str(address[0]) if isinstance(address, tuple) else "local"


class Server:
    """Serve devices from a thread of this process::

        with vmdkit.open("disk.vmdk") as disk, Server(Export(disk)) as server:
            subprocess.run(["nbdinfo", server.uri])

    Without a listener it makes a Unix socket in a private directory. Close it before the devices.
    """

    def __init__(
        self,
        exports: Export | Sequence[Export],
        *,
        listener: Listener | None = None,
        options: Options = Options(spin=0),  # immutable; no spinning beside the user's own threads
    ) -> None:
        listed = (exports,) if isinstance(exports, Export) else tuple(exports)
        self._exports = Exports(listed)
        self._first = listed[0]
        self._options = options
        self._listener = listening.unix() if listener is None else listener
        try:
            self._service = Service(self._exports, (self._listener,), options)
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._service.run, name="nbd-server", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """The URI of the first export."""
        return self.uri_of(self._first.name)

    def uri_of(self, name: str) -> str:
        """Return the URI of the export called ``name``."""
        return self._listener.uri(name, tls=self._options.tls.required)

    @property
    def path(self) -> str | None:
        """The path of the Unix socket; None for a server on TCP."""
        return self._listener.path

    @property
    def port(self) -> int | None:
        """The port of a server on TCP; None for a Unix socket."""
        return self._listener.port

    def connect(self) -> socket.socket:
        """Return the client's end of a new connection that needs no address.

        Raises UsageError where the server has ended.
        """
        if not self._thread.is_alive():
            raise UsageError("the server has ended")
        ours, theirs = socket.socketpair()
        self._service.add_soon(ours, "this process")
        return theirs

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the server ends by itself (not persistent); returns whether it did."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End every connection, finish what is under way, remove the socket. A second close does nothing."""
        if self._thread.is_alive():
            self._service.stop()
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
