# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a device fail or dawdle where and when it is told to: to see what others do about it.

::

    faults = [Fault("read", 0x10000, 0x1000), Fault("flush", seconds=2.0, error=0, times=1)]
    with FaultDevice(device, faults) as disk: ...

The device in front is never closed by it, nor are places told (``locate``): every byte passes here.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmdkit.device import Can, Device
from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERBS: Final = ("read", "write", "zero", "trim", "flush", "cache", "extents")
_EVERYWHERE: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to calls of ``verb`` that touch ``length`` bytes at ``offset``.

    First a pause of ``seconds``, then OSError with ``error``, or, 0, nothing. The first ``after`` such calls are
    spared, and no more than ``times`` are met, unless that is 0.
    """

    verb: str
    offset: int = 0
    length: int = _EVERYWHERE
    error: int = errno.EIO
    seconds: float = 0.0
    after: int = 0
    times: int = 0

    def __post_init__(self) -> None:
        if self.verb not in VERBS:
            raise UsageError(f"{self.verb!r} cannot fail; {', '.join(VERBS)} can")

    def covers(self, verb: str, offset: int, count: int) -> bool:
        """Tell whether a call touches the range."""
        return self.verb == verb and offset < self.offset + self.length and offset + max(count, 1) > self.offset


class FaultDevice(Device):
    """``device``, with ``faults``."""

    def __init__(self, device: Device, faults: Sequence[Fault]) -> None:
        super().__init__(
            device.size,
            name=device.name,
            can=device.can & ~(Can.MULTI_CONN | Can.FORK),  # it counts, and is one
            block_size=device.block_size,
            contexts=device.contexts,
        )
        self._device = device
        self._faults = list(faults)
        self._met = [0] * len(self._faults)
        self._lock = threading.Lock()

    def parts(self) -> Sequence[Device]:
        """Return the device in front."""
        return (self._device,)

    def _meet(self, verb: str, offset: int = 0, count: int = 0) -> None:
        for number, fault in enumerate(self._faults):
            if not fault.covers(verb, offset, count):
                continue
            with self._lock:
                self._met[number] += 1
                met = self._met[number] - fault.after
            if met <= 0 or (fault.times and met > fault.times):
                continue
            if fault.seconds:
                time.sleep(fault.seconds)
            if fault.error:
                raise OSError(fault.error, os.strerror(fault.error), self._name)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._meet("read", offset, len(view))
        self._device.pread_into(view, offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._meet("write", offset, len(view))
        self._device.pwrite(view, offset)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self._meet("zero", offset, count)
        self._device.zero(count, offset, no_hole=no_hole, fast=fast)

    def _trim(self, count: int, offset: int) -> None:
        self._meet("trim", offset, count)
        self._device.trim(count, offset)

    def _flush(self) -> None:
        self._meet("flush")
        self._device.flush()

    def _cache(self, count: int, offset: int) -> None:
        self._meet("cache", offset, count)
        self._device.cache(count, offset)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        self._meet("extents", offset, count)
        yield from self._device.extents(count, offset, context=context)
