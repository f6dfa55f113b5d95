# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The interval algebra: everything that cuts, joins or pairs runs of bytes does it here.

A *span* is any tuple that begins ``(offset, length, tag, ...)``, all in bytes, as ``Extent`` is. A *cover* is a
sequence of spans that are ascending and contiguous: each begins where the one before ended.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int, int]
TagA = TypeVar("TagA")
TagB = TypeVar("TagB")


def split(offset: int, count: int, boundary: int) -> Iterator[tuple[int, int]]:
    """Yield ``(offset, length)`` pieces of a range, none of which crosses a multiple of ``boundary``."""
    end = offset + count
    while offset < end:
        step = min(end - offset, boundary - offset % boundary)
        yield offset, step
        offset += step


def align(offset: int, count: int, boundary: int) -> tuple[int, int]:
    """Return the smallest ``(offset, length)`` around a range that begins and ends on ``boundary``."""
    start = offset - offset % boundary
    end = -(-(offset + count) // boundary) * boundary
    return start, end - start


def find(starts: Sequence[int], offset: int) -> int:
    """Return the index of the last start that is not after ``offset``; -1 where all are after it."""
    return bisect_right(starts, offset) - 1


def coalesce(spans: Iterable[Span]) -> Iterator[Span]:
    """Join neighbours that touch and carry the same tag; drop empty spans."""
    start = length = tag = 0
    for offset, count, other in spans:
        if not count:
            continue
        if length and other == tag and offset == start + length:
            length += count
            continue
        if length:
            yield start, length, tag
        start, length, tag = offset, count, other
    if length:
        yield start, length, tag


def clip(spans: Iterable[Span], offset: int, count: int) -> Iterator[Span]:
    """Cut a cover down to a range; spans outside it are dropped."""
    end = offset + count
    for start, length, tag in spans:
        low, high = max(start, offset), min(start + length, end)
        if low < high:
            yield low, high - low, tag


def pair(
    one: Iterable[tuple[int, int, TagA]], two: Iterable[tuple[int, int, TagB]]
) -> Iterator[tuple[int, int, TagA, TagB]]:
    """Walk two covers side by side: yield ``(offset, length, tag of one, tag of two)`` at every boundary.

    Both must begin at the same offset; the walk ends with the shorter.
    """
    right = iter(two)
    b_end, b_tag = -1, None
    for offset, length, a_tag in one:
        end = offset + length
        while offset < end:
            if b_end <= offset:
                nxt = next(right, None)
                if nxt is None:
                    return
                b_end, b_tag = nxt[0] + nxt[1], nxt[2]
                continue
            step = min(end, b_end) - offset
            yield offset, step, a_tag, b_tag  # type: ignore[misc]  # set before the first step
            offset += step


def subtract(offset: int, count: int, holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is left of a range when ascending ``(offset, length)`` holes are taken out."""
    end = offset + count
    for start, length in holes:
        if start >= end:
            break
        if start > offset:
            yield offset, start - offset
        offset = max(offset, start + length)
    if offset < end:
        yield offset, end - offset
