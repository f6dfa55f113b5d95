# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say of each run of a device whether it is zero, verbatim in a file, or must be read: what every program walks.

::

    locate()  HOLE, ZERO ───────────────────────────► zero
              DATA in a storage ── its extents() ──► zero (a hole of the file) or data with a file descriptor
              COMPRESSED ───────────────────────────► data
              UNKNOWN ────────── our extents() ────► zero or data
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.device import ExtentFlags, Kind, Location
from vmdkit.errors import VmdkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmdkit.device import Device

NO_FILE = -1


class Segment(NamedTuple):
    """A run in bytes: zero, or data; verbatim at ``at`` of the descriptor ``fd`` unless that is NO_FILE."""

    offset: int
    length: int
    zero: bool
    fd: int = NO_FILE
    at: int = 0


def placed(device: Device, count: int | None = None, offset: int = 0) -> Iterator[tuple[Location, bool]]:
    """Yield where each run of a range lies and whether it reads as zero, ascending and contiguous."""
    for run in device.locate(count, offset):
        if run.kind is Kind.HOLE or run.kind is Kind.ZERO:
            yield run, True
        elif run.kind is Kind.UNKNOWN:
            for extent in device.extents(run.length, run.offset):
                zero = bool(extent.flags & ExtentFlags.ZERO)
                kind = run.kind if not zero else Kind.HOLE if extent.flags & ExtentFlags.HOLE else Kind.ZERO
                yield run._replace(offset=extent.offset, length=extent.length, kind=kind), zero
        elif run.kind is Kind.DATA and run.storage is not None and run.at + run.length <= run.storage.size:
            for extent in run.storage.extents(run.length, run.at):
                part = run._replace(offset=run.offset + extent.offset - run.at, length=extent.length, at=extent.offset)
                yield part, bool(extent.flags & ExtentFlags.ZERO)
        else:
            yield run, False


def plan(device: Device, count: int | None = None, offset: int = 0) -> Iterator[Segment]:
    """Yield the segments of a range, ascending and contiguous; nothing but metadata is read."""
    for run, zero in placed(device, count, offset):
        if not zero and run.kind is Kind.DATA and run.storage is not None:
            yield from _in_file(run, run.storage)
        else:
            yield Segment(run.offset, run.length, zero, NO_FILE, run.at)


def _in_file(run: Location, storage: Device) -> Iterator[Segment]:
    """Yield the segments of a run of data; a storage that is a window into a file is asked where in that it lies."""
    fd = storage.fileno()
    below = [] if fd is not None or storage.closed else list(storage.locate(run.length, run.at))
    if len(below) != 1 or below[0].kind is not Kind.DATA or below[0].storage in (None, storage):
        yield Segment(run.offset, run.length, False, NO_FILE if fd is None else fd, run.at)
        return
    fd = below[0].storage.fileno() if below[0].storage is not None else None
    yield Segment(run.offset, run.length, False, NO_FILE if fd is None else fd, run.at if fd is None else below[0].at)


def whole(segments: Iterable[Segment], granularity: int) -> Iterator[Segment]:
    """Move the seams of contiguous segments to multiples of ``granularity``: zeros shrink, data grow and are joined.

    What becomes data no longer says in which file it lies. The end, where no multiple falls, stays where it is.
    """
    start = end = -1  # of the data that wait to be joined
    for segment in segments:
        low, high = segment.offset, segment.offset + segment.length
        if start < 0:
            start = end = low
        if segment.zero:
            up, down = -(-low // granularity) * granularity, high // granularity * granularity
            if up < down:
                if start < up:
                    yield Segment(start, up - start, zero=False)
                yield Segment(up, down - up, zero=True)
                start = down
        end = high
    if start < end:
        yield Segment(start, end - start, zero=False)


@contextmanager
def naming(offset: int, count: int, device: Device) -> Iterator[None]:
    """Note on the errors inside in which bytes of the disk they arose; give those of the system a path."""
    try:
        yield
    except OSError as error:
        if error.filename is None and device.name:
            error.filename = device.name
        error.add_note(f"in the {count} bytes at {offset:#x} of the disk")
        raise
    except VmdkitError as error:
        error.add_note(f"in the {count} bytes at {offset:#x} of the disk")
        raise
