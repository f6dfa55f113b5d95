# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Know when no operation that began before a moment is still running.

A grain that was freed may be given to other data only when nobody who looked it up before can still be reading or
writing it: such a reader would return bytes of another place of the disk. Two counters are enough: operations enter
the current one, and it is closed by moving on to the other once that has run empty.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Epochs:
    """Counts running operations by the epoch they began in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = [0, 0]
        self._now = 0

    def enter(self) -> int:
        """Begin to use addresses that will be looked up; give the answer to ``leave`` in the end."""
        with self._lock:
            side = self._now & 1
            self._running[side] += 1
            return side

    def leave(self, side: int) -> None:
        """Stop using them."""
        with self._lock:
            self._running[side] -= 1

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Hold for as long as an address that was looked up is used; the hot paths enter and leave by hand."""
        side = self.enter()
        try:
            yield
        finally:
            self.leave(side)

    def advance(self) -> int:
        """Move on to the next epoch if the one before is over; return the current epoch.

        What was freed in epoch N is out of everybody's hands in epoch N + 2.
        """
        with self._lock:
            if not self._running[(self._now + 1) & 1]:
                self._now += 1
            return self._now

    @property
    def now(self) -> int:
        """The current epoch."""
        return self._now
