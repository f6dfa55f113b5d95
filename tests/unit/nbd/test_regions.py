# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a device, when it is forgotten, and what is never believed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbdwire import STATUS, connect, serving
from vmdkit.device import Can, Device, Kind, Location
from vmdkit.nbd import regions as module
from vmdkit.nbd.regions import ASK, DATA, REGION, UNKNOWN, ZERO, Regions, take_status
from vmdkit.storage.file import FileDevice, open_file
from vmdkit.units import GIB, KIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 2 * REGION + 5000


class Mapped(Device):
    """A device whose map is given: (length, kind, at)."""

    def __init__(self, storage: FileDevice | None, runs: list[tuple[int, Kind, int]], can: Can = Can.NONE) -> None:
        super().__init__(sum(length for length, _, _ in runs), can=can)
        self.runs, self.storage, self.asked = runs, storage, 0

    def _pread_into(self, view: memoryview, offset: int) -> None:
        raise AssertionError

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        self.asked += 1
        start = 0
        for length, kind, at in self.runs:
            low, high = max(start, offset), min(start + length, offset + count)
            if low < high:
                yield Location(low, high - low, kind, self.storage if kind is Kind.DATA else None, at + low - start)
            start += length


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileDevice]:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(1000))
    with open_file(str(path)) as device:
        yield device


RUNS = [
    (64 * KIB, Kind.DATA, 700),
    (64 * KIB, Kind.HOLE, 0),
    (64 * KIB, Kind.ZERO, 0),
    (64 * KIB, Kind.COMPRESSED, 0),
    (SIZE - 256 * KIB, Kind.DATA, 9 << 20),
]


def test_walk_covers_every_range(storage: FileDevice) -> None:
    device = Mapped(storage, RUNS)
    regions = Regions(device)
    edges = sorted({*range(0, 257 * KIB, 64 * KIB), 1, 100, REGION - 1, REGION, REGION + 1, 2 * REGION, SIZE - 1, SIZE})
    for start in edges:
        for end in edges:
            if start < end:
                at = start
                for offset, length, what, fd, delta in regions.walk(start, end - start):
                    assert offset == at
                    kind = next(kind for stop, kind in KINDS if offset < stop)
                    assert what == kind
                    if what == DATA:
                        assert offset + delta == (700 + offset if offset < 64 * KIB else (9 << 20) + offset - 256 * KIB)
                        assert fd != storage.fileno()
                        assert os.path.sameopenfile(fd, storage.fileno() or -1)
                    at += length
                assert at == end
    regions.close()
    assert device.asked == 3  # once for each region


KINDS = [(64 * KIB, DATA), (192 * KIB, ZERO), (256 * KIB, ASK), (SIZE, DATA)]


def test_a_writable_device_is_believed_for_data_only(storage: FileDevice) -> None:
    device = Mapped(storage, RUNS, can=Can.WRITE)
    regions = Regions(device)
    assert [run[1] for run in regions.load(0)[1]] == [DATA, UNKNOWN, DATA]
    regions.wrote(0, 10)
    assert 0 not in regions.known  # what was no data may be data now
    regions.load(1)
    regions.wrote(REGION, 10)
    assert 1 in regions.known
    regions.changed(REGION, 1)
    assert 1 not in regions.known
    for index in range(3):
        regions.load(index)
    regions.changed(0, SIZE)
    assert not regions.known
    regions.close()


def test_a_parents_bytes_are_not_believed_to_stay(storage: FileDevice) -> None:
    class Child(Mapped):
        """Everything it shows is its parent's."""

        def _locate(self, count: int, offset: int) -> Iterator[Location]:
            return (run._replace(depth=1) for run in super()._locate(count, offset))

    for can, what in ((Can.NONE, DATA), (Can.WRITE, UNKNOWN)):
        regions = Regions(Child(storage, RUNS, can))
        assert regions.load(1)[1][0][1] == what  # a write would put the bytes into the child
        regions.close()


