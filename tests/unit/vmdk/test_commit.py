# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

import vmdkit
from model import Model
from powercut import PowerCutError, PowerFiles
from vmdkit.checker import check
from vmdkit.cli.main import main
from vmdkit.errors import ChainError, UsageError, VmdkitError
from vmdkit.maker import commit, create, snapshot
from vmdkit.repairer import repair
from vmdkit.units import KIB, MIB
from vmdkit.vmdk.create import SHAPES
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.vmdk.files import Files

ALL = [shape.name for shape in SHAPES.values()]
CHILDREN = [shape.name for shape in SHAPES.values() if shape.child]
SIZE = 3 * MIB + 512


def write(path: str | Path, model: Model, data: bytes, at: int, files: Files | None = None) -> None:
    opened = (
        vmdkit.open(path, writable=True, with_children=True)
        if files is None
        else files.open_disk(str(path), writable=True)
    )
    with opened as disk:
        disk.pwrite(data, at)
    model.write(data, at)


def read(path: str | Path) -> bytes:
    with vmdkit.open(path) as disk:
        return bytes(disk.pread(disk.size, 0))


def text(path: str | Path) -> tuple[int, int, str]:
    with vmdkit.open(path) as disk:
        assert isinstance(disk, VmdkDisk)
        return disk.descriptor.cid, disk.descriptor.parent_cid, disk.descriptor.parent_hint


def chain(home: Path, base: str = "monolithicSparse", child: str = "monolithicSparse") -> Model:
    """Make a.vmdk, b.vmdk over it and c.vmdk over that, each with some data; return what c reads."""
    model = Model(SIZE)
    create(home / "a.vmdk", SIZE, subformat=base)
    write(home / "a.vmdk", model, b"A" * 300_000, 100)
    create(home / "b.vmdk", parent=home / "a.vmdk", subformat=child)
    write(home / "b.vmdk", model, b"B" * 150_000, 200_000)
    write(home / "b.vmdk", model, b"b" * 512, SIZE - 512)
    create(home / "c.vmdk", parent=home / "b.vmdk", subformat=child)
    write(home / "c.vmdk", model, b"C" * 70_000, 50_000)
    return model


@pytest.mark.parametrize("base", ALL)
@pytest.mark.parametrize("child", CHILDREN)
def test_the_middle_of_a_chain(base: str, child: str, tmp_path: Path) -> None:
    model = chain(tmp_path, base, child)
    middle, cid = read(tmp_path / "b.vmdk"), text(tmp_path / "b.vmdk")[0]
    done = commit(tmp_path / "b.vmdk")
    assert done.emptied
    assert done.merged >= 150_512
    assert read(tmp_path / "a.vmdk") == read(tmp_path / "b.vmdk") == middle
    assert read(tmp_path / "c.vmdk") == model.pread(SIZE, 0)
    assert text(tmp_path / "a.vmdk")[0] == cid == text(tmp_path / "b.vmdk")[0] == text(tmp_path / "b.vmdk")[1]
    with vmdkit.open(tmp_path / "b.vmdk") as disk:
        assert isinstance(disk, VmdkDisk)
        assert sum(extent.allocated() for extent in disk.extent_files) == 0
    write(tmp_path / "b.vmdk", Model(SIZE), b"again", 0)
    assert read(tmp_path / "b.vmdk")[:5] == b"again"


def test_keep_and_delete(tmp_path: Path) -> None:
    model = chain(tmp_path, child="twoGbMaxExtentSparse")
    done = commit(tmp_path / "b.vmdk", keep=True)
    assert not done.emptied
    with vmdkit.open(tmp_path / "b.vmdk", single_link=True) as disk:
        assert disk.pread(10, 200_000) == b"B" * 10
    assert commit(tmp_path / "b.vmdk", delete=True).deleted
    assert sorted(os.listdir(tmp_path)) == ["a.vmdk", "c-s001.vmdk", "c.vmdk"]
    assert text(tmp_path / "c.vmdk")[1:] == (text(tmp_path / "a.vmdk")[0], "a.vmdk")
    assert read(tmp_path / "c.vmdk") == model.pread(SIZE, 0)


