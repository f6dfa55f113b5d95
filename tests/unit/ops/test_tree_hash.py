# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

import witness
from vmdkit.device import HOLE_ZERO
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.tree import Shape
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import KIB, MIB, TIB

LUMPS = [(100, b"A"), (3 * CHUNK + 1, None), (2 * CHUNK, b"bc"), (9, b"\0"), (70000, None), (3, b"z")]


@pytest.mark.parametrize("zeros", list(Zeros))
@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB, 2 * MIB])
def test_agrees_with_the_definition(zeros: Zeros, block: int, pieces: Any) -> None:
    source = pieces(LUMPS)
    steps: list[int] = []
    found = tree_hash(source, Shape(block=block), zeros=zeros, progress=steps.append)
    assert found.digest.hex() == witness.tree_hash(bytes(source.data), block)
    assert sum(steps) == source.size
    assert min(steps) >= 0


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, MIB, MIB + 1])
def test_sizes(size: int) -> None:
    data = bytes(1 + number % 255 for number in range(size))
    assert tree_hash(MemoryDevice(data)).digest.hex() == witness.tree_hash(data)


def test_only_blocks_that_hold_data_are_read(pieces: Any) -> None:
    source = pieces(LUMPS)
    tree_hash(source, Shape(block=4 * KIB))
    read = sum(count for _, count in source.reads)
    data = sum(length * len(data) for length, data in LUMPS if data)
    assert read < data + 8 * 4 * KIB


def test_a_map_that_lies_is_believed_or_not(pieces: Any) -> None:
    truth = pieces([(300000, b"A"), (100000, b"B")])
    right = tree_hash(truth)
    truth.runs = [(0, 300000, 0), (300000, 100000, HOLE_ZERO)]
    assert tree_hash(truth, zeros=Zeros.NOBODY) == right
    assert tree_hash(truth, zeros=Zeros.EXTENTS) != right
    assert tree_hash(truth, zeros=Zeros.PLAN) != right


def test_holes_of_the_file_behind_are_not_read(mapped: Any) -> None:
    source = mapped([(MIB, b"A"), (MIB, None), (5, b"B")])
    assert tree_hash(source) == tree_hash(source, zeros=Zeros.NOBODY)


def test_many_tebibytes_of_nothing(pieces: Any) -> None:
    class Sparse(pieces):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__([(8, b"x")])
            self._size = self._end = 60 * TIB + 512
            self.runs = [(0, 8, 0), (8, self._size - 8, HOLE_ZERO)]

        def _pread_into(self, view: memoryview, offset: int) -> None:
            view[:] = bytes(8).ljust(len(view), b"\0")
            self.reads.append((offset, len(view)))

    source = Sparse()
    assert tree_hash(source).size == 60 * TIB + 512
    assert source.reads == [(0, 64 * KIB)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads: int, pieces: Any) -> None:
    source = pieces(LUMPS)
    assert tree_hash(source, threads=threads) == tree_hash(source)


def test_an_error_says_where(pieces: Any) -> None:
    source = FaultDevice(pieces([(4 * CHUNK, b"A")]), [Fault("read", 2 * CHUNK + 70000, 1)])
    with pytest.raises(OSError, match="Input/output error") as caught:
        tree_hash(source)
    assert caught.value.__notes__ == [f"in the {CHUNK} bytes at {2 * CHUNK:#x} of the disk"]
