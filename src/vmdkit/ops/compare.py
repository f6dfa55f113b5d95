# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find the first byte at which two devices differ, reading only where they may.

Zero on both sides costs nothing, zero on one side costs one read, and runs that both sides take verbatim from the
same place of the same file (snapshots over one base) are equal by nature.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.ops.against import Place, places, same
from vmdkit.ops.copy import ignore
from vmdkit.ops.plan import naming, plan
from vmdkit.ops.pool import CHUNK, THREADS, ordered
from vmdkit.ops.unchanged import unchanged
from vmdkit.ops.zeros import first_data, first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device

_READ_ONE, _READ_TWO = 1, 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """``offset`` of the first difference in bytes, None where there is none; the bytes ``read`` and not read."""

    offset: int | None
    sizes: tuple[int, int]
    read: int
    skipped: int

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        return self.offset is None


def compare(
    one: Device,
    two: Device,
    *,
    strict: bool = False,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> Comparison:
    """Compare two devices up to the first difference.

    Where sizes differ, the longer one's tail must be zero; with ``strict`` they differ at the end of the shorter one,
    without reading anything. Raises what reading raises.
    """
    sizes = (one.size, two.size)
    shorter = min(sizes)
    if strict and one.size != two.size:
        return Comparison(shorter, sizes, 0, 0)
    work = Comparer(one, two)
    done = read = 0
    looked = ordered(work.first, work.pieces(), threads=threads, heavy=lambda piece: piece[2] > 0)
    with unchanged(one, two), closing(looked) as answers:
        for found, end, length in answers:
            if found >= 0:
                return Comparison(found, sizes, read, done - read)
            read += length
            progress(end - done)
            done = end
    return Comparison(None, sizes, read, done - read)


class Comparer:
    """Two devices side by side, and what must be read to compare them; threads may share it."""

    def __init__(self, one: Device, two: Device) -> None:
        self.one = one
        self.two = two
        self._local = threading.local()

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield ``(offset, length, which sides must be read)``, ascending; the longer side's tail last."""
        shared = min(self.one.size, self.two.size)
        needs = ((at, length, _need(a, b)) for at, length, a, b in self._pairs(shared))
        yield from _cut(ranges.coalesce(needs))
        for device, need in ((self.one, _READ_ONE), (self.two, _READ_TWO)):
            tail = plan(device, device.size - shared, shared)
            yield from _cut(ranges.coalesce((run.offset, run.length, 0 if run.zero else need) for run in tail))

    def first(self, piece: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the offset of the first difference in a piece or -1, its end, and the bytes looked at."""
        offset, length, need = piece
        if not need:
            return -1, offset + length, 0
        one, two = self.read(piece)
        found = first_data(one) if two is None else first_difference(one, two)
        return offset + found if found >= 0 else -1, offset + length, length

    def read(self, piece: tuple[int, int, int]) -> tuple[bytearray, bytearray | None]:
        """Return the bytes of both sides, or those of the one that may not be zero; good until the next call."""
        if piece[2] == _READ_ONE | _READ_TWO:
            return self._read(self.one, 0, piece), self._read(self.two, 1, piece)
        return self._read(self.one if piece[2] == _READ_ONE else self.two, 0, piece), None

    def _read(self, device: Device, side: int, piece: tuple[int, int, int]) -> bytearray:
        """Return the bytes of a piece; whole chunks in a buffer that each thread keeps."""
        offset, length, _ = piece
        with naming(offset, length, device):
            if length != CHUNK:
                return device.pread(length, offset)
            buffers = getattr(self._local, "buffers", None)
            if buffers is None:
                buffers = self._local.buffers = (bytearray(CHUNK), bytearray(CHUNK))
            buf: bytearray = buffers[side]
            device.pread_into(buf, offset)
            return buf

    def _pairs(self, count: int) -> Iterator[tuple[int, int, Place, Place]]:
        return ranges.pair(places(self.one, count), places(self.two, count))


def _need(one: Place, two: Place) -> int:
    if same(one, two):
        return 0
    return (0 if one.zero else _READ_ONE) | (0 if two.zero else _READ_TWO)


def _cut(spans: Iterator[ranges.Span]) -> Iterator[ranges.Span]:
    for offset, length, need in spans:
        if not need:
            yield offset, length, 0
            continue
        for start, part in ranges.split(offset, length, CHUNK):
            yield start, part, need
