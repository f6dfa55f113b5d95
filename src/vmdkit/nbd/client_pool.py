# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The connections of one device: as many as there is use for, and new ones for those that were lost, if asked.

One is opened at first. Another follows while all have requests under way, up to ``connections``, where the server
says that several may be used together (CAN_MULTI_CONN); it is opened beside the work, and nobody waits for it.

With ``reconnect`` a request whose connection was lost is sent again: reading always; what changes bytes only where
the server closed the connection itself. If we gave up on it, the old request may still wait inside the server, and
come to pass after a later one. A write that was completed but not flushed may be gone with the server that had it:
then the next flush fails, once, rather than vouch for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from vmdkit.errors import ConnectionLostError, RemoteProtocolError, UsageError, VmdkitError
from vmdkit.nbd.client_connection import Connection, copied
from vmdkit.nbd.client_core import Request
from vmdkit.nbd.client_dialogue import Dialogue
from vmdkit.nbd.client_handshake import Handshake
from vmdkit.nbd.client_negotiate import Wishes, negotiate
from vmdkit.nbd.protocol import Command, ExportFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.nbd.client_address import Address
    from vmdkit.nbd.client_stream import Stream
    from vmdkit.nbd.client_tls import ClientTls

_log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 16
_DEPTH: Final = 16  # requests of one call under way at once; their headers fit into any socket's buffer
_ANOTHER: Final = 5.0  # seconds in which a further connection must be ready; a server may be full
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to connect again
_CHANGES: Final = frozenset((Command.WRITE, Command.WRITE_ZEROES, Command.TRIM))


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to speak with a server.

    ``connections``: at most so many. ``handshake`` and ``timeout``: seconds for the handshake, and for the reply to a
    request, besides those that its bytes take at ``slowest`` bytes a second. ``reconnect``: seconds to try again for,
    0 for not at all.
    """

    tls: ClientTls | None = None
    connections: int = 4
    handshake: float = 20.0
    timeout: float = 300.0
    slowest: float = 16384.0
    reconnect: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise UsageError(f"1 to {MOST_CONNECTIONS} connections, not {self.connections}")
        if min(self.handshake, self.timeout, self.slowest) <= 0 or self.reconnect < 0:
            raise UsageError("a time limit is a number of seconds above 0")

    @property
    def tick(self) -> float:
        """Seconds after which whoever waits looks at the clock."""
        return min(max(min(self.timeout, self.handshake) / 8, 0.01), 1.0)


class Job(NamedTuple):
    """A request to be made on whichever connection there is."""

    command: int
    offset: int
    length: int
    flags: int = 0
    view: memoryview | None = None  # where what is read goes
    payload: memoryview | None = None  # what is written


def open_dialogue(
    address: Address, options: ClientOptions, patience: float | None = None, watch: list[Stream] | None = None
) -> Dialogue:
    """Connect, and turn to TLS if that is wanted: then it is that or nothing.

    The stream is put into ``watch`` at once, so that another thread can end what takes too long.
    """
    handshake = Handshake(address.name)
    dialogue = Dialogue(address, handshake, patience=patience or options.handshake, tick=options.tick, watch=watch)
    try:
        if options.tls is not None and not dialogue.starttls(options.tls, address.host):
            if not handshake.fixed:
                raise RemoteProtocolError("TLS is wanted, and this server is too old for it", path=address.name)
            raise handshake.answer.refusal(address.name, "TLS, without which nothing will be said")
    except BaseException:
        dialogue.close()
        raise
    return dialogue


class Pool:
    """See the module's text."""

    def __init__(self, address: Address, wishes: Wishes, options: ClientOptions) -> None:
        self.address = address
        self._wishes = wishes
        self._options = options
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._growing: threading.Thread | None = None
        self._grown: list[Stream] = []  # the stream of that thread
        self._closing = False
        self._broken: Exception | None = None  # a server that breaks the protocol is not asked again
        self._written = self._flushed = 0  # changes that were completed, and how many of them a flush has covered
        self._doubt: Exception | None = None  # what may have taken unflushed changes along
        self._loss: Exception | None = None  # what the newest loss of a connection was
        first = self._open(options.handshake)
        self.agreement = first.agreement
        self._connections = [first]
        several = ExportFlag.CAN_MULTI_CONN in self.agreement.flags and address.again
        self._most = options.connections if several else 1

    def _open(self, patience: float, watch: list[Stream] | None = None) -> Connection:
        dialogue = open_dialogue(self.address, self._options, patience, watch)
        try:
            agreed = negotiate(dialogue.handshake, dialogue.exchange, self._wishes)
        except BaseException:
            dialogue.close()
            raise
        options = self._options
        return Connection(
            dialogue.stream, agreed, self.address.name, patience=options.timeout, slowest=options.slowest
        )  # fmt: skip

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, job: Job) -> None:
        """Make one request. Raises ReplyError, RemoteProtocolError, ConnectionLostError."""
        self._retrying(lambda connection: self._one(connection, job), job.command)

    def run_all(self, jobs: Sequence[Job]) -> None:
        """Make requests of one kind, several at once on one connection."""
        if len(jobs) == 1:
            return self.run(jobs[0])
        return self._retrying(lambda connection: self._several(connection, jobs), jobs[0].command)

    def ask(self, make: Callable[[Connection], tuple[Request, memoryview | None]]) -> tuple[Connection, Request]:
        """Make a request that depends on the connection; returns both."""
        answered: list[tuple[Connection, Request]] = []

        def once(connection: Connection) -> None:
            request, payload = make(connection)
            connection.call(request, payload)
            answered.append((connection, request))

        self._retrying(once, Command.BLOCK_STATUS)
        return answered[-1]

    def flush(self) -> None:
        """Have the server make durable what was completed. Raises what may have lost some of it, once."""
        with self._lock:
            doubt, self._doubt = self._doubt, None
            covered = self._written
        if doubt is not None:
            raise ConnectionLostError(
                f"writes that were not flushed may be lost with a connection: {doubt}", path=None
            )  # fmt: skip
        self.run(Job(Command.FLUSH, 0, 0))
        with self._lock:
            if self._doubt is None:
                self._flushed = max(self._flushed, covered)
                return
        self.flush()

    def _one(self, connection: Connection, job: Job) -> None:
        connection.call(Request(job.command, job.offset, job.length, job.flags, job.view), job.payload)

    def _several(self, connection: Connection, jobs: Sequence[Job]) -> None:
        waiting: deque[Request] = deque()
        error: Exception | None = None
        for job in jobs:
            request = Request(job.command, job.offset, job.length, job.flags, job.view)
            connection.submit(request, job.payload)
            waiting.append(request)
            if len(waiting) >= _DEPTH:
                error = self._first(connection, waiting)
                if error is not None:
                    break
        while waiting:  # after an error too: their bytes go into the caller's buffer
            error = self._first(connection, waiting) or error
        if error is not None:
            raise error

    def _first(self, connection: Connection, waiting: deque[Request]) -> Exception | None:
        try:
            connection.wait(waiting.popleft())
        except VmdkitError as error:
            return error
        return None

    def _retrying(self, work: Callable[[Connection], None], command: int) -> None:
        changes = command in _CHANGES
        limit = 0.0  # when to stop, since the first loss: a server may die of this very request, each time
        for turn in range(1 << 30):
            loss = self._loss
            connection = self._pick()
            if connection is not None:
                try:
                    work(connection)
                except ConnectionLostError as error:
                    self._lost(connection, error)
                    if not self._options.reconnect or self._closing or (changes and not error.closed):
                        raise
                except RemoteProtocolError as error:
                    self._lost(connection, error)
                    self._broken = self._broken or error
                    raise
                else:
                    if changes:
                        with self._lock:
                            self._written += 1
                            if self._loss is not loss:  # perhaps with what was just completed
                                self._doubt = self._doubt or self._loss
                    return
            limit = limit or time.monotonic() + self._options.reconnect
            if turn:
                self._pause(turn - 1, limit)
            self._connect_again(limit)

    # ── connections ──────────────────────────────────────────────────────────────────────────────────────────

    def _pick(self) -> Connection | None:
        """Return the connection with the least to do; None where there is none and a new one may be had."""
        connections = self._connections
        if len(connections) == 1 == self._most and connections[0].dead is None and self._broken is None:
            return connections[0]
        if self._broken is not None:
            raise copied(self._broken)
        best: Connection | None = None
        last: Exception | None = None
        for each in connections:
            if each.dead is not None:
                last = each.dead
            elif best is None or each.load < best.load:
                best = each
        if best is None:
            if last is not None and (not self._options.reconnect or self._closing):
                raise copied(last)
            return None
        if best.load and len(connections) < self._most and self._growing is None:
            self._grow()
        return best

    def _lost(self, connection: Connection, error: Exception) -> None:
        with self._lock:
            self._loss = error
            if self._written > self._flushed and self._doubt is None:
                self._doubt = error
            if len(self._connections) > 1 and connection in self._connections:
                self._connections.remove(connection)
                gone = connection
            else:
                return  # the last one stays, to say what happened
        gone.close()

    def _grow(self) -> None:
        with self._lock:
            if self._growing is not None or self._closing:
                return
            self._growing = threading.Thread(target=self._add, name="nbd-connect", daemon=True)
            self._growing.start()

    def _add(self) -> None:
        """Open one more connection; where that fails, what there is must do."""
        try:
            made = self._open(min(_ANOTHER, self._options.handshake), self._grown)
        except (VmdkitError, OSError) as error:
            _log.info("no further connection: %s", error)
            self._most = len(self._connections)
            return
        if not made.agreement.same_export(self.agreement):
            self._broken = RemoteProtocolError(
                "the server broke the protocol: it tells each connection something else about one export",
                path=self.address.name,
            )
        with self._lock:
            if not self._closing and self._broken is None:
                self._connections.append(made)
                self._growing = None
                self._grown.clear()
                return
        made.close()

    def _connect_again(self, limit: float) -> None:
        """Have a connection that works, or raise what there is to say."""
        with self._connecting:
            for turn in range(1 << 30):
                if self._closing or any(each.dead is None for each in self._connections):
                    return
                try:
                    made = self._open(self._options.handshake)
                    break
                except (ConnectionLostError, OSError) as error:
                    self._pause(turn, limit, error)
            if not made.agreement.same_export(self.agreement):
                made.close()
                self._broken = RemoteProtocolError(
                    f"the export is another one after connecting again: it had {self.agreement.size} bytes and has "
                    f"{made.agreement.size}, or differs in what it allows",
                    path=self.address.name,
                )
                raise copied(self._broken)
            _log.info("%s: connected again", self.address.name)
            with self._lock:
                old, self._connections = self._connections, [made]
        for each in old:
            each.close()

    def _pause(self, turn: int, limit: float, error: Exception | None = None) -> None:
        """Wait a little before the next attempt. Raises ConnectionLostError where there will be none."""
        pause = _PAUSES[min(turn, len(_PAUSES) - 1)]
        if time.monotonic() + pause > limit:
            raise ConnectionLostError(
                f"{self.address.name}: the connection was lost, and could not be had again within "
                f"{self._options.reconnect:g} seconds: {error or 'it is lost each time'}"
            ) from error
        time.sleep(pause)

    def close(self) -> None:
        """Say goodbye on each connection. Raises RemoteProtocolError for a server that answers that."""
        self._closing = True
        growing = self._growing
        if growing is not None:
            for stream in self._grown:
                stream.shutdown()
            growing.join()
        error: Exception | None = None
        for each in self._connections:
            try:
                each.close()
            except VmdkitError as trouble:
                error = error or trouble
        self.address.close()
        if error is not None:
            raise error
