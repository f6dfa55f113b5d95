# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A few threads for what must not hold up the loop: cold reads, flushes, large writes, long maps.

Handing work over costs about 30 us where a sleeping processor has to be woken, so small warm work does not come
here. Threads start with the first job and live until ``close``; a process that forks must not have used its pool.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Pool:
    """Threads that run jobs; results are collected by the loop's own thread."""

    def __init__(self, threads: int = 4) -> None:
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None] = (
            SimpleQueue()
        )
        self._finished: deque[tuple[Callable[[Any, BaseException | None], None], Any, BaseException | None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waking = threading.RLock()  # reentrant: a signal handler may wake whom its own thread is waking
        self.running = 0  # jobs whose result was not collected

    def fileno(self) -> int:
        """Return the descriptor that is readable when results wait."""
        return self._wake

    @property
    def ready(self) -> bool:
        """Whether results wait to be collected."""
        return bool(self._finished)

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run ``work`` in a thread; ``collect`` will call ``done(result, None)`` or ``done(None, error)``."""
        self.running += 1
        if len(self._threads) < min(self._limit, self.running):
            thread = threading.Thread(target=self._run, name="nbd-pool", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((work, done))

    def wake(self) -> None:
        """Make ``fileno`` readable; from any thread or signal handler, and without effect after ``close``."""
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def collect(self) -> None:
        """Call ``done`` for each finished job; in the loop's thread."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while self._finished:
            done, result, error = self._finished.popleft()
            self.running -= 1
            done(result, error)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            try:
                self._finished.append((done, work(), None))
            except BaseException as error:  # whatever it is, the loop has to hear of it
                self._finished.append((done, None, error))
            job = work = done = None  # type: ignore[assignment]  # keep no buffer alive while waiting
            self.wake()

    def close(self) -> None:
        """Finish every job, stop the threads, collect what they left."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.collect()
        with self._waking:
            wake, self._wake = self._wake, -1
            os.close(wake)
