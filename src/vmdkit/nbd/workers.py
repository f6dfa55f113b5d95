# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Serve with several processes: the parent accepts, workers serve.

::

    listener ──> parent ──SCM_RIGHTS──> worker 1  (epoll loop, pool)
                   │  ^─"negotiated"───    │
                   │     "closed"       worker 2 ...      forked when all others are busy

Each client goes to the worker with the fewest; a further worker is forked when none is idle. The parent has one
thread and no pool, so forking is safe, and it keeps no client's descriptor: when a worker dies, its clients see
their connections end. Workers inherit the opened devices; reads are positional, so sharing descriptors is fine.
When the parent goes, by whatever way, its end of the control sockets closes, and the workers end.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
import warnings
from typing import TYPE_CHECKING, Final

from vmdkit.nbd.loop import Loop
from vmdkit.nbd.server import RETRY, accept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.nbd.connection import Connection
    from vmdkit.nbd.export import Exports
    from vmdkit.nbd.listening import Listener
    from vmdkit.nbd.server import Options

_log = logging.getLogger(__name__)

MOST_PROCESSES: Final = 4  # unless more are asked for: more were never measured
_PATIENCE: Final = 5.0  # seconds a worker has to end its jobs before it is killed
_NEGOTIATED, _CLOSED = b"n", b"c"  # what a worker tells its parent about a client
_LONGEST_PEER: Final = 256  # bytes of a client's name


def sensible_processes(exports: Exports, asked: int = 0) -> int:
    """Return how many processes may serve: one where a device keeps state that others would not see.

    Otherwise as many as were asked for; nobody asked, as many as there are processors, up to MOST_PROCESSES.
    """
    if not all(export.shareable() for export in exports):
        return 1
    return asked or min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


