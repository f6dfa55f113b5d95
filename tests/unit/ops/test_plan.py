# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from vmdkit.errors import FormatError
from vmdkit.ops.plan import NO_FILE, Segment, naming, placed, plan, whole
from vmdkit.storage.memory import MemoryDevice

KIB = 1024


def test_extents_where_nothing_is_located(pieces: Any) -> None:
    device = pieces([(KIB, b"A"), (KIB, None)])
    assert list(plan(device)) == [Segment(0, KIB, False), Segment(KIB, KIB, True)]
    assert [(run.kind.name, zero) for run, zero in placed(device)] == [("UNKNOWN", False), ("HOLE", True)]


def test_verbatim_data_has_its_file(mapped: Any) -> None:
    device = mapped([(KIB, None), (KIB, b"A")])
    fd = device.storage.fileno()
    assert list(plan(device)) == [Segment(0, KIB, True), Segment(KIB, KIB, False, fd, len(b"header"))]


def test_a_range(mapped: Any) -> None:
    device = mapped([(KIB, None), (KIB, b"A")])
    assert [(run.offset, run.length, run.zero) for run in plan(device, KIB, 512)] == [
        (512, 512, True),
        (1024, 512, False),
    ]


def test_holes_of_the_file_below_are_zero(mapped: Any, target: Any) -> None:
    device = mapped([(128 * KIB, b"A")])
    hollow = target(256 * KIB)
    hollow.pwrite(b"x" * 4096, 64 * KIB)
    hollow.flush()
    device.places = {0: 32 * KIB}
    device.storage, before = hollow, device.storage
    before.close()
    found = list(plan(device))
    assert [run.zero for run in found] == [True, False, True]
    assert found[1] == Segment(32 * KIB, 4096, False, hollow.fileno(), 64 * KIB)


def test_memory_must_be_read() -> None:
    assert list(plan(MemoryDevice(100))) == [Segment(0, 100, False, NO_FILE)]
    assert list(plan(MemoryDevice(0))) == []


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([10, -30, 10], [10, -30, 10]),
        ([8, -30, 12], [10, -20, 20]),
        ([8, -9, 33], [50]),  # no whole ten in the zeros
        ([-50], [-50]),
        ([-55], [-50, 5]),
        ([-5], [5]),
        ([-9, 1, -9, 1, -20], [20, -20]),
        ([3, 4, -10, 20, 3], [40]),
        ([-10, -10, 5], [-10, -10, 5]),
    ],
)
def test_seams_move_to_whole_grains(lengths: list[int], expected: list[int]) -> None:
    segments, at = [], 0
    for length in lengths:
        segments.append(Segment(at, abs(length), length < 0, 7 if length > 0 else NO_FILE, 99))
        at += abs(length)
    found = list(whole(segments, 10))
    assert [-run.length if run.zero else run.length for run in found] == expected
    assert [run.offset for run in found] == [sum(map(abs, expected[:index])) for index in range(len(expected))]
    assert all(run.fd == NO_FILE for run in found)


def test_errors_say_where(pieces: Any) -> None:
    device = pieces([(1, b"A")])
    with pytest.raises(OSError, match="gone") as caught, naming(0x200, 9, device):
        raise OSError(5, "gone")
    assert caught.value.filename == "pieces"
    assert caught.value.__notes__ == ["in the 9 bytes at 0x200 of the disk"]
    with pytest.raises(FormatError) as other, naming(0, 9, device):
        raise FormatError("bad")
    assert other.value.__notes__ == ["in the 9 bytes at 0x0 of the disk"]
