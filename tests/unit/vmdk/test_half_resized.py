# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A power cut in the middle of resizing leaves no corrupt disk: check says what it is, repair and resize end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vmdkit
from vmdkit.checker import check
from vmdkit.maker import create, resize
from vmdkit.repairer import repair
from vmdkit.units import MIB
from vmdkit.vmdk import resize as module

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = 40 * MIB, 90 * MIB
KINDS = ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"]


def half(path: Path, subformat: str, old: int, new: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Leave a disk that was to be resized, with one of its two steps done; return what it holds."""
    create(path, old, subformat=subformat)
    with vmdkit.open(path, writable=True) as disk:
        for at in (0, 30 * MIB, old - MIB):
            disk.pwrite(b"data" * 1000, at)
        held = bytes(disk.pread(disk.size, 0))
    second = "_rewrite" if new > old else "_resize_extent"

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Resizing, second, cut)
        with pytest.raises(KeyboardInterrupt):
            resize(path, new, shrink=True)
    return held


@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), (NEW, OLD)], ids=["grown", "shrunk"])
@pytest.mark.parametrize("subformat", KINDS)
@pytest.mark.parametrize("way", ["repair", "resize"])
def test_is_known_and_ended(
    subformat: str, old: int, new: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.vmdk"
    held = half(path, subformat, old, new, monkeypatch)[:OLD]
    report = check(path)
    assert [finding.code for finding in report.findings if finding.severity.value in ("error", "repairable")] == [
        "half-resized"
    ]
    plan = repair(path, plan=True)
    assert [step.code for step in plan.steps][-1:] == ["resize"]
    assert [finding.code for finding in check(path).findings] == [finding.code for finding in report.findings]
    with vmdkit.open(path) as disk:  # as it is, it can be read
        assert disk.size == OLD
        assert disk.pread(OLD, 0) == held
    if way == "repair":
        done = repair(path)
        assert not [finding for finding in done.report.findings if finding.severity.value in ("error", "repairable")]
    else:
        resize(path, new, shrink=True)
    assert check(path).exit_code in (0, 3)
    with vmdkit.open(path) as disk:
        assert disk.size == (OLD if way == "repair" else new)
        assert disk.pread(OLD, 0) == held
        assert disk.pread(disk.size - OLD, OLD) == bytes(disk.size - OLD)


def test_a_larger_extent_that_nobody_was_resizing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, OLD)
    with vmdkit.open(path, writable=True) as disk:
        disk.pwrite(b"wanted", OLD - 512)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"RW %d " % (OLD // 512))
    raw[at + 3 : at + 8] = b"81000"
    path.write_bytes(raw)
    assert "extent-capacity" in [finding.code for finding in check(path).findings]
    assert not repair(path).steps
    assert "extent-capacity" in [finding.code for finding in check(path).findings]


def test_after_a_writer_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes and closes clears the flag; a disk that was growing has nothing behind its line all the same."""
    path = tmp_path / "disk.vmdk"
    half(path, "monolithicSparse", OLD, NEW, monkeypatch)
    with vmdkit.open(path, writable=True) as disk:
        disk.pwrite(b"more", 5 * MIB)
    assert "half-resized" in [finding.code for finding in check(path).findings]
    repair(path)
    assert check(path).exit_code in (0, 3)
    with vmdkit.open(path) as disk:
        assert disk.pread(4, 5 * MIB) == b"more"
