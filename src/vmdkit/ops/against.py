# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say where a disk may differ from the one below it: what a child has to hold, and what it need not.

Runs that both take from the same place of the same file (a snapshot and its base) are equal by nature; so are zeros.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmdkit import ranges
from vmdkit.ops.plan import NO_FILE, Segment, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device


class Need(Enum):
    """What becomes of a segment."""

    SAME = "same"  # nothing: the destination has these bytes already
    COPY = "copy"
    COMPARE = "compare"  # both must be read to know


class Place(NamedTuple):
    """Where a run comes from: zeros, or a file, or neither is known."""

    zero: bool
    file: tuple[int, int] | None = None  # device and inode
    shift: int = 0  # offset in the file less offset on the disk
    fd: int = NO_FILE


def places(device: Device, count: int, offset: int = 0) -> Iterator[tuple[int, int, Place]]:
    """Yield ``(offset, length, place)`` for each run of a range, ascending and contiguous."""
    files: dict[int, tuple[int, int]] = {}
    for run in plan(device, count, offset):
        if run.zero or run.fd < 0:
            yield run.offset, run.length, Place(run.zero)
            continue
        if run.fd not in files:
            status = os.fstat(run.fd)
            files[run.fd] = (status.st_dev, status.st_ino)
        yield run.offset, run.length, Place(False, files[run.fd], run.at - run.offset, run.fd)


def same(one: Place, two: Place) -> bool:
    """Tell whether two runs are equal by nature."""
    return (one.zero and two.zero) or (one.file is not None and (one.file, one.shift) == (two.file, two.shift))


def differing(source: Device, base: Device, offset: int = 0) -> Iterator[tuple[Segment, Need]]:
    """Yield the segments of ``source`` from ``offset`` on, each with what it needs; ``base`` has at least its size."""
    count = source.size - offset
    pairs = ranges.pair(places(source, count, offset), places(base, count, offset))
    for at, length, ours, theirs in pairs:
        segment = Segment(at, length, ours.zero, ours.fd, at + ours.shift)
        if same(ours, theirs):
            yield segment, Need.SAME
        elif ours.zero or theirs.zero:
            yield segment, Need.COPY
        else:
            yield segment, Need.COMPARE
