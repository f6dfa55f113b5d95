# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What the write path does to its file, call by call: how much it writes, when it waits, where freed grains go."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import VmdkitError
from vmdkit.filters.record_writes import Journal
from vmdkit.torture.files import FailAt, Folder
from vmdkit.torture.fixtures import plans
from vmdkit.torture.own import open_disk
from vmdkit.units import KIB
from vmdkit.vmdk import allocate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.filters.record_writes import Entry
    from vmdkit.torture.files import Faults
    from vmdkit.vmdk.disk import VmdkDisk

GRAIN = 64 * KIB


class Lab:
    """A disk in memory, and what is done to its file."""

    def __init__(self, plan: str = "sparse-64k", faults: Faults | None = None) -> None:
        self.fixture = plans()[plan].make(1)
        self.journal = Journal()
        self.folder = Folder(self.fixture.files, self.journal, faults)
        self.disk: VmdkDisk = open_disk(self.folder, self.fixture.top, writable=True)
        self.free = [at for at in range(0, self.disk.size - GRAIN, GRAIN) if self.is_free(at)]

    def is_free(self, at: int) -> bool:
        return all(run.flags == 0 for run in self.disk.extents(GRAIN, at, context="qemu:allocation-depth"))

    def since(self, mark: int) -> list[Entry]:
        return self.journal.entries[mark:]

    @property
    def now(self) -> int:
        return len(self.journal.entries)

    @property
    def size(self) -> int:
        return len(self.folder.files[self.fixture.top])


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.disk.close()


def test_of_a_fresh_grain_only_the_guests_bytes_are_written(lab: Lab) -> None:
    lab.disk.pwrite(b"x" * 512, lab.free[0])
    mark = lab.now
    lab.disk.pwrite(b"y" * 4096, lab.free[1] + 8192)
    assert [entry.length for entry in lab.since(mark) if entry.verb == "write"] == [4096]
    assert lab.disk.pread(GRAIN, lab.free[1]) == bytes(8192) + b"y" * 4096 + bytes(GRAIN - 12288)


def test_of_a_freed_grain_everything_is_written(lab: Lab) -> None:
    lab.disk.pwrite(b"x" * GRAIN, lab.free[0])
    lab.disk.flush()
    lab.disk.trim(GRAIN, lab.free[0])
    lab.disk.flush()
    mark = lab.now
    lab.disk.pwrite(b"y" * 4096, lab.free[1])
    assert [entry.length for entry in lab.since(mark) if entry.verb == "write"] == [GRAIN]


def test_the_file_grows_in_steps_and_is_cut_at_the_end(lab: Lab) -> None:
    begin = -(-lab.size // GRAIN) * GRAIN
    for at in lab.free[:12]:
        lab.disk.pwrite(b"x" * 4096, at)
    grown = [entry.length for entry in lab.journal.entries if entry.verb == "resize"]
    assert 1 < len(grown) < 8
    assert grown[-1] > begin + 12 * GRAIN
    lab.disk.close()
    assert lab.size == begin + 12 * GRAIN


def test_a_full_disk_gets_what_it_needs_and_no_more() -> None:
    spacious = True
    lab = Lab(faults=lambda verb, name: errno.ENOSPC if verb == "resize" and not spacious else 0)
    for at in lab.free[:5]:
        lab.disk.pwrite(b"x" * 4096, at)
    writer = lab.disk.extent_files[0].writer
    assert writer is not None
    spacious = False
    last = 5
    while writer._space.end < lab.size:
        lab.disk.pwrite(b"x" * 4096, lab.free[last])
        last += 1
    with pytest.raises(OSError, match="No space"):
        lab.disk.pwrite(b"x" * 4096, lab.free[last])
    spacious = True
    lab.disk.pwrite(b"y" * 4096, lab.free[last])
    assert lab.disk.pread(8192, lab.free[last]) == b"y" * 4096 + bytes(4096)
    lab.disk.close()


def test_growing_generously_is_tried_once() -> None:
    lab = Lab(faults=FailAt(errno.ENOSPC, ("resize",), first=5))
    for at in lab.free[:16]:
        lab.disk.pwrite(b"x" * 4096, at)
    lab.disk.close()


def test_a_flush_without_changes_waits_for_nothing(lab: Lab) -> None:
    lab.disk.pwrite(b"x" * 4096, lab.free[0])
    lab.disk.flush()
    mark = lab.now
    lab.disk.flush()
    assert not lab.since(mark)
    lab.disk.pread(512, 0)
    lab.disk.flush()
    assert not lab.since(mark)
    lab.disk.pwrite(b"y" * 4096, lab.free[0])
    lab.disk.flush()
    assert [entry.verb for entry in lab.since(mark)] == ["write", "flush"]  # no table changed: one barrier


def test_bytes_overwritten_in_place_are_flushed(lab: Lab) -> None:
    assert not lab.disk.in_place  # the first change has to announce itself
    lab.disk.pwrite(b"x" * 4096, lab.free[0])
    assert lab.disk.in_place
    lab.disk.flush()
    mark = lab.now
    lab.disk.overwritten()
    lab.disk.flush()
    assert [entry.verb for entry in lab.since(mark)] == ["flush"]


def test_a_hole_that_cannot_be_punched_is_used_again_and_nobody_is_told() -> None:
    lab = Lab(faults=FailAt(errno.EIO, ("trim",), first=1, count=99))
    lab.disk.pwrite(b"x" * GRAIN, lab.free[0])
    lab.disk.flush()
    size = lab.size
    for round_ in range(5):
        lab.disk.trim(GRAIN, lab.free[round_])
        lab.disk.flush()
        lab.disk.pwrite(b"y" * 512, lab.free[round_ + 1])  # an unrelated place
        lab.disk.flush()
        assert lab.disk.pread(1024, lab.free[round_ + 1]) == b"y" * 512 + bytes(512)
    assert lab.size == size
    lab.disk.close()


def test_much_is_published_unasked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "_EARLY", 4 * GRAIN)
    for at in lab.free[:5]:
        lab.disk.pwrite(b"x" * GRAIN, at)
    writer = lab.disk.extent_files[0].writer
    assert writer is not None
    writer.wait()
    assert sum(entry.verb == "flush" for entry in lab.journal.entries) >= 4  # two of them began the session


def test_an_error_of_publishing_unasked_is_told_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "_EARLY", 4 * GRAIN)
    lab = Lab(faults=FailAt(errno.EIO, ("flush",), first=3))
    for at in lab.free[:4]:
        lab.disk.pwrite(b"x" * GRAIN, at)
    writer = lab.disk.extent_files[0].writer
    assert writer is not None
    writer.wait()
    assert not lab.disk.in_place
    with pytest.raises(VmdkitError, match="nothing more is written"):
        lab.disk.pwrite(b"x", 0)
    with pytest.raises(VmdkitError, match="nothing more is written"):
        lab.disk.flush()
    lab.disk.close()


def test_changed_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "_MOST_PINNED", 4096)  # one table
    lab = Lab("sparse")  # grains of 4 KiB, several tables
    step = 512 * lab.fixture.grain
    for at in range(0, lab.disk.size, step):
        lab.disk.trim(lab.fixture.grain, at)
        lab.disk.pwrite(b"x" * 512, at)
    writer = lab.disk.extent_files[0].writer
    assert writer is not None
    assert len(writer._pending.sectors) <= 1
    lab.disk.zero(lab.disk.size, 0)
    assert len(writer._pending.sectors) <= 1
    lab.disk.close()
