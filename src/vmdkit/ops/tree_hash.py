# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make the tree hash of a device: holes are not read, a few threads read and digest the rest.

::

    zeros of the device ─► blocks that hold data ─► windows ─► threads: pread, digest ─► Tree, in order
                           (whole blocks)           of about 1 MiB
"""

from __future__ import annotations

import threading
from contextlib import closing
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmdkit import ranges
from vmdkit.device import ExtentFlags
from vmdkit.ops.copy import ignore
from vmdkit.ops.plan import naming, plan
from vmdkit.ops.pool import CHUNK, THREADS, ordered
from vmdkit.ops.tree import Hasher, Shape, Tree, TreeDigest
from vmdkit.ops.unchanged import unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmdkit.device import Device


class Zeros(Enum):
    """Whom to believe about which bytes are zero and need not be read."""

    PLAN = "plan"  # the places that the device knows, and holes of the files behind it, as copying does
    EXTENTS = "extents"  # what the device itself says of its extents
    NOBODY = "nobody"  # read everything


class _Window(NamedTuple):
    number: int
    parts: list[tuple[int, int]]  # (first block, blocks), ascending; what is between is zero


def tree_hash(
    device: Device,
    shape: Shape | None = None,
    *,
    zeros: Zeros = Zeros.PLAN,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> TreeDigest:
    """Return the tree hash of all of ``device``, of the usual shape unless another is given.

    ``progress`` gets numbers of bytes, those that are not read too. Raises what reading raises, with the offset.
    """
    work = _Reader(device, Hasher(shape or Shape()), zeros)
    tree, done = work.tree, 0
    with unchanged(device), closing(ordered(work.digests, work.windows(), threads=threads)) as windows:
        for number, digests in windows:
            tree.zeros((number << work.level) - tree.position)
            for digest in digests:
                tree.push(digest, work.joined)
            end = min((number + 1) * work.bytes, device.size)
            progress(end - done)
            done = end
    progress(device.size - done)
    return tree.finish()


class _Reader:
    """What the threads share: they read windows of ``2**level`` blocks, and join their leaves ``joined`` times."""

    def __init__(self, device: Device, hasher: Hasher, zeros: Zeros) -> None:
        self.device = device
        self.hasher = hasher
        self.block = hasher.shape.block
        self.tree = Tree(hasher, device.size)
        self.level = min(max(CHUNK // self.block, 1).bit_length() - 1, self.tree.height)
        self.joined = min(self.level, self.tree.level)
        self.bytes = self.block << self.level
        self._zeros = zeros
        self._local = threading.local()

    def windows(self) -> Iterator[_Window]:
        """Yield the windows that hold data, ascending."""
        waiting: _Window | None = None
        blocks = self.bytes // self.block
        for first, count in _blocks(self._data(), self.block):
            for start, length in ranges.split(first, count, blocks):
                number = start // blocks
                if waiting is None or waiting.number != number:
                    if waiting is not None:
                        yield waiting
                    waiting = _Window(number, [])
                waiting.parts.append((start, length))
        if waiting is not None:
            yield waiting

    def digests(self, window: _Window) -> tuple[int, list[bytes]]:
        """Read a window; return its number, and the digests that make it up."""
        buf: memoryview | None = getattr(self._local, "buf", None)
        if buf is None:
            buf = self._local.buf = memoryview(bytearray(self.bytes))
        leaves: list[bytes] = []
        begin = window.number << self.level
        zero = self.hasher.zero(0)
        for first, count in window.parts:
            leaves += [zero] * (first - begin - len(leaves))
            leaves += self.hasher.leaves(self._read(buf[: count * self.block], first * self.block))
        leaves += [zero] * ((1 << self.level) - len(leaves))
        return window.number, self.hasher.fold(leaves, self.joined)

    def _read(self, view: memoryview, offset: int) -> memoryview:
        """Fill ``view``; with zeros what lies behind the end of the device."""
        held = min(len(view), self.device.size - offset)
        with naming(offset, held, self.device):
            self.device.pread_into(view[:held], offset)
        if held < len(view):
            view[held:] = bytes(len(view) - held)
        return view

    def _data(self) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, length)`` of what may not be zero, ascending."""
        if self._zeros is Zeros.PLAN:
            yield from ((run.offset, run.length) for run in plan(self.device) if not run.zero)
        elif self._zeros is Zeros.EXTENTS:
            for extent in self.device.extents():
                if not extent.flags & ExtentFlags.ZERO:
                    yield extent.offset, extent.length
        elif self.device.size:
            yield 0, self.device.size


def _blocks(data: Iterable[tuple[int, int]], block: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first block, blocks)`` of whole blocks that hold data, ascending, joined."""
    begin = end = 0
    for offset, length in data:
        first, last = offset // block, -(-(offset + length) // block)
        if first > end:
            if begin < end:
                yield begin, end - begin
            begin = first
        end = max(end, last)
    if begin < end:
        yield begin, end - begin
