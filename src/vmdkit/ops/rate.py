# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a copy below a rate, so that others can use the disk and the network too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE = 0.25  # seconds of the rate that go through at once: steady enough, and a signal is noticed
_LEAST = 64 * KIB


class Throttle:
    """A bucket of bytes that fills at ``rate`` bytes a second; 0 is no limit. Used by one thread."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._due = 0.0  # when the bytes that went through should have
        self.step = max(_LEAST, min(16 * MIB, int(rate * _PAUSE))) if rate else 0  # bytes to move at once; 0: any

    def passed(self, count: int) -> None:
        """Wait until ``count`` more bytes may be over."""
        if not self._rate or not count:
            return
        now = self._clock()
        self._due = max(self._due, now - _PAUSE) + count / self._rate
        if self._due > now:
            self._sleep(self._due - now)
