# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""One epoll loop that serves any number of clients in one thread, with a small pool beside it."""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Final

from vmdkit.nbd.buffers import Buffers
from vmdkit.nbd.connection import Connection
from vmdkit.nbd.negotiation import TlsMode
from vmdkit.nbd.pool import Pool
from vmdkit.nbd.regions import Regions
from vmdkit.units import KIB

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from vmdkit.device import Device
    from vmdkit.nbd.export import Export, Exports

    Events = list[tuple[int, int]]
    Handler = Callable[[int], object]  # true where the next report from there mostly comes at once

_log = logging.getLogger(__name__)

_INBOX: Final = 128 * KIB  # bytes received at once: 4,600 reads, or the 32 writes of 4 KiB of a common client
_OUTBOX: Final = 256 * KIB + 64  # bytes sent at once; sockets rarely take more
_TICK: Final = 0.25  # seconds between looks at the clock: at handshakes that take too long, at what is due later
SPIN: Final = 150  # tries for the next request before sleeping: 30 to 50 us, what waking up takes (Spin)
_MOST_LUCK: Final = 8  # two of three spells of trying have to succeed; this many more make up for a bad time
_REST: Final = 50  # requests without trying, where they do not


@dataclass(frozen=True, slots=True)
class Config:
    """What a loop needs to know about the server it belongs to."""

    exports: Exports
    tls_mode: TlsMode = TlsMode.OFF
    tls_context: ssl.SSLContext | None = None
    handshake_seconds: float = 10.0
    threads: int = 4
    spin: int = SPIN


class Spin:
    """Look for the next request before sleeping, as long as that pays.

    After a single request the next mostly comes at once, and waking up takes longer than serving (nbd spec, section
    2). But on a busy machine the client cannot run while we look: so where looking fails too often it is left out for
    the next _REST requests. That costs an idle client nothing, a busy machine one spell in fifty requests. With
    several clients in one process their requests come in each other's time, and looking only keeps them from running.
    """

    __slots__ = ("_luck", "_poll", "tries")

    def __init__(self, epoll: select.epoll, tries: int) -> None:
        self.tries = tries
        self._poll = epoll.poll
        self._luck = _MOST_LUCK  # negative: how many requests to let pass

    def poll(self) -> Events:
        """Look; returns what poll reported, nothing where it is time to sleep."""
        if self._luck < 0:
            self._luck += 1
            return []
        poll = self._poll
        for _ in repeat(None, self.tries):
            events = poll(0)
            if events:
                self._luck = min(self._luck + 1, _MOST_LUCK)
                return events
        self._luck -= 2
        if self._luck <= 0:
            self._luck = -_REST
        return []


class Loop:
    """Serve clients until ``stop``. All but ``stop`` and ``call`` belongs to the thread that calls ``run``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.inbox = memoryview(bytearray(_INBOX))
        self.outbox = memoryview(bytearray(_OUTBOX))
        self.buffers = Buffers()
        self.pool = Pool(config.threads)
        self.on_closed: Callable[[Connection], None] = lambda _: None
        self.on_served: Callable[[Connection], None] = lambda _: None
        self._epoll = select.epoll()
        self._spin = Spin(self._epoll, config.spin)
        self._sources: dict[int, Handler] = {}
        self._connections: set[Connection] = set()
        self._regions: dict[Device, Regions] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self._running = True
        self._handshakes = 0
        self.add_source(self.pool.fileno(), self._woken)

    # ── for connections ──────────────────────────────────────────────────────────────────────────────────────

    def regions(self, export: Export) -> Regions:
        """Return what is known about an export: one memory for each device, under whatever names it is served."""
        known = self._regions.get(export.device)
        if known is None:
            known = self._regions[export.device] = Regions(export.device)
        return known

    def watch(self, connection: Connection, mask: int, handler: Handler) -> None:
        """Poll a connection for ``mask``, and call ``handler`` with what poll reports."""
        self._sources[connection.fileno()] = handler
        if mask != connection.interest:
            connection.interest = mask
            self._epoll.modify(connection.fileno(), mask)

    def served(self, connection: Connection) -> None:
        """Note that a handshake is over."""
        self._handshakes -= 1
        self.on_served(connection)

    def forget(self, connection: Connection) -> None:
        """Stop polling a connection that is about to close its socket."""
        fd = connection.fileno()
        self._sources.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            _log.debug("client %s was not polled", connection.peer)
        self._connections.discard(connection)
        if not connection.negotiated:
            self._handshakes -= 1
        self.on_closed(connection)

    # ── for the server around it ─────────────────────────────────────────────────────────────────────────────

    @property
    def clients(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def add(self, sock: socket.socket, peer: str = "") -> Connection:
        """Serve one more client; the socket is the loop's from now on."""
        connection = Connection(self, sock, peer)
        connection.interest = select.EPOLLIN
        self._connections.add(connection)
        self._handshakes += 1
        try:
            self.add_source(connection.fileno(), connection.event)
        except OSError as error:  # the kernel polls no more for this user
            connection.close(f"cannot be polled: {error.strerror}")
        connection.start()
        return connection

    def add_source(self, fd: int, handler: Handler) -> None:
        """Call ``handler`` with the poll mask whenever ``fd`` is readable."""
        self._sources[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def drop_source(self, fd: int) -> None:
        """Stop that."""
        if self._sources.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the loop soon; from any thread."""
        self._calls.append(action)
        self.pool.wake()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Run ``action`` in ``seconds`` or a little more; in the loop's thread."""
        self._alarms.append((time.monotonic() + seconds, action))

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread or signal handler."""
        self._running = False
        self.pool.wake()

    def run(self) -> None:
        """Serve until ``stop``, then close every connection."""
        ticked = time.monotonic()
        poll, find, spin, pool = self._epoll.poll, self._sources.get, self._spin, self.pool
        clients, single = self._connections, False
        while self._running:
            events = spin.poll() if single and len(clients) == 1 and not pool.running else []
            if not events:
                events = poll(_TICK if self._handshakes or self._alarms else None)
            for fd, mask in events:
                handler = find(fd)
                if handler is not None:  # closed by an earlier event of this batch
                    single = bool(handler(mask))
            if (self._handshakes or self._alarms) and time.monotonic() - ticked >= _TICK:
                ticked = time.monotonic()
                self._tick(ticked)

    def close(self) -> None:
        """Close connections, finish the pool's jobs, give everything back. Call it after ``run``."""
        self._woken(0)  # whoever was to be served yet is shown out like the others
        for connection in list(self._connections):
            connection.close()
        self.pool.close()
        self._epoll.close()
        for regions in self._regions.values():
            regions.close()

    def _woken(self, mask: int) -> None:
        self.pool.collect()
        for _ in range(len(self._calls)):  # what these add comes after the other clients' turn
            self._calls.popleft()()

    def _tick(self, now: float) -> None:
        for connection in [each for each in self._connections if not each.negotiated and each.deadline < now]:
            connection.close(f"no complete handshake within {self.config.handshake_seconds} s")
        due = [alarm for alarm in self._alarms if alarm[0] <= now]
        self._alarms = [alarm for alarm in self._alarms if alarm[0] > now]
        for _, action in due:
            action()
