# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdkit
from model import Model
from powercut import PowerFiles
from vmdkit.cli.main import main
from vmdkit.cli.resize import new_size
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.maker import create, resize, snapshot
from vmdkit.units import GIB, KIB, MIB, TIB
from vmdkit.vmdk.create import FLAT_PIECE, SHAPES, SPARSE_PIECE
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.hosted import HostedExtent
from vmdkit.vmdk.relayout import is_canonical

if TYPE_CHECKING:
    from conftest import Make

ALL = [shape.name for shape in SHAPES.values()]


def disk(path: Path) -> VmdkDisk:
    opened = vmdkit.open(path)
    assert isinstance(opened, VmdkDisk)
    return opened


def fill(path: Path, model: Model, *, seed: int = 0, count: int = 20) -> None:
    dice = random.Random(seed)
    with vmdkit.open(path, writable=True) as opened:
        for _ in range(count):
            data = dice.randbytes(dice.choice([100, 5000, 70_000]))
            at = dice.randrange(max(1, model.size - len(data)))
            opened.pwrite(data[: model.size - at], at)
            model.write(data[: model.size - at], at)


def resized(model: Model, size: int) -> Model:
    new = Model(size)
    new.write(model.pread(min(model.size, size), 0), 0)
    return new


def check(path: Path, model: Model) -> None:
    """Hold a disk against the model; its sparse extents must be as if made with this size."""
    with disk(path) as opened:
        assert opened.size == model.size
        assert opened.pread(model.size, 0) == model.pread(model.size, 0)
        assert opened.facts()["doubts"] == []
        for extent in opened.extent_files:
            if isinstance(extent, HostedExtent):
                assert is_canonical(extent.file, extent.header)
                assert extent.header.capacity == extent.length


