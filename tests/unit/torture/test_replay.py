# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a power cut can leave of recorded files, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from vmdkit.filters.record_writes import Entry
from vmdkit.torture.replay import Replay, State

S = 512
A, B, C = b"A" * S, b"B" * S, b"C" * S


def write(moment: int, data: bytes, offset: int, file: str = "f") -> Entry:
    return Entry("write", file, offset, len(data), data, begun=moment, ended=moment + 1)


def flush(moment: int, file: str = "f") -> Entry:
    return Entry("flush", file, begun=moment, ended=moment + 1)


def every(replay: Replay, cut: int, file: str = "f") -> set[bytes]:
    """Return all contents that whole changes and all sizes can leave."""
    pending = replay.histories[file].pending(cut)
    sizes = sum(op.size is not None for op in pending)
    found = set()
    for masks in product(*((0, op.whole) for op in pending)):
        for sized in range(sizes + 1):
            found.add(bytes(replay.build(replay.state(cut, {file: list(masks)}, {file: sized}))[file]))
    return found


def test_nothing_is_there_before_it_began() -> None:
    replay = Replay({"f": A}, [write(10, B, 0)])
    assert every(replay, 10) == {A}
    assert every(replay, 11) == {A, B}


def test_a_barrier_makes_sure_what_had_ended_before_it_began() -> None:
    replay = Replay({"f": A + A}, [write(10, B, 0), flush(20), write(19, C, S)])
    assert every(replay, 21) == {A + A, A + C, B + A, B + C}
    assert every(replay, 22) == {B + A, B + C}  # the second write ended in the barrier


def test_a_barrier_covers_its_own_file_only() -> None:
    replay = Replay({"f": A, "g": A}, [write(10, B, 0), write(12, B, 0, "g"), flush(20, "g")])
    assert every(replay, 30, "f") == {A, B}
    assert every(replay, 30, "g") == {B}


def test_each_sector_is_torn_for_itself() -> None:
    replay = Replay({"f": A + A}, [write(10, B + C, 0)])
    assert replay.build(replay.state(20, {"f": [0b10]}))["f"] == A + C


def test_a_sector_is_written_with_all_that_came_before() -> None:
    replay = Replay({"f": A}, [write(10, b"1", 0), write(20, b"2", 1)])
    rest = A[2:]
    assert every(replay, 30) == {A, b"1A" + rest, b"12" + rest}  # never "A2": the page cache has no such sector


def test_the_size_comes_without_the_data() -> None:
    replay = Replay({"f": A}, [Entry("resize", "f", length=2 * S, begun=10, ended=11), write(12, B, S)])
    assert every(replay, 20) == {A, A + bytes(S), A + B}


def test_a_write_behind_the_end_grows_the_file() -> None:
    replay = Replay({"f": A}, [write(10, B, S)])
    assert every(replay, 20) == {A, A + bytes(S), A + B}


def test_a_file_need_not_end_with_a_sector() -> None:
    replay = Replay({"f": b"old"}, [write(10, b"n", 0), flush(20), write(30, b"w", 2)])
    assert every(replay, 15) == {b"old", b"nld"}
    assert every(replay, 40) == {b"nld", b"nlw"}


def test_cutting_a_file_short_loses_its_tail() -> None:
    shrink = Entry("resize", "f", length=S, begun=10, ended=11)
    grow = Entry("resize", "f", length=2 * S, begun=12, ended=13)
    replay = Replay({"f": A + B}, [shrink, grow])
    assert every(replay, 20) == {A + B, A, A + bytes(S)}


def test_punching_keeps_the_size() -> None:
    replay = Replay({"f": A + B}, [Entry("zero", "f", S, 4 * S, begun=10, ended=11)])
    assert every(replay, 20) == {A + B, A + bytes(S)}


def test_failed_entries_have_done_nothing() -> None:
    entry = write(10, B, 0)
    entry.failed = True
    assert every(Replay({"f": A}, [entry, write(12, A, 0)]), 20) == {A}


def test_names_change_in_order_and_are_sure_after_their_directory() -> None:
    entries = [
        Entry("create", "new", other="new#1", begun=10, ended=11),
        write(12, B, 0, "new#1"),
        Entry("flush", "new#1", begun=14, ended=15),
        Entry("rename", "new", other="f", begun=16, ended=17),
        Entry("flush", "", begun=20, ended=21),
    ]
    replay = Replay({"f": A}, entries)
    state = replay.state(18, {})
    kept = {
        count: {name: bytes(data) for name, data in replay.build(state_of(state, count)).items()} for count in range(3)
    }
    assert kept == {0: {"f": A}, 1: {"f": A, "new": B}, 2: {"f": B}}
    assert replay.build(replay.state(22, {})) == {"f": B}


def state_of(state: State, count: int) -> State:
    return replace(state, names=(("", count),))
