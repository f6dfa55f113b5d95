# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The inner interface: its defaults, and doubts."""

from __future__ import annotations

import pytest

from vmdkit.errors import CorruptError, UnsupportedError, VmdkitError
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.extent_file import Doubt, ExtentFile, Run, RunKind
from vmdkit.vmdk.flat import FlatExtent, MissingTail, NoAccessExtent, ZeroExtent


class Steps(ExtentFile):
    """Pieces of 10 bytes, in turn data and zero."""

    def map(self, offset: int, count: int) -> Run:
        length = min(count, 10 - offset % 10)
        return Run(length, RunKind.ZERO) if offset // 10 % 2 else Run(length, RunKind.DATA, 1000 + offset)


def test_runs_ask_map_until_all_is_said() -> None:
    extent = Steps(100, None, kind="STEPS")
    assert list(extent.runs(5, 20)) == [
        Run(5, RunKind.DATA, 1005),
        Run(10, RunKind.ZERO),
        Run(5, RunKind.DATA, 1020),
    ]
    assert list(extent.runs(5, 0)) == []
    assert extent.allocated() == 50
    assert extent.facts() == {"type": "STEPS", "file": "", "length": 100}
    assert list(extent.examine()) == []
    extent.close()


def test_defaults_refuse() -> None:
    extent = Steps(100, MemoryDevice(b"", name="x.vmdk"), kind="STEPS")
    with pytest.raises(UnsupportedError, match=r"x.vmdk: STEPS has no compressed grains"):
        extent.inflate_into(memoryview(bytearray(1)), 0)
    assert isinstance(extent.refusal(0, RunKind.CORRUPT), CorruptError)
    assert type(extent.refusal(0, RunKind.NOACCESS)) is VmdkitError


def test_doubts() -> None:
    assert str(Doubt("odd")) == "odd"
    assert str(Doubt("odd", "x.vmdk", 16)) == "x.vmdk: odd (at offset 0x10)"
    assert Doubt("odd", "x") == Doubt("odd", "x")


def test_extents_without_a_map() -> None:
    assert ZeroExtent(10).map(3, 5) == Run(5, RunKind.ZERO)
    assert NoAccessExtent(10, "FLAT").map(3, 5) == Run(5, RunKind.NOACCESS)
    missing = MissingTail(512, "x.vmdk")
    assert missing.map(0, 512) == Run(512, RunKind.CORRUPT)
    assert missing.path == "x.vmdk"
    assert "512 bytes more than its header has" in str(missing.refusal(0, RunKind.CORRUPT))


@pytest.mark.parametrize(
    ("size", "start", "held"), [(100, 0, 100), (100, 10, 90), (200, 50, 100), (10, 20, 0), (20, 20, 0), (21, 20, 1)]
)
def test_flat(size: int, start: int, held: int) -> None:
    extent = FlatExtent(100, MemoryDevice(size, name="x"), start=start, kind="FLAT")
    assert extent.allocated() == held
    assert bool(extent.doubts) == (held < 100)
    assert extent.facts()["start"] == start
    if held:
        assert extent.map(0, 100) == Run(held, RunKind.DATA, start)
        assert extent.map(held - 1, 1) == Run(1, RunKind.DATA, start + held - 1)
    if held < 100:
        assert extent.map(held, 100 - held) == Run(100 - held, RunKind.CORRUPT)
        error = extent.refusal(held, RunKind.CORRUPT)
        assert error.offset == start + held
        assert f"{start + 100} bytes are due" in str(error)
