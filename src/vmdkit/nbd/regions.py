# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Remember where the bytes of an export lie, a region at a time.

::

    region 0            region 1            region 2           REGION bytes each
    ├─DATA──┬─ZERO──────┼─DATA──────────────┼─ASK──┬─DATA─┤    runs: (end, what, descriptor, delta)

A run ends at ``end`` and is one of

* DATA: byte N of the export is byte N + delta of the file ``descriptor``;
* ZERO: reads as zero;
* ASK: the device has to be asked, and answers soon: compressed bytes of a local file;
* UNKNOWN: the device has to be asked, and nobody knows how long that takes.

The device promises that ``locate`` stays true while it is open, unless it is written through. So of a device that
can be written only DATA runs of its own layer are believed (such a run is written in place, which changes bytes
but not their place) and the rest is asked for; trimming and zeroing may take places away, and ``changed`` forgets
them; while another thread is at that, nothing is known (``hold``). A device that is served while writable must be
changed through its server only.

Descriptors are duplicates that belong to this object: a device closed too early can make reads fail, but never
makes them return bytes of another file that was given the same number.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from vmdkit.device import Kind
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device, Location

SHIFT: Final = 22  # a region has 4 MiB: 64 grains of 64 KiB, and one miss serves many sequential requests
REGION: Final = 1 << SHIFT
MOST_REGIONS: Final = 4096  # remembered at once; with 64 runs each about 40 MB, in practice a tenth of that
MOST_STATUS: Final = 64 * MIB  # a longer block status query is not answered from regions
DATA: Final = 0
ZERO: Final = 1
ASK: Final = 2
UNKNOWN: Final = 3
_COLD: Final = 32  # questions about a region that was just forgotten which the device has to answer

Run = tuple[int, int, int, int]  # end, what, descriptor, delta
Region = tuple[list[int], list[Run]]
Span = tuple[int, int, int]  # start, end, flags
StatusRegion = tuple[list[int], list[tuple[int, int]]]  # starts, (end, flags)
_NOWHERE: Final[Region] = ([0], [(1 << 64, UNKNOWN, -1, 0)])