@pytest.mark.parametrize("subformat", ALL)
@pytest.mark.parametrize("sizes", [(MIB, 2 * MIB + 512), (MIB + 512, 40 * MIB)])
def test_grow_and_shrink(subformat: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    path, model = tmp_path / "a.vmdk", Model(sizes[0])
    create(path, sizes[0], subformat=subformat)
    fill(path, model)
    with disk(path) as opened:
        cid = opened.descriptor.cid
    assert resize(path, sizes[1]) == sizes
    model = resized(model, sizes[1])
    check(path, model)
    with disk(path) as opened:
        assert opened.descriptor.cid != cid
        shape = [int(opened.descriptor.ddb[f"geometry.{key}"]) for key in ("cylinders", "heads", "sectors")]
        assert shape[0] == max(1, sizes[1] // (shape[1] * shape[2] * 512))
    fill(path, model, seed=1)
    check(path, model)
    with pytest.raises(UsageError, match="--shrink"):
        resize(path, sizes[0])
    resize(path, sizes[0], shrink=True)
    model = resized(model, sizes[0])
    check(path, model)
    resize(path, sizes[1])  # what was cut off must not come back
    check(path, resized(model, sizes[1]))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_large_tables_move_the_first_grains(tmp_path: Path) -> None:
    path, model = tmp_path / "a.vmdk", Model(MIB)
    create(path, MIB)
    fill(path, model)
    moved: list[int] = []
    resize(path, TIB, progress=moved.append)
    assert MIB // 2 < sum(moved) <= MIB
    assert path.stat().st_blocks * 512 < 3 * MIB
    with disk(path) as opened:
        assert opened.size == TIB
        assert opened.pread(MIB, 0) == model.pread(MIB, 0)
        assert opened.doubts == []
    resize(path, MIB, shrink=True)
    check(path, model)


@pytest.mark.parametrize(
    ("subformat", "piece"), [("twoGbMaxExtentSparse", SPARSE_PIECE), ("twoGbMaxExtentFlat", FLAT_PIECE)]
)
def test_split_disks_get_and_lose_extents(subformat: str, piece: int, tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    create(path, 3 * MIB, subformat=subformat)
    with vmdkit.open(path, writable=True) as opened:
        opened.pwrite(b"A" * 1000, MIB)
    resize(path, 5 * GIB)
    with disk(path) as grown:
        assert [extent.length for extent in grown.extent_files] == [piece, piece, 5 * GIB - 2 * piece]
        assert grown.pread(1000, MIB) == b"A" * 1000
        assert grown.facts()["doubts"] == []
    with vmdkit.open(path, writable=True) as opened:
        opened.pwrite(b"B" * 1000, 5 * GIB - 1000)
        opened.pwrite(b"C" * 1000, piece - 500)
    resize(path, piece + 512, shrink=True)
    with disk(path) as grown:
        assert grown.pread(1012, piece - 500) == b"C" * 1000 + bytes(12)
        assert grown.facts()["doubts"] == []
    assert len(os.listdir(tmp_path)) == 3
    (tmp_path / ("a-s003.vmdk" if "Sparse" in subformat else "a-f003.vmdk")).touch()
    with pytest.raises(UsageError, match="in the way"):
        resize(path, 5 * GIB)
    resize(path, 5 * GIB, overwrite=True)


def test_thick_stays_thick(tmp_path: Path) -> None:
    for name, thin in (("thick", False), ("thin", True)):
        create(tmp_path / f"{name}.vmdk", MIB, subformat="vmfs", thin=thin)
        resize(tmp_path / f"{name}.vmdk", 3 * MIB)
    assert (tmp_path / "thick-flat.vmdk").stat().st_blocks * 512 == 3 * MIB
    assert (tmp_path / "thin-flat.vmdk").stat().st_blocks == 0


def test_what_lay_behind_a_flat_disk_is_not_shown(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB, subformat="monolithicFlat")
    with (tmp_path / "a-flat.vmdk").open("ab") as file:
        file.write(b"secret" * 1000)
    resize(tmp_path / "a.vmdk", 2 * MIB)
    check(tmp_path / "a.vmdk", Model(2 * MIB))


@pytest.mark.parametrize("kind", ["hosted", "hosted-on-demand", "hosted-reversed", "hosted-4k"])
def test_layouts_of_others_become_vmwares(kind: str, build: Make) -> None:
    image = build(kind, "15M:- 1M:A 16M:- 512:b 3M:C")
    model = resized(image.model, 80 * MIB)
    resize(image.path, 80 * MIB)
    check(image.path, model)


def test_chains_are_refused(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB)
    child = snapshot(tmp_path / "a.vmdk")
    with pytest.raises(UsageError, match="has a parent"):
        resize(child, 2 * MIB)
    with pytest.raises(UsageError, match=r"a-000001\.vmdk would be broken by a new size"):
        resize(tmp_path / "a.vmdk", 2 * MIB)
    resize(tmp_path / "a.vmdk", 2 * MIB, with_children=True)


def test_others_are_refused(build: Make, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        resize(build("stream-A", "1M:A").path, 2 * MIB)
    create(tmp_path / "b.vmdk", MIB)
    with pytest.raises(UsageError, match="at most 2 TiB"):
        resize(tmp_path / "b.vmdk", 3 * TIB)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["monolithicSparse", "vmfsSparse", "monolithicFlat"]),
    st.integers(1, 300).map(lambda sectors: sectors * 512),
    st.lists(
        st.one_of(st.integers(1, 400), st.integers(60_000, 400_000)).map(lambda n: n * 512), min_size=1, max_size=4
    ),
)
def test_any_sizes(subformat: str, first: int, sizes: list[int]) -> None:
    with TemporaryDirectory() as home:
        path, model = Path(home) / "a.vmdk", Model(first)
        grain = 4 * KIB if subformat == "monolithicSparse" else None
        create(path, first, subformat=subformat, grain=grain)
        for number, size in enumerate(sizes):
            fill(path, model, seed=number, count=3)
            resize(path, size, shrink=True)
            model = resized(model, size)
            check(path, model)


@pytest.mark.parametrize(
    ("subformat", "sizes"),
    [
        ("monolithicSparse", (100 * KIB, 12 * MIB)),
        ("monolithicSparse", (12 * MIB, 100 * KIB)),
        ("monolithicSparse", (100 * KIB, 101 * KIB)),
        ("vmfsSparse", (100 * KIB, 600 * MIB)),
        ("vmfsSparse", (600 * MIB, 100 * KIB)),
        ("monolithicFlat", (100 * KIB, 200 * KIB)),
        ("vmfs", (200 * KIB, 100 * KIB)),
    ],
)
def test_a_power_cut_at_any_moment(subformat: str, sizes: tuple[int, int]) -> None:
    files, grain = PowerFiles(), 4 * KIB if subformat == "monolithicSparse" else None
    create("/d/a.vmdk", sizes[0], subformat=subformat, grain=grain, files=files)
    head = b"".join(b"%08d" % number for number in range(8000))[: 40 * KIB]
    with files.open_disk("/d/a.vmdk", writable=True) as opened:
        opened.pwrite(head, 1000)
        opened.pwrite(b"T" * 512, sizes[0] - 512)
    before = files.checkpoint()
    resize("/d/a.vmdk", sizes[1], shrink=True, files=files)
    tail = sizes[0] - 512
    for state in files.states(before, each=1):
        with state.open_disk("/d/a.vmdk") as opened:
            assert opened.size in sizes
            assert opened.pread(len(head), 1000) == head
            if opened.size >= sizes[0]:
                assert opened.pread(512, tail) == b"T" * 512 or sizes[1] < sizes[0]
            if opened.size > sizes[0]:
                assert not any(opened.pread(min(opened.size - sizes[0], MIB), sizes[0]))
        resize("/d/a.vmdk", sizes[1], shrink=True, files=state)
        with state.open_disk("/d/a.vmdk") as opened:
            assert opened.size == sizes[1]
            assert opened.pread(len(head), 1000) == head
            assert opened.doubts == []


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.vmdk")
    create(path, MIB)
    assert main(["resize", path, "+1M"]) == 0
    assert capsys.readouterr().out == f"{path}: 1 MiB -> 2 MiB\n"
    assert main(["resize", path, "--shrink", "-512k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": path, "old": 2 * MIB, "new": 1536 * KIB}
    assert main(["resize", path, "1M"]) == 1
    assert "--shrink" in capsys.readouterr().err
    with pytest.raises(UsageError, match="leaves nothing"):
        new_size(MIB, "-1M")
