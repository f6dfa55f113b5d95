# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find the zero blocks of a buffer.

Testing each block of 4 KiB would cost more than copying it. The first word of every block is looked at in one pass
(a strided view, 7 us a MiB); only blocks that begin with zeros are tested whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.kernels import ZEROS, is_zero

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = 8


def data_runs(view: memoryview, block: int) -> Iterator[tuple[int, int]]:
    """Yield ``(offset, length)`` of what is left of ``view`` when whole zero blocks are taken out.

    ``block`` is in bytes, a multiple of 8; 0 takes nothing out. A shorter last block counts as one.
    """
    count = len(view)
    if not block:
        yield 0, count
        return
    start = 0
    for at in _zero_blocks(view, block):
        if at > start:
            yield start, at - start
        start = at + block
    if start < count:
        yield start, count - start


def _zero_blocks(view: memoryview, block: int) -> Iterator[int]:
    count = len(view)
    whole = count - count % block
    heads = view[:whole].cast("Q")[:: block // _WORD].tolist()
    for number, head in enumerate(heads):
        if not head and is_zero(view[number * block : (number + 1) * block]):
            yield number * block
    if whole < count and is_zero(view[whole:]):
        yield whole


def different_runs(
    one: bytearray, two: bytearray, count: int, block: int, offset: int = 0
) -> Iterator[tuple[int, int]]:
    """Yield ``(index, length)`` of the runs of blocks in which the first ``count`` bytes of two buffers differ.

    Blocks begin at multiples of ``block`` from ``offset`` back: ``offset`` is where the buffers begin on a disk.
    """
    if one[:count] == two[:count]:
        return
    start = length = 0
    for at, part in ranges.split(offset, count, block):
        index = at - offset
        if one[index : index + part] == two[index : index + part]:
            continue
        if length and start + length == index:
            length += part
            continue
        if length:
            yield start, length
        start, length = index, part
    if length:
        yield start, length


def first_difference(one: bytes | bytearray | memoryview, two: bytes | bytearray | memoryview) -> int:
    """Return the first index at which two buffers of equal length differ; -1 where they are the same.

    Compares bytearrays, which is one memcmp; a memoryview would be walked item by item.
    """
    if one == two:
        return -1
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle
    return low


def first_data(buf: bytearray) -> int:
    """Return the index of the first byte that is not zero; -1 where there is none."""
    for at in range(0, len(buf), len(ZEROS)):
        piece = buf[at : at + len(ZEROS)]
        found = first_difference(piece, ZEROS[: len(piece)])
        if found >= 0:
            return at + found
    return -1
