# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from vmdkit.ops.pool import CHUNK, ordered, read_ahead


def test_results_come_in_order() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(ordered(work, range(20), threads=3)) == list(range(20))


def test_never_more_ahead_than_said() -> None:
    taken = 0

    def items() -> Any:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for result in ordered(lambda number: number, items(), threads=2, ahead=4):
        assert taken - result <= 4 + 1


def test_light_items_are_worked_by_the_caller_when_due() -> None:
    who: list[tuple[int, bool]] = []

    def work(number: int) -> int:
        who.append((number, threading.current_thread() is threading.main_thread()))
        return number

    assert list(ordered(work, range(6), heavy=lambda number: number % 2 == 0)) == list(range(6))
    assert dict(who) == {number: bool(number % 2) for number in range(6)}
    light = [number for number, here in who if here]
    assert light == sorted(light)


def test_the_first_error_in_order_is_raised_and_the_rest_is_dropped() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        if number == 5:
            time.sleep(0.05)
            raise ValueError("five")
        if number == 6:
            raise ValueError("six")
        return number

    with pytest.raises(ValueError, match="five"):
        list(ordered(work, range(1000), threads=2))
    assert len(done) < 20


def test_an_error_of_the_items_ends_the_threads() -> None:
    def items() -> Any:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(ordered(lambda number: number, items()))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]


def test_read_ahead_gives_all_bytes(pieces: Any) -> None:
    device = pieces([(CHUNK + 5, b"A"), (3 * CHUNK, None), (CHUNK // 2, b"bc")])
    found = bytearray()
    for piece, view in read_ahead(device):
        found += bytes(piece.length) if view is None else view
    assert found == device.data
    assert all(length <= CHUNK for _, length in device.reads)
    assert not any(start < offset < start + 3 * CHUNK for offset, _ in device.reads for start in [CHUNK + 5])


def test_read_ahead_may_be_left_early(pieces: Any) -> None:
    device = pieces([(20 * CHUNK, b"A")])
    for _ in read_ahead(device):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]
