# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdkit.ops.zeros import data_runs, first_data, first_difference
from vmdkit.units import MIB

LUMPS = st.lists(st.tuples(st.sampled_from([b"\0", b"\1", b"\0\1"]), st.integers(0, 40)), max_size=12)


@given(LUMPS, st.sampled_from([8, 16, 64]))
def test_whole_zero_blocks_are_taken_out(lumps: list[tuple[bytes, int]], block: int) -> None:
    data = b"".join(lump * count for lump, count in lumps)
    left = [data[at : at + block] for at in range(0, len(data), block)]
    expected = b"".join(bytes(len(part)) if not any(part) else b"x" * len(part) for part in left)
    found = bytearray(len(data))
    before = -1
    for at, length in data_runs(memoryview(data), block):
        assert at > before, "runs are ascending and do not touch"
        assert length > 0
        found[at : at + length] = b"x" * length
        before = at + length
    assert found == expected


def test_granularity_0_takes_nothing_out() -> None:
    assert list(data_runs(memoryview(bytes(10)), 0)) == [(0, 10)]


@pytest.mark.parametrize("at", [0, 1, 511, 512, 4094, 4095])
def test_first_difference(at: int) -> None:
    one = bytearray(4096)
    two = bytearray(one)
    assert first_difference(one, two) == -1
    two[at] = 1
    two[4095] = 7
    assert first_difference(one, two) == at


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 2 * MIB + 16])
def test_first_data(at: int) -> None:
    buf = bytearray(2 * MIB + 17)
    assert first_data(buf) == -1
    buf[at] = 1
    assert first_data(buf) == at
