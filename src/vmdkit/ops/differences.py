# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find all sectors in which two devices differ, up to a bound; reading as little as ``compare`` does."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.ops.compare import Comparer
from vmdkit.ops.copy import ignore
from vmdkit.ops.pool import THREADS, ordered
from vmdkit.ops.unchanged import unchanged
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device

    Piece = tuple[int, int, int]
    Found = tuple[list[tuple[int, int]], int, int]


@dataclass(slots=True)
class Differences:
    """``ranges`` of ``(offset, length)`` in bytes, whole sectors but at the end, ascending, not touching.

    ``complete`` is false where there are more than were asked for; then the last one may be longer than it says.
    """

    sizes: tuple[int, int]
    ranges: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = True
    read: int = 0
    skipped: int = 0

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        return not self.ranges

    @property
    def count(self) -> int:
        """Bytes of the ranges."""
        return sum(length for _, length in self.ranges)

    def add(self, offset: int, length: int) -> None:
        """Take a range behind the others, and join it with the last one where they touch."""
        if self.ranges and offset <= sum(self.ranges[-1]):
            start, _ = self.ranges.pop()
            self.ranges.append((start, offset + length - start))
        else:
            self.ranges.append((offset, length))


def differences(
    one: Device,
    two: Device,
    *,
    limit: int,
    strict: bool = False,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> Differences:
    """Return the ranges in which two devices differ, at most ``limit`` of them.

    Where sizes differ, the shorter one reads as zero behind its end; with ``strict`` all that the longer one has more
    is a difference. Raises what reading raises.
    """
    sizes = (one.size, two.size)
    shared, longer = min(sizes), max(sizes)
    found = Differences(sizes)
    work = Comparer(one, two)
    pieces = (piece for piece in work.pieces() if not strict or piece[0] < shared)
    looked = ordered(lambda piece: _look(work, piece), pieces, threads=threads, heavy=lambda piece: piece[2] > 0)
    done = 0
    with unchanged(one, two), closing(looked) as answers:
        for ranges, end, length in answers:
            found.read += length
            for offset, count in ranges:
                found.add(offset, min(count, longer - offset))
                if len(found.ranges) > limit:
                    found.ranges.pop()
                    found.complete = False
                    found.skipped = end - found.read
                    return found
            progress(end - done)
            done = end
    found.skipped = done - found.read
    if strict and shared < longer:
        found.add(shared, longer - shared)
    return found


def _look(work: Comparer, piece: Piece) -> Found:
    """Return the ranges of a piece that differ, its end, and how many bytes were read of it."""
    offset, length, need = piece
    if not need:
        return [], offset + length, 0
    one, two = work.read(piece)
    return differing(one, two, offset), offset + length, length


def differing(one: bytearray, two: bytearray | None, offset: int) -> list[tuple[int, int]]:
    """Return ``(offset, length)`` of the sectors in which two buffers differ; None is a buffer of zeros.

    The buffers begin at ``offset`` of the disk; a sector that they hold a part of is named whole.
    """
    if one == two:
        return []
    left = np.frombuffer(one, dtype=np.uint8)
    unlike = left != 0 if two is None else left != np.frombuffer(two, dtype=np.uint8)
    head = offset % SECTOR
    whole = np.zeros(-(-(head + len(one)) // SECTOR) * SECTOR, dtype=bool)
    whole[head : head + len(one)] = unlike
    sectors = np.zeros(len(whole) // SECTOR + 2, dtype=np.int8)
    sectors[1:-1] = whole.reshape(-1, SECTOR).any(axis=1)
    edges = np.flatnonzero(np.diff(sectors)).tolist()
    begin = offset - head
    return [(begin + low * SECTOR, (high - low) * SECTOR) for low, high in zip(edges[::2], edges[1::2], strict=True)]
