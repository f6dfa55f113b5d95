# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmdkit.ops.differences import differences, differing
from vmdkit.ops.pool import CHUNK
from vmdkit.storage.memory import MemoryDevice

LUMPS = st.lists(st.tuples(st.integers(1, 1500), st.sampled_from([b"A", b"B", b"\0", None])), max_size=8)


def plainly(one: bytes, two: bytes) -> list[tuple[int, int]]:
    """Return the ranges of sectors that differ, the slow way."""
    size = max(len(one), len(two))
    one, two = one.ljust(size, b"\0"), two.ljust(size, b"\0")
    found: list[tuple[int, int]] = []
    for at in range(0, size, 512):
        if one[at : at + 512] != two[at : at + 512]:
            length = min(512, size - at)
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((at, length))
    return found


def test_nothing_differs(pieces: Any) -> None:
    found = differences(pieces([(CHUNK, b"A"), (9, None)]), pieces([(CHUNK, b"A"), (9, b"\0")]), limit=9)
    assert (found.same, found.ranges, found.complete, found.count) == (True, [], True, 0)


def test_ranges_and_progress(pieces: Any) -> None:
    one, two = pieces([(3 * CHUNK, b"A")]), pieces([(3 * CHUNK, b"A")])
    for at in (0, 511, 600, 5000, CHUNK - 1, CHUNK, 3 * CHUNK - 1):
        two.data[at] = 0
    steps: list[int] = []
    found = differences(one, two, limit=9, progress=steps.append)
    assert found.ranges == [(0, 1024), (4608, 512), (CHUNK - 512, 1024), (3 * CHUNK - 512, 512)]
    assert found.count == 3072
    assert sum(steps) == found.read == 3 * CHUNK


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_bound(limit: int, pieces: Any) -> None:
    one, two = pieces([(3 * CHUNK, b"A")]), pieces([(3 * CHUNK, b"A")])
    for at in (0, 5000, 2 * CHUNK):
        two.data[at] = 0
    found = differences(one, two, limit=limit)
    assert found.ranges == [(0, 512), (4608, 512), (2 * CHUNK, 512)][:limit]
    assert found.complete == (limit >= 3)


def test_sizes(pieces: Any) -> None:
    short, longer = pieces([(1000, b"A")]), pieces([(1000, b"A"), (1000, None), (3, b"B")])
    assert differences(short, longer, limit=9).ranges == [(1536, 467)]
    assert differences(longer, short, limit=9, strict=True).ranges == [(1000, 1003)]
    assert differences(MemoryDevice(0), MemoryDevice(0), limit=1, strict=True).same


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=3000), st.lists(st.integers(0, 2999)), st.integers(0, 2000), st.booleans())
def test_buffers(data: bytes, changes: list[int], offset: int, zero: bool) -> None:
    one = bytearray(data)
    two = bytearray(len(data)) if zero else bytearray(data)
    for at in changes:
        two[at % len(two)] ^= 0 if zero else 1
    behind = bytes(-(offset + len(data)) % 512)
    expected = plainly(bytes(offset) + one + behind, bytes(offset) + two + behind)
    assert differing(one, None if zero else two, offset) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LUMPS, LUMPS)
def test_against_the_plain_way(pieces: Any, left: Any, right: Any) -> None:
    one, two = pieces(left), pieces(right)
    found = differences(one, two, limit=1000)
    expected = plainly(bytes(one.data), bytes(two.data))
    assert found.ranges == expected
