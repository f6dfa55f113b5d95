# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import vmdkit
from model import Model
from powercut import PowerFiles
from vmdkit.cli.main import main
from vmdkit.errors import ChainError, UnsupportedError
from vmdkit.maker import create, rebase
from vmdkit.units import KIB, MIB
from vmdkit.vmdk.create import SHAPES
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from pathlib import Path

ALL = [shape.name for shape in SHAPES.values()]
CHILDREN = [shape.name for shape in SHAPES.values() if shape.child]
SIZE = 2 * MIB + 512


def write(path: Path, data: bytes, at: int) -> None:
    with vmdkit.open(path, writable=True, with_children=True) as disk:
        disk.pwrite(data, at)


def disk(path: Path) -> VmdkDisk:
    opened = vmdkit.open(path)
    assert isinstance(opened, VmdkDisk)
    return opened


def chain(home: Path, base: str, child: str) -> bytes:
    """Make a <- b <- c, and d, a disk like a but for some bytes; return what c reads."""
    for name in "ad":
        create(home / f"{name}.vmdk", SIZE, subformat=base)
        write(home / f"{name}.vmdk", b"A" * 700_000, 100)
    write(home / "d.vmdk", b"D" * 200_000, 600_000)
    write(home / "d.vmdk", b"D" * 512, SIZE - 512)
    create(home / "b.vmdk", parent=home / "a.vmdk", subformat=child)
    write(home / "b.vmdk", b"B" * 300_000, 200_000)
    create(home / "c.vmdk", parent=home / "b.vmdk", subformat=child)
    write(home / "c.vmdk", b"C" * 100_000, 450_000)
    with disk(home / "c.vmdk") as top:
        return bytes(top.pread(SIZE, 0))


@pytest.mark.parametrize("base", ALL)
@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("new", ["a", "d", ""])
def test_the_child_reads_as_before(base: str, child: str, new: str, tmp_path: Path) -> None:
    expected = chain(tmp_path, base, child)
    with disk(tmp_path / "c.vmdk") as top:
        cid = top.descriptor.cid
    seen: list[int] = []
    written = rebase(tmp_path / "c.vmdk", tmp_path / f"{new}.vmdk" if new else None, progress=seen.append)
    assert sum(seen) == SIZE
    assert 0 < written < SIZE
    with disk(tmp_path / "c.vmdk") as top:
        assert top.pread(SIZE, 0) == expected
        assert top.descriptor.cid == cid
        assert top.descriptor.parent_hint == (f"{new}.vmdk" if new else "")
        assert (top.parent is None) == (not new)
        facts = top.facts()
    assert facts["doubts"] == []
    if not new:
        assert (facts["adapter"], facts["hardware_version"]) == ("lsilogic", "10")
        assert facts["uuid"]


