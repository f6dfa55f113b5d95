# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Freed places come back when nobody can be using them, the lowest first, no more of them than can be remembered."""

from __future__ import annotations

import numpy as np
import pytest

from vmdkit.errors import VmdkitError
from vmdkit.torture.files import MemoryFile
from vmdkit.units import KIB
from vmdkit.vmdk import space as module
from vmdkit.vmdk.epochs import Epochs
from vmdkit.vmdk.space import HIGHEST, Space, joined

GRAIN = 64 * KIB


def make(grains: int = 4) -> Space:
    return Space(MemoryFile(bytearray(grains * GRAIN), "f", writable=True), GRAIN, grains * GRAIN, Epochs())


def test_the_lowest_goes_first_as_far_as_it_reaches() -> None:
    space = make(8)
    space.give_back([(5 * GRAIN, 7 * GRAIN), (GRAIN, 2 * GRAIN)])
    assert space.take(3) == (GRAIN, 1, False)
    assert space.take(1) == (5 * GRAIN, 1, False)
    assert space.take(3) == (6 * GRAIN, 1, False)
    assert space.take(3) == (8 * GRAIN, 3, True)
    assert space.end == 11 * GRAIN


def test_nothing_is_released_while_an_operation_of_before_runs() -> None:
    epochs = Epochs()
    space = Space(MemoryFile(bytearray(GRAIN), "f", writable=True), GRAIN, GRAIN, epochs)
    with epochs.operation():
        space.retire([(0, GRAIN)])
        assert space.released() == []
        assert space.take(1) == (GRAIN, 1, True)
    assert space.released() == [(0, GRAIN)]
    assert space.released() == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RANGES", 3)
    space = make(20)
    space.give_back([(at * GRAIN, (at + 1) * GRAIN) for at in range(0, 20, 2)])
    space.give_back([(GRAIN, 2 * GRAIN)])
    assert [space.take(1)[2] for _ in range(4)] == [False, False, False, True]
    space.retire([(at * GRAIN, (at + 1) * GRAIN) for at in range(0, 20, 2)])
    assert len(space.released()) == 6


def test_pointers_end() -> None:
    space = make()
    with pytest.raises(VmdkitError, match="2 TiB"):
        space.take(HIGHEST // GRAIN - 3)
    assert space.take(1) == (4 * GRAIN, 1, True)


@pytest.mark.parametrize(
    ("addresses", "ranges"),
    [
        ([], []),
        ([7], [(7, 8)]),
        ([3, 1, 2], [(1, 4)]),
        ([9, 1, 2, 5], [(1, 3), (5, 6), (9, 10)]),
    ],
)
def test_joined(addresses: list[int], ranges: list[tuple[int, int]]) -> None:
    assert joined(np.array(addresses, dtype=np.int64), 1) == ranges
