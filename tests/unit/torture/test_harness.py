# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing states, making failing ones small, keeping recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import FormatError
from vmdkit.filters.record_writes import Entry, Journal, RecordWrites
from vmdkit.storage.memory import MemoryDevice
from vmdkit.torture import harness, keep, own
from vmdkit.torture.choose import choose
from vmdkit.torture.fixtures import plans
from vmdkit.torture.harness import Finding, Recording
from vmdkit.torture.promise import Promises
from vmdkit.torture.replay import Replay
from vmdkit.torture.server import Commands
from vmdkit.torture.workload import actions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vmdkit.torture.harness import Files
    from vmdkit.torture.promise import Expected
    from vmdkit.torture.replay import State

S = 512


def recording() -> Recording:
    """Twelve sectors written one by one, then a barrier."""
    entries = [
        Entry("write", "f", at * S, S, bytes([at + 1]) * S, begun=2 * at + 1, ended=2 * at + 2) for at in range(12)
    ]
    entries.append(Entry("flush", "f", begun=30, ended=40))
    return Recording("twelve", {"f": bytes(12 * S)}, entries, Promises(bytes(12 * S), []))


def seventh_without_third(files: Files, expected: Expected, state: State) -> Iterable[Finding]:
    if files["f"][6 * S] and not files["f"][2 * S]:
        yield Finding("order", "the seventh is there, and the third is not")


def test_a_failing_state_becomes_small() -> None:
    result = harness.run(recording(), seventh_without_third, states=200, seed=1)
    assert result.failing
    (example,) = result.examples
    ((_, left),) = example.state.files
    assert [at for at, mask in enumerate(left.kept) if mask] == [6]
    assert sum("kept" in line for line in example.story) == 1


def test_the_same_seed_chooses_the_same_states() -> None:
    made = recording()
    replay = Replay(made.files, made.entries)
    one, two, three = (list(choose(replay, made.hard_moments(), made.moments(), 100, seed)) for seed in (1, 1, 2))
    assert one == two != three
    assert len(set(one)) == len(one) == 100


def test_every_subset_of_few_changes_is_looked_at() -> None:
    made = recording()
    replay = Replay(made.files, made.entries)
    seen = {bytes(replay.build(state)["f"]) for state in choose(replay, [9], [9], 100, 1)}
    assert len(seen) == 2**4


def test_the_same_seed_makes_the_same_recording() -> None:
    plan = plans()["sparse-child"]
    one, two = own.record(plan, 3), own.record(plan, 3)
    cid = range(S, 2 * S)  # the new content ID is random
    assert [entry for entry in one.entries if entry.offset not in cid] == [
        entry for entry in two.entries if entry.offset not in cid
    ]
    assert actions(1 << 20, 4096, 50, 1) == actions(1 << 20, 4096, 50, 1) != actions(1 << 20, 4096, 50, 2)


def test_a_recording_is_kept(tmp_path: Path) -> None:
    made = own.record(plans()["cowd"], 1)
    path = str(tmp_path / "kept")
    keep.save(path, made, Commands("create", "server", "read", size=1 << 20))
    again, commands = keep.load(path)
    assert (list(again.entries), again.files, again.name) == (list(made.entries), made.files, made.name)
    assert [str(one) for one in again.promises.requests] == [str(one) for one in made.promises.requests]
    assert Commands(**commands).size == 1 << 20
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(FormatError):
        keep.load(str(tmp_path / "other"))


def test_the_filter_records_and_passes_on() -> None:
    journal = Journal()
    with RecordWrites(MemoryDevice(4096, name="m"), journal) as device:
        device.pwrite(b"abc", 5)
        device.zero(10, 100)
        device.trim(10, 200)
        device.flush()
        assert device.pread(4, 4) == b"\0abc"
    assert [(one.verb, one.file, one.offset, one.length, one.data) for one in journal.entries] == [
        ("write", "m", 5, 3, b"abc"),
        ("zero", "m", 100, 10, b""),
        ("zero", "m", 200, 10, b""),
        ("flush", "m", 0, 0, b""),
    ]
    moments = [moment for one in journal.entries for moment in (one.begun, one.ended)]
    assert moments == sorted(set(moments))