def test_what_both_parents_share_is_not_copied(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", SIZE)
    write(tmp_path / "a.vmdk", b"A" * MIB, 0)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk")
    create(tmp_path / "c.vmdk", parent=tmp_path / "b.vmdk")
    assert rebase(tmp_path / "c.vmdk", tmp_path / "a.vmdk") == 0
    write(tmp_path / "c.vmdk", b"C", 0)
    assert rebase(tmp_path / "c.vmdk", tmp_path / "b.vmdk") == 0


def test_a_base_becomes_a_child(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", SIZE)
    create(tmp_path / "b.vmdk", SIZE)
    write(tmp_path / "a.vmdk", b"A" * MIB, 0)
    write(tmp_path / "b.vmdk", b"B" * 1000, 100_000)
    assert rebase(tmp_path / "b.vmdk", tmp_path / "a.vmdk") > 0
    with disk(tmp_path / "b.vmdk") as top:
        assert top.parent is not None
        assert top.pread(SIZE, 0) == bytes(100_000) + b"B" * 1000 + bytes(SIZE - 101_000)


def test_unsafe_changes_the_name_only(tmp_path: Path) -> None:
    expected = chain(tmp_path, "monolithicFlat", "monolithicSparse")
    (tmp_path / "b.vmdk").rename(tmp_path / "moved.vmdk")
    assert rebase(tmp_path / "c.vmdk", tmp_path / "moved.vmdk", unsafe=True) == 0
    with disk(tmp_path / "c.vmdk") as top:
        assert top.pread(SIZE, 0) == expected
    rebase(tmp_path / "c.vmdk", tmp_path / "a.vmdk", unsafe=True)
    with disk(tmp_path / "c.vmdk") as top:
        assert top.pread(10, 200_000) == b"A" * 10
        assert top.pread(10, 450_000) == b"C" * 10


def test_parents_that_cannot_be(tmp_path: Path) -> None:
    chain(tmp_path, "monolithicFlat", "monolithicSparse")
    with pytest.raises(ChainError, match="made from the very disk"):
        rebase(tmp_path / "b.vmdk", tmp_path / "c.vmdk", unsafe=True)
    create(tmp_path / "small.vmdk", MIB)
    with pytest.raises(ChainError, match="of one size"):
        rebase(tmp_path / "b.vmdk", tmp_path / "small.vmdk")
    with pytest.raises(UnsupportedError, match="cannot have a parent"):
        rebase(tmp_path / "a.vmdk", tmp_path / "d.vmdk")
    write(tmp_path / "a.vmdk", b"changed", 0)
    with pytest.raises(ChainError, match="has changed since"):
        rebase(tmp_path / "b.vmdk", tmp_path / "d.vmdk")


def test_a_descriptor_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", SIZE)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk")
    raw = bytearray((tmp_path / "b.vmdk").read_bytes())
    raw[36:44] = (1).to_bytes(8, "little")  # one sector, as in exports of ESX
    (tmp_path / "b.vmdk").write_bytes(raw)
    far = tmp_path / ("f" * 240) / ("a" * 240 + ".vmdk")
    far.parent.mkdir()
    (tmp_path / "a.vmdk").rename(far)
    with pytest.raises(UnsupportedError, match="512 are reserved"):
        rebase(tmp_path / "b.vmdk", far, unsafe=True)
    assert (tmp_path / "b.vmdk").read_bytes() == raw


@pytest.mark.parametrize("child", ["monolithicSparse", "vmfsSparse"])
@pytest.mark.parametrize("new", ["/d/d.vmdk", None])
def test_a_power_cut_at_any_moment(child: str, new: str | None) -> None:
    unit = 20 if child == "vmfsSparse" else 1  # its grains are smaller
    files, size = PowerFiles(), 96 * KIB
    model = Model(size)
    grain = 4 * KIB if child == "monolithicSparse" else None
    writes: dict[str, list[tuple[bytes, int]]] = {
        "a": [(b"A" * (30_000 // unit), 100)],
        "b": [(b"B" * (10_000 // unit), 25_000 // unit)],
        "d": [(b"D" * (20_000 // unit), 40_000 // unit)],
    }
    for name in "adb":
        parent = "/d/a.vmdk" if name == "b" else None
        create(f"/d/{name}.vmdk", size, parent=parent, subformat=child, grain=grain, files=files)
        with files.open_disk(f"/d/{name}.vmdk", writable=True) as opened:
            for data, at in writes[name]:
                opened.pwrite(data, at)
                if name != "d":
                    model.write(data, at)
    before = files.checkpoint()
    rebase("/d/b.vmdk", new, files=files)
    for number, state in enumerate(files.states(before)):
        with state.open_disk("/d/b.vmdk") as top:
            assert top.pread(size, 0) == model.pread(size, 0)
        rebase("/d/b.vmdk", new, files=state)
        with state.open_disk("/d/b.vmdk") as top:
            assert top.pread(size, 0) == model.pread(size, 0)
            assert top.descriptor.parent_hint == ("d.vmdk" if new else "")
            assert top.doubts == [], number


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain(tmp_path, "monolithicFlat", "monolithicSparse")
    child = str(tmp_path / "c.vmdk")
    assert main(["rebase", child, "-b", str(tmp_path / "a.vmdk"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"parent": str(tmp_path / "a.vmdk"), "written": 196608}
    assert main(["rebase", child, "--parent", ""]) == 0
    assert "has no parent any more" in capsys.readouterr().out