def test_memory_is_bounded(storage: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REGIONS", 2)
    regions = Regions(Mapped(storage, RUNS))
    for index in (0, 1, 2):
        regions.load(index)
    assert list(regions.known) == [1, 2]
    for index in (0, 1, 2):
        regions.status("base:allocation", index * REGION, 10, 9)
    assert len(regions.status_of("base:allocation")) == 2
    regions.close()


def test_status_is_that_of_the_device(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(3 * REGION)
        for at in (0, 3, 4, 60, 100):
            file.seek(at * 64 * KIB)
            file.write(b"x" * 64 * KIB)
    with open_file(str(path)) as device:
        regions = Regions(device)
        for offset, count in [(0, 3 * REGION), (0, 1), (64 * KIB - 1, 2), (5, 2 * REGION), (REGION - 7, 100)]:
            expected = [(extent.length, extent.flags) for extent in device.extents(count, offset)]
            assert regions.status("base:allocation", offset, count, 1000) == expected
            assert regions.status("base:allocation", offset, count, 2) == expected[:2]
        regions.close()


class Counted(Device):
    """A device of two long runs, data and a hole, that notes what it was asked."""

    def __init__(self, size: int, middle: int, can: Can = Can.NONE) -> None:
        super().__init__(size, can=can)
        self.middle, self.asked = middle, list[tuple[int, int]]()

    def _pread_into(self, view: memoryview, offset: int) -> None:
        raise AssertionError

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        self.asked.append((offset, count))
        end = offset + count
        if offset < self.middle:
            yield offset, min(self.middle, end) - offset, 0
        if end > self.middle:
            start = max(offset, self.middle)
            yield start, end - start, 3


def test_the_last_run_of_a_long_answer_is_followed_to_its_end() -> None:
    device = Counted(100 * GIB, 3 * GIB)
    assert take_status(device, "base:allocation", GIB, GIB, 9) == ([(GIB, 0)], (GIB, 2 * GIB, 0))
    assert take_status(device, "base:allocation", GIB, GIB, 9, 10 * GIB) == ([(GIB, 0)], (GIB, 3 * GIB, 0))
    many, span = take_status(device, "base:allocation", GIB, 4 * GIB, 9, 10 * GIB)
    assert (many, span) == ([(2 * GIB, 0), (2 * GIB, 3)], (3 * GIB, 15 * GIB, 3))
    assert take_status(device, "base:allocation", GIB, 4 * GIB, 1, GIB) == ([(2 * GIB, 0)], (GIB, 3 * GIB, 0))
    assert take_status(device, "base:allocation", 99 * GIB, GIB, 9, GIB)[1] == (99 * GIB, 100 * GIB, 3)
    regions = Regions(device)
    regions.met({"base:allocation": span})
    assert regions.span("base:allocation", 3 * GIB, 12 * GIB) == [(12 * GIB, 3)]
    assert not regions.span("base:allocation", 3 * GIB - 1, 2)
    assert not regions.span("base:allocation", 15 * GIB - 1, 2)
    assert not regions.span("qemu:allocation-depth", 4 * GIB, 1)
    changing = Regions(Counted(100 * GIB, 3 * GIB, Can.WRITE))
    changing.met({"base:allocation": span})
    assert not changing.span("base:allocation", 3 * GIB, GIB)


def test_a_nearly_empty_disk_is_asked_seldom() -> None:
    device = Counted(1024 * GIB, 5 * GIB)
    with serving(device) as server, connect(server) as client:
        client.enter(1, ["base:allocation"])
        answers = []
        for offset in range(0, device.size, 2 * GIB):
            (runs,) = client.request(STATUS, offset, 2 * GIB).extents().values()
            answers += runs
    assert sum(length for length, flags in answers if not flags) == 5 * GIB
    assert sum(length for length, _ in answers) == device.size
    assert len(device.asked) <= 3 + 1024 // 256 + 1


def test_a_closed_device_is_not_read_through_a_reused_number(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"mine" * 1000)
    device = open_file(str(path))
    regions = Regions(device)
    ((_, what, fd, delta),) = regions.load(0)[1]
    number = device.fileno()
    device.close()
    other = tmp_path / "other"
    other.write_bytes(b"them" * 1000)
    with other.open("rb") as file:
        assert what == DATA
        assert number == file.fileno()
        assert os.pread(fd, 4, delta) == b"mine"
    regions.close()