class _Worker:
    """What the parent knows of a worker."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.clients = 0


class Prefork:
    """Serve with up to ``options.processes`` workers in the same way, seen from outside, as ``Service``."""

    def __init__(self, exports: Exports, listeners: Sequence[Listener], options: Options) -> None:
        self._options = options
        self._config = options.config(exports)
        self._listeners = {listener.sock.fileno(): listener.sock for listener in listeners}
        for sock in self._listeners.values():
            sock.setblocking(False)
        self._workers: dict[int, _Worker] = {}  # by descriptor of the control socket
        self._epoll = select.epoll()
        self._sources: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._running = True
        self._accepting = False
        self._pausing = 0.0  # until when, where taking a client failed

    def when_readable(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` once, when ``fd`` is readable."""
        self._sources[fd] = action
        self._epoll.register(fd, select.EPOLLIN)

    def stop(self) -> None:
        """End soon; from any thread or signal handler, and without effect after the end."""
        self._running = False
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve."""
        try:
            self._fork()  # before the first client comes: it would wait some milliseconds
            self._accept(on=True)
            while self._running:
                for fd, _ in self._epoll.poll(RETRY if self._pausing else None):
                    self._event(fd)
                if time.monotonic() > self._pausing > 0:
                    self._accept(on=True)
        finally:
            self._end_workers()
            self._epoll.close()
            wake, self._wake = self._wake, -1
            os.close(wake)

    def _event(self, fd: int) -> None:
        if fd in self._listeners:
            self._take(self._listeners[fd])
        elif fd in self._workers:
            self._hear(self._workers[fd])
        elif fd in self._sources:
            self._epoll.unregister(fd)
            self._sources.pop(fd)()

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _clients(self) -> int:
        return sum(worker.clients for worker in self._workers.values())

    def _pause(self, problem: str, error: OSError) -> None:
        """Take no client for a while: trying at once again would fail again."""
        _log.warning("%s: %s", problem, error.strerror)
        self._accept(on=False)
        self._pausing = time.monotonic() + RETRY

    def _accept(self, *, on: bool) -> None:
        self._pausing = 0.0
        if on == self._accepting:
            return
        self._accepting = on
        for fd in self._listeners:
            if on:
                self._epoll.register(fd, select.EPOLLIN)
            else:
                self._epoll.unregister(fd)

    def _take(self, listener: socket.socket) -> None:
        if 0 < self._options.most_clients <= self._clients:
            self._accept(on=False)
            return
        try:
            worker = self._choose()  # forks, so before there is a client's descriptor to inherit
        except OSError as error:
            self._pause("no worker", error)
            return
        try:
            taken = accept(listener)
        except OSError as error:
            self._pause("no new client can be taken", error)
            return
        if taken is None:
            return
        sock, peer = taken
        with sock:
            try:
                socket.send_fds(worker.control, [peer.encode()[:_LONGEST_PEER] or b"?"], [sock.fileno()])
            except OSError as error:  # it has just died; the client will come again
                _log.warning("worker %d takes no client: %s", worker.pid, error)
                return
        worker.clients += 1

    def _choose(self) -> _Worker:
        """Return the worker with the fewest clients; a new one where all have some and there may be more."""
        least = min(self._workers.values(), key=lambda worker: worker.clients, default=None)
        if least is None or (least.clients and len(self._workers) < self._options.processes):
            try:
                return self._fork()
            except OSError as error:
                if least is None:
                    raise
                _log.warning("no further worker: %s", error.strerror)
        assert least is not None  # noqa: S101  # for mypy; raised above
        return least

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker says; its end of the line closed means it is gone."""
        try:
            said = worker.control.recv(64)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._buried(worker)
        elif said[:1] == _CLOSED:
            worker.clients -= 1
            self._left(negotiated=said[1:] == _NEGOTIATED)

    def _left(self, *, negotiated: bool) -> None:
        self._accept(on=True)
        if negotiated and not self._clients and not self._options.persistent:
            self.stop()

    def _buried(self, worker: _Worker) -> None:
        """Clean up behind a worker that ended although nobody told it to."""
        fd = worker.control.fileno()
        self._epoll.unregister(fd)
        worker.control.close()
        del self._workers[fd]
        _, status = os.waitpid(worker.pid, 0)
        _log.error(
            "worker %d ended by itself (%s); its %d clients have lost their connections",
            worker.pid, os.waitstatus_to_exitcode(status), worker.clients,
        )  # fmt: skip
        self._left(negotiated=bool(worker.clients))

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            # Python 3.12 warns where any thread exists; libraries for arithmetic keep some, idle, of their own.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
        if not pid:
            self._be_worker(ours, theirs)
        theirs.close()
        ours.setblocking(False)
        worker = _Worker(pid, ours)
        self._workers[ours.fileno()] = worker
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        _log.debug("worker %d started", pid)
        return worker

    def _be_worker(self, ours: socket.socket, theirs: socket.socket) -> None:
        """Serve in a forked process; never returns."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; the parent decides
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._epoll.close()
            os.close(self._wake)
            ours.close()
            for worker in self._workers.values():  # an end that stays open would hide the parent's death
                worker.control.close()
            for listener in self._listeners.values():
                listener.close()
            work(Loop(self._config), theirs)
            status = 0
        except BaseException:
            _log.exception("a worker failed")
        finally:
            logging.shutdown()
            os._exit(status)

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            self._epoll.unregister(worker.control.fileno())
            worker.control.close()
        deadline = time.monotonic() + _PATIENCE
        for worker in self._workers.values():
            _reap(worker.pid, deadline)
        self._workers.clear()


def _reap(pid: int, deadline: float) -> None:
    """Wait for a worker that was told to end; kill it where it does not."""
    fd = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            _log.error("worker %d does not end; it is killed", pid)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(fd)


def work(loop: Loop, control: socket.socket) -> None:
    """Serve the clients that come over ``control`` until it closes."""
    control.setblocking(False)

    def tell(word: bytes) -> None:
        try:
            control.send(word)
        except OSError:
            loop.stop()  # the parent is gone

    def closed(connection: Connection) -> None:
        tell(_CLOSED + (_NEGOTIATED if connection.negotiated else b""))

    def hear(_: int) -> None:
        try:
            peer, fds, _, _ = socket.recv_fds(control, _LONGEST_PEER, 1)
        except BlockingIOError:
            return
        except OSError:  # ECONNRESET: the parent is gone, and has not read all that it was told
            peer, fds = b"", []
        if not peer:
            loop.stop()
        elif not fds:  # no descriptor was free to receive it
            tell(_CLOSED)
        for fd in fds:
            loop.add(socket.socket(fileno=fd), peer.decode("utf-8", "replace"))

    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.on_closed = closed
    loop.add_source(control.fileno(), hear)
    try:
        loop.run()
    finally:
        loop.close()
