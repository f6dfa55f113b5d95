# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Laws of the interval algebra."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdkit import ranges

SMALL = st.integers(0, 200)
COVERS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=12)


def cover(pieces: list[tuple[int, int]], start: int = 0) -> list[tuple[int, int, int]]:
    """Return contiguous spans from (length, tag) pairs."""
    out = []
    for length, tag in pieces:
        out.append((start, length, tag))
        start += length
    return out


def bytes_of(spans: list[tuple[int, int, int]]) -> dict[int, int]:
    """Return the tag of each byte."""
    return {at: tag for offset, length, tag in spans for at in range(offset, offset + length)}


@given(SMALL, SMALL, st.integers(1, 50))
def test_split_covers_and_never_crosses(offset: int, count: int, boundary: int) -> None:
    pieces = list(ranges.split(offset, count, boundary))
    assert sum(length for _, length in pieces) == count
    at = offset
    for start, length in pieces:
        assert start == at
        assert length > 0
        assert start // boundary == (start + length - 1) // boundary
        at += length


@given(SMALL, SMALL, st.integers(1, 50))
def test_align_is_the_smallest_around(offset: int, count: int, boundary: int) -> None:
    start, length = ranges.align(offset, count, boundary)
    assert start % boundary == 0 == length % boundary
    assert start <= offset < start + boundary
    assert offset + count <= start + length < offset + count + boundary


@pytest.mark.parametrize(
    ("starts", "offset", "index"),
    [
        ([], 5, -1),
        ([0], 0, 0),
        ([3], 2, -1),
        ([0, 8, 16], 7, 0),
        ([0, 8, 16], 8, 1),
        ([0, 8, 16], 99, 2),
        ([0, 0], 0, 1),
    ],
)
def test_find(starts: list[int], offset: int, index: int) -> None:
    assert ranges.find(starts, offset) == index


@given(COVERS)
def test_coalesce_keeps_bytes_and_joins_all_that_touch(pieces: list[tuple[int, int]]) -> None:
    spans = cover(pieces)
    joined = list(ranges.coalesce(spans))
    assert bytes_of(joined) == bytes_of(spans)
    for one, two in itertools.pairwise(joined):
        assert one[2] != two[2]
    assert list(ranges.coalesce(joined)) == joined


def test_coalesce_drops_empty_spans_and_keeps_gaps_apart() -> None:
    assert list(ranges.coalesce([(0, 0, 1), (0, 4, 1), (4, 0, 2), (4, 4, 1), (9, 1, 1)])) == [(0, 8, 1), (9, 1, 1)]
    assert list(ranges.coalesce([])) == []
    assert list(ranges.coalesce([(5, 0, 0)])) == []


@given(COVERS, SMALL, SMALL)
def test_clip(pieces: list[tuple[int, int]], offset: int, count: int) -> None:
    spans = cover(pieces)
    inside = bytes_of(list(ranges.clip(spans, offset, count)))
    assert inside == {at: tag for at, tag in bytes_of(spans).items() if offset <= at < offset + count}


@given(COVERS, COVERS)
def test_pair_walks_the_shorter_of_both(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    left, right = cover(one), cover(two)
    met = {}
    at = 0
    for offset, length, a, b in ranges.pair(left, right):
        assert offset == at
        assert length > 0
        at += length
        met.update(dict.fromkeys(range(offset, at), (a, b)))
    lefts, rights = bytes_of(left), bytes_of(right)
    assert met == {place: (lefts[place], rights[place]) for place in lefts if place in rights}


def test_pair_takes_any_tag() -> None:
    assert list(ranges.pair([(0, 4, "a"), (4, 4, "b")], [(0, 6, None), (6, 2, 1.5)])) == [
        (0, 4, "a", None),
        (4, 2, "b", None),
        (6, 2, "b", 1.5),
    ]


@given(SMALL, SMALL, st.lists(st.tuples(SMALL, st.integers(0, 30)), max_size=8))
def test_subtract(offset: int, count: int, holes: list[tuple[int, int]]) -> None:
    holes.sort()
    left = list(ranges.subtract(offset, count, holes))
    taken = {at for start, length in holes for at in range(start, start + length)}
    assert {at for start, length in left for at in range(start, start + length)} == set(
        range(offset, offset + count)
    ) - taken
    assert all(length > 0 for _, length in left)
    assert left == sorted(left)
