# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmdkit.ops.compare import compare
from vmdkit.ops.pool import CHUNK
from vmdkit.storage.memory import MemoryDevice

LUMPS = st.lists(st.tuples(st.integers(1, 8), st.sampled_from([b"A", b"B", b"\0", None])), max_size=8)


def test_zero_on_both_sides_is_not_read(pieces: Any) -> None:
    one, two = pieces([(100 * CHUNK, None)]), pieces([(100 * CHUNK, None)])
    steps: list[int] = []
    found = compare(one, two, progress=steps.append)
    assert (found.same, found.read, found.skipped) == (True, 0, 100 * CHUNK)
    assert one.reads == two.reads == []
    assert sum(steps) == 100 * CHUNK


@pytest.mark.parametrize("at", [0, 7, CHUNK - 1, CHUNK, 2 * CHUNK + 99])
def test_the_first_difference(at: int, pieces: Any) -> None:
    one, two = pieces([(3 * CHUNK, b"A")]), pieces([(3 * CHUNK, b"A")])
    two.data[at] = two.data[-1] = 0x42
    assert compare(one, two).offset == compare(two, one).offset == at


def test_zeros_that_are_stored_are_the_same_as_holes(pieces: Any) -> None:
    one, two = pieces([(CHUNK, b"\0"), (10, b"A")]), pieces([(CHUNK, None), (10, b"A")])
    assert compare(one, two).same
    one.data[77] = 1
    assert compare(one, two).offset == compare(two, one).offset == 77


def test_sizes(pieces: Any) -> None:
    short = pieces([(100, b"A")])
    longer = pieces([(100, b"A"), (50, None), (50, b"\0")])
    assert compare(short, longer).same
    assert compare(longer, short).same
    assert compare(short, longer, strict=True).offset == 100
    longer.data[160] = 1
    assert compare(short, longer).offset == 160
    assert compare(MemoryDevice(0), MemoryDevice(0)).same


def test_what_both_take_from_one_file_is_not_read(mapped: Any) -> None:
    one = mapped([(CHUNK, b"A"), (CHUNK, None), (CHUNK, b"B")])
    found = compare(one, one)
    assert (found.same, found.read) == (True, 0)


def test_errors_of_reading_come_out(pieces: Any) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        compare(pieces([(10, b"A")], fail_at=3), pieces([(10, b"A")]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LUMPS, LUMPS)
def test_against_the_plain_way(pieces: Any, left: Any, right: Any) -> None:
    one, two = pieces(left), pieces(right)
    size = max(one.size, two.size)
    pairs = zip(bytes(one.data).ljust(size, b"\0"), bytes(two.data).ljust(size, b"\0"), strict=True)
    expected = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    assert compare(one, two).offset == expected