def test_zeros_of_a_child_are_merged(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB)
    write(tmp_path / "a.vmdk", Model(MIB), b"A" * MIB, 0)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk", zeroed_grain=True)
    with vmdkit.open(tmp_path / "b.vmdk", writable=True) as disk:
        disk.zero(256 * KIB, 128 * KIB)
    commit(tmp_path / "b.vmdk")
    assert read(tmp_path / "a.vmdk") == b"A" * 128 * KIB + bytes(256 * KIB) + b"A" * 640 * KIB


def test_an_empty_child(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk")
    assert commit(tmp_path / "b.vmdk").merged == 0
    assert text(tmp_path / "a.vmdk")[0] == text(tmp_path / "b.vmdk")[0]


def test_a_sesparse_child_is_merged_but_not_emptied(tmp_path: Path) -> None:
    from images import chain as chained

    image = chained(tmp_path, [("vmfs", "128k:A 128k:B 64k:-"), ("seSparse", "64k:- 128k:C 64k:0 64k:-")])
    with pytest.raises(UsageError, match="cannot be emptied"):
        commit(image.path)
    commit(image.path, keep=True)
    assert image.parent is not None
    assert read(image.parent.path) == image.model.pread(image.size, 0)


def test_other_children_are_refused(tmp_path: Path) -> None:
    chain(tmp_path)
    other = snapshot(tmp_path / "a.vmdk")
    with pytest.raises(UsageError, match=r"a-000001\.vmdk would be broken"):
        commit(tmp_path / "b.vmdk")
    commit(tmp_path / "b.vmdk", with_children=True)
    with pytest.raises(ChainError, match="has changed since"):
        read(other)


def test_what_cannot_be_committed(tmp_path: Path) -> None:
    chain(tmp_path)
    with pytest.raises(UsageError, match="no parent"):
        commit(tmp_path / "a.vmdk")
    with pytest.raises(UsageError, match="not both"):
        commit(tmp_path / "b.vmdk", keep=True, delete=True)
    write(tmp_path / "a.vmdk", Model(SIZE), b"changed", 0)
    with pytest.raises(ChainError, match="has changed since"):
        commit(tmp_path / "b.vmdk", with_children=True)


def test_a_short_content_id_makes_room(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", SIZE, subformat="monolithicFlat")
    path = tmp_path / "a.vmdk"
    raw = path.read_text()
    path.write_text(raw.replace(f"CID={text(path)[0]:08x}\n", "CID=abc\n", 1))  # as qemu writes small ones
    create(tmp_path / "b.vmdk", parent=path)
    write(tmp_path / "b.vmdk", Model(SIZE), b"B", 0)
    cid = text(tmp_path / "b.vmdk")[0]
    commit(tmp_path / "b.vmdk")
    assert f"CID={cid:08x}\n" in path.read_text()


@pytest.mark.parametrize(("base", "child"), [("monolithicSparse", "monolithicSparse"), ("vmfs", "vmfsSparse")])
@pytest.mark.parametrize("delete", [False, True])
def test_a_power_cut_at_any_moment(base: str, child: str, delete: bool) -> None:
    files, size = PowerFiles(), 96 * KIB
    model = Model(size)
    grain = 4 * KIB if base == "monolithicSparse" else None
    create("/d/a.vmdk", size, subformat=base, grain=grain, files=files)
    write("/d/a.vmdk", model, b"A" * 30_000, 100, files)
    create("/d/b.vmdk", parent="/d/a.vmdk", subformat=child, grain=grain, files=files)
    write("/d/b.vmdk", model, b"B" * 10_000, 25_000, files)
    create("/d/c.vmdk", parent="/d/b.vmdk", subformat=child, grain=grain, files=files)
    write("/d/c.vmdk", model, b"C" * 1000, 34_500, files)
    expected = model.pread(size, 0)
    before = files.checkpoint()
    commit("/d/b.vmdk", files=files, delete=delete)
    tried = 0
    for state in files.states(before):
        tried += 1
        with state.open_disk("/d/c.vmdk") as top:
            assert top.pread(size, 0) == expected
        if "b.vmdk" in state.names_:
            commit("/d/b.vmdk", files=state, delete=delete)
        with state.open_disk("/d/c.vmdk") as top:
            assert top.pread(size, 0) == expected
            assert not [doubt for doubt in top.doubts if "equal" not in str(doubt)]
    assert tried > 50


def half_committed(home: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Leave a child whose commit was cut off between the two content IDs; return what it reads."""
    create(home / "a.vmdk", SIZE)
    write(home / "a.vmdk", Model(SIZE), b"A" * 100_000, 0)
    create(home / "b.vmdk", parent=home / "a.vmdk")
    write(home / "b.vmdk", Model(SIZE), b"B" * 50_000, 70_000)
    expected = read(home / "b.vmdk")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vmdkit.vmdk.commit._set_parent_id", cut)
        with pytest.raises(KeyboardInterrupt):
            commit(home / "b.vmdk")
    return expected


@pytest.mark.parametrize("way", ["commit", "repair"])
def test_between_the_two_content_ids(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, path = half_committed(tmp_path, monkeypatch), tmp_path / "b.vmdk"
    cid, parent_cid, _ = text(path)
    assert text(tmp_path / "a.vmdk")[0] == cid != parent_cid
    assert read(path) == expected
    with pytest.raises(ChainError, match=r"was interrupted: vmdkit commit goes on with that, vmdkit repair"):
        vmdkit.open(path, writable=True)
    found = [finding.code for finding in check(path).findings if finding.severity.value in ("error", "repairable")]
    assert found == ["half-committed"]
    assert [step.risk for step in repair(path, plan=True).steps if step.code == "relink"] == [""]
    assert text(path)[1] == parent_cid
    if way == "repair":
        assert [step.code for step in repair(path).steps][-1] == "relink"
    else:
        commit(path)
    assert text(path)[1] == cid
    assert read(path) == expected
    assert check(path).exit_code in (0, 3)
    write(path, Model(SIZE), b"C", 0)
    assert read(path) == b"C" + expected[1:]


def test_a_parent_with_any_other_id_is_still_refused(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", SIZE)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk")
    write(tmp_path / "a.vmdk", Model(SIZE), b"A", 0)
    with pytest.raises(ChainError, match="has changed since"):
        vmdkit.open(tmp_path / "b.vmdk")


def test_an_error_leaves_the_chain_readable(tmp_path: Path) -> None:
    files, model = PowerFiles(), Model(MIB)
    create("/d/a.vmdk", MIB, files=files)
    create("/d/b.vmdk", parent="/d/a.vmdk", files=files)
    write("/d/b.vmdk", model, b"B" * 100_000, 250_000, files)
    files.log.clear()
    files.limit = 12
    with pytest.raises((PowerCutError, VmdkitError)):
        commit("/d/b.vmdk", files=files)
    files.limit = 1 << 60
    with files.open_disk("/d/b.vmdk") as disk:
        assert disk.pread(MIB, 0) == model.pread(MIB, 0)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain(tmp_path)
    assert main(["commit", str(tmp_path / "c.vmdk"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"parent": str(tmp_path / "b.vmdk"), "merged": 131072, "emptied": True, "deleted": False}
    assert main(["commit", str(tmp_path / "b.vmdk"), "--delete"]) == 0
    assert "are in" in capsys.readouterr().out
    assert not (tmp_path / "b.vmdk").exists()