class Regions:
    """The memory of one loop about one device; not thread-safe."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.constant = not device.writable  # whether answers stay true
        self.probe = memoryview(bytearray(1))  # where a look at one byte goes
        self._fds: dict[int, tuple[Device, int]] = {}  # id -> (storage kept alive, duplicate)
        self._status: dict[str, dict[int, StatusRegion]] = {}  # by context
        self._spans: dict[str, Span] = {}  # by context, one long run
        self.known: dict[int, Region] = {}  # the fast path looks here first
        self._cold: dict[int, int] = {}  # region -> questions before it is worth remembering again
        self._held = 0
        self.nowait = getattr(os, "RWF_NOWAIT", 0)  # flag for preadv: fail rather than wait for the disk

    def load(self, index: int) -> Region:
        """Return region ``index``, which must begin inside the device; raises what ``locate`` raises."""
        region = self.known.get(index)
        if region is not None:
            return region
        if self._held or (self._cold and self._is_cold(index)):
            return _NOWHERE
        offset = index << SHIFT
        starts: list[int] = []
        runs: list[Run] = []
        for location in self._device.locate(min(REGION, self._device.size - offset), offset):
            run = self._run(location)
            if runs and run[1:] == runs[-1][1:]:  # neighbours that differed in depth only
                runs[-1] = run
            else:
                starts.append(location.offset)
                runs.append(run)
        if len(self.known) >= MOST_REGIONS:
            del self.known[next(iter(self.known))]
        self.known[index] = starts, runs
        return starts, runs

    def _is_cold(self, index: int) -> bool:
        """Count a question about a region that fills with data: finding out costs more than many writes."""
        left = self._cold.get(index, 0)
        if left > 1:
            self._cold[index] = left - 1
        elif left:
            del self._cold[index]
        return left > 0

    def _run(self, location: Location) -> Run:
        end = location.offset + location.length
        in_place = self.constant or not location.depth  # writing over a parent's bytes puts them elsewhere
        if location.kind is Kind.DATA and location.storage is not None and in_place:
            fd = self._descriptor(location.storage)
            if fd is not None:
                return end, DATA, fd, location.at - location.offset
        elif self.constant and location.kind in (Kind.HOLE, Kind.ZERO):
            return end, ZERO, -1, 0
        return end, ASK if self.constant and location.kind is Kind.COMPRESSED else UNKNOWN, -1, 0

    def _descriptor(self, storage: Device) -> int | None:
        known = self._fds.get(id(storage))
        if known is not None:
            return known[1]
        fd = storage.fileno()
        if fd is None:
            return None
        duplicate = os.dup(fd)
        self._fds[id(storage)] = storage, duplicate
        return duplicate

    def walk(self, offset: int, count: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield ``(offset, length, what, descriptor, delta)`` pieces that cover a range inside the device."""
        end = offset + count
        while offset < end:
            starts, runs = self.load(offset >> SHIFT)
            index = bisect_right(starts, offset) - 1
            for stop, what, fd, delta in runs[index:]:
                length = min(stop, end) - offset
                yield offset, length, what, fd, delta
                offset += length
                if offset == end:
                    return

    def status(self, context: str, offset: int, count: int, most: int) -> list[tuple[int, int]]:
        """Return up to ``most`` (length, flags) runs of ``context`` from ``offset`` on.

        Small questions to a device that cannot change are answered from memory; others go to the device.
        """
        if not self.constant or count > MOST_STATUS:
            return take_status(self._device, context, offset, count, most)[0]
        known = self.status_of(context)
        found: list[tuple[int, int]] = []
        end = offset + count
        while offset < end:
            starts, runs = known.get(offset >> SHIFT) or self.load_status(context, offset >> SHIFT)
            for stop, flags in runs[bisect_right(starts, offset) - 1 :]:
                length = (stop if stop < end else end) - offset
                if found and found[-1][1] == flags:
                    found[-1] = found[-1][0] + length, flags
                elif len(found) == most:
                    return found
                else:
                    found.append((length, flags))
                offset += length
                if offset == end:
                    break
        return found

    def status_of(self, context: str) -> dict[int, StatusRegion]:
        """Return what is remembered of a context, by region; it stays the same object."""
        return self._status.setdefault(context, {})

    def span(self, context: str, offset: int, count: int) -> list[tuple[int, int]]:
        """Return the only run of a range, of any length, that lies in the long run met last; nothing if it does not.

        A client asks for the map of a large disk by a few GiB at a time; a disk that is nearly empty has one answer.
        """
        start, end, flags = self._spans.get(context, (0, 0, 0))
        return [(count, flags)] if start <= offset and offset + count <= end else []

    def met(self, spans: dict[str, Span]) -> None:
        """Remember long runs, by context, for ``span``."""
        if self.constant:
            self._spans.update(spans)

    def load_status(self, context: str, index: int) -> StatusRegion:
        """Return region ``index``, which must begin inside the device, as ``context`` sees it; it is remembered."""
        offset = index << SHIFT
        extents = list(self._device.extents(min(REGION, self._device.size - offset), offset, context=context))
        region = [start for start, _, _ in extents], [(start + length, flags) for start, length, flags in extents]
        known = self.status_of(context)
        if len(known) >= MOST_REGIONS:
            del known[next(iter(known))]
        known[index] = region
        return region

    def changed(self, offset: int, count: int) -> None:
        """Forget a range that was trimmed, zeroed, or written where no DATA run was known.

        The one place for that; to be called before and after the change.
        """
        first, last = offset >> SHIFT, max(offset, offset + count - 1) >> SHIFT
        if last - first >= len(self.known):
            self.known.clear()
            return
        for index in range(first, last + 1):
            self.known.pop(index, None)

    def wrote(self, offset: int, count: int) -> None:
        """Forget regions in which a write may have made DATA of something else; a write to DATA changes no place."""
        for index in range(offset >> SHIFT, (offset + max(count, 1) - 1 >> SHIFT) + 1):
            region = self.known.get(index)
            if region is not None and any(run[1] != DATA for run in region[1]):
                del self.known[index]
                if len(self._cold) >= MOST_REGIONS:
                    self._cold.clear()
                self._cold[index] = _COLD

    def hold(self) -> None:
        """Know nothing until ``release``: another thread is about to take places away."""
        self._held += 1
        self.known.clear()

    def release(self) -> None:
        """End a ``hold``; each needs its own."""
        self._held -= 1

    def close(self) -> None:
        """Give back the descriptors."""
        self.known.clear()
        for remembered in self._status.values():
            remembered.clear()
        for _, fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def take_status(
    device: Device, context: str, offset: int, count: int, most: int, ahead: int = 0
) -> tuple[list[tuple[int, int]], Span]:
    """Return up to ``most`` (length, flags) runs straight from the device, and the last of them in full length.

    Up to ``ahead`` bytes behind the range are looked at for that. Safe in any thread.
    """
    found: list[tuple[int, int]] = []
    end, span = offset + count, (0, 0, 0)
    for start, length, flags in device.extents(min(count + ahead, device.size - offset), offset, context=context):
        found.append((min(length, end - start), flags))
        span = start, start + length, flags
        if len(found) == most or span[1] >= end:
            break
    return found, span
