# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A window into a device: ``length`` bytes of it from ``start`` on, as a Device of their own.

::

    ┌──────────── device ────────────┐        a member of a tar, a partition, a flat extent at an offset
    │        ┌── slice ──┐           │
    └────────┴───────────┴───────────┘
           start    start + length

``locate`` says where in the files *below* the bytes are, so that the kernel can copy them out of an archive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.device import BlockSize, Can, Device
from vmdkit.errors import OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Location

_KEPT = Can.FLUSH | Can.EXTENTS | Can.CACHE | Can.MULTI_CONN | Can.FORK
_CHANGES = Can.WRITE | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM | Can.PLACE


class SliceDevice(Device):
    """``length`` bytes of ``device`` from ``start`` on (both in bytes); all that lies there, by default.

    What the device can, a slice can, but for moving its end; with ``writable`` false it is not written through.
    The device is closed with the slice if ``owned``. Raises OutOfRangeError for a window that leaves the device.
    """

    def __init__(
        self,
        device: Device,
        start: int = 0,
        length: int | None = None,
        *,
        name: str = "",
        writable: bool = True,
        owned: bool = True,
    ) -> None:
        length = device.size - start if length is None else length
        if start < 0 or length < 0 or length > device.size - start:
            raise OutOfRangeError(
                f"{length} bytes at {start} leave the device, which has {device.size}", path=device.name
            )
        below = device.block_size
        fits = not start % below.minimum and not length % below.minimum
        super().__init__(
            length,
            name=name or device.name,
            can=device.can & (_KEPT | _CHANGES if writable else _KEPT),
            block_size=below if fits else BlockSize(1, below.preferred, below.maximum),
            contexts=device.contexts,
        )
        self.device = device
        self.start = start
        self._owned = owned

    @property
    def files(self) -> tuple[Device, ...]:
        """The device whose bytes these are."""
        return (self.device,)

    def parts(self) -> tuple[Device, ...]:
        """Return the device whose bytes these are."""
        return (self.device,)

    @property
    def parallel(self) -> int:
        """How many requests at once the device below serves best."""
        return self.device.parallel

    def fileno(self) -> int | None:
        """Return the descriptor of the device, where byte N is the same byte there: where the window starts at 0."""
        return self.device.fileno() if not self.start else None

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self.device.pread_into(view, self.start + offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.device.pwrite(view, self.start + offset)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self.device.zero(count, self.start + offset, no_hole=no_hole, fast=fast)

    def _trim(self, count: int, offset: int) -> None:
        self.device.trim(count, self.start + offset)

    def _flush(self) -> None:
        self.device.flush()

    def _cache(self, count: int, offset: int) -> None:
        self.device.cache(count, self.start + offset)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        for at, length, flags in self.device.extents(count, self.start + offset, context=context):
            yield at - self.start, length, flags

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        for run in self.device.locate(count, self.start + offset):
            yield run._replace(offset=run.offset - self.start)

    def _place(self, count: int, offset: int) -> Location | None:
        run = self.device.place(count, self.start + offset)
        return None if run is None else run._replace(offset=offset)

    def _close(self) -> None:
        if self._owned:
            self.device.close()
