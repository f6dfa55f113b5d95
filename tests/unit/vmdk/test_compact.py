# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
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
from vmdkit.errors import UnsupportedError
from vmdkit.maker import compact, create
from vmdkit.units import KIB, MIB
from vmdkit.vmdk.create import SHAPES
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.hosted import HostedExtent
from vmdkit.vmdk.relayout import is_canonical

if TYPE_CHECKING:
    from conftest import Make

ALL = [shape.name for shape in SHAPES.values()]
SIZE = 4 * MIB + 512


def disk(path: Path) -> VmdkDisk:
    opened = vmdkit.open(path)
    assert isinstance(opened, VmdkDisk)
    return opened


def blocks(home: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in home.iterdir())


def fill(path: Path, model: Model, seed: int = 0) -> None:
    """Write much, and zeros over half of it, which a careless writer stores."""
    dice = random.Random(seed)
    with vmdkit.open(path, writable=True) as opened:
        for at in range(0, model.size, 100_000):
            data = dice.randbytes(min(90_000, model.size - at))
            opened.pwrite(data, at)
            model.write(data, at)
        for at in range(0, model.size - 300_000, 600_000):
            opened.pwrite(bytes(300_000), at)
            model.write(bytes(300_000), at)


@pytest.mark.parametrize("subformat", ALL)
def test_zeros_go_and_the_rest_stays(subformat: str, tmp_path: Path) -> None:
    path, model = tmp_path / "a.vmdk", Model(SIZE)
    create(path, SIZE, subformat=subformat)
    fill(path, model)
    with disk(path) as opened:
        cid = opened.descriptor.cid
    space = blocks(tmp_path)
    done = compact(path)
    assert blocks(tmp_path) < space * 2 // 3
    if subformat.endswith("Sparse"):
        assert done.after < done.before * 2 // 3
        assert done.punched == 0
    else:
        assert done.punched > MIB
    with disk(path) as opened:
        assert opened.pread(SIZE, 0) == model.pread(SIZE, 0)
        assert opened.descriptor.cid == cid
        assert opened.facts()["doubts"] == []
        for extent in opened.extent_files:
            if isinstance(extent, HostedExtent):
                assert is_canonical(extent.file, extent.header)
                assert (
                    extent.file.size
                    == extent.header.overhead
                    + extent.allocated() // extent.grain * extent.grain
                    + (extent.grain if extent.allocated() % extent.grain else 0)
                )
    again = compact(path)
    assert (again.before, again.after) == (done.after, done.after)
    assert again.punched <= done.punched // 2  # ext4 takes some preallocated blocks for data
    fill(path, model, seed=1)
    with disk(path) as opened:
        assert opened.pread(SIZE, 0) == model.pread(SIZE, 0)


@pytest.mark.parametrize("zeroed_grain", [False, True])
def test_a_child_keeps_the_zeros_that_hide_its_parent(zeroed_grain: bool, tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB)
    with vmdkit.open(tmp_path / "a.vmdk", writable=True) as opened:
        opened.pwrite(b"A" * 512 * KIB, 0)
    create(tmp_path / "b.vmdk", parent=tmp_path / "a.vmdk", zeroed_grain=zeroed_grain)
    with vmdkit.open(tmp_path / "b.vmdk", writable=True) as opened:
        opened.pwrite(bytes(MIB), 0)
        opened.pwrite(b"B", MIB - 1)
    with disk(tmp_path / "b.vmdk") as opened:
        assert opened.extent_files[0].allocated() == MIB
    compact(tmp_path / "b.vmdk")
    with disk(tmp_path / "b.vmdk") as opened:
        assert opened.pread(MIB, 0) == bytes(MIB - 1) + b"B"
        assert opened.extent_files[0].allocated() == 64 * KIB + (0 if zeroed_grain else 512 * KIB)


def test_tables_of_a_delta_move_up(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    create(path, 64 * MIB, subformat="vmfsSparse")
    with vmdkit.open(path, writable=True) as opened:
        for at in range(0, 64 * MIB, 2 * MIB):
            opened.pwrite(b"x" * 200_000, at)
            opened.flush()
        for at in range(0, 64 * MIB, 2 * MIB):
            opened.pwrite(bytes(199_680), at)
    compact(path)
    with disk(path) as opened:
        assert opened.pread(200_000, 62 * MIB) == bytes(199_680) + b"x" * 320
        assert opened.facts()["doubts"] == []
    assert (tmp_path / "a-delta.vmdk").stat().st_size == 2048 + 512 + 32 * (16384 + 512)


@pytest.mark.parametrize("kind", ["hosted-on-demand", "hosted-reversed", "hosted-4k"])
def test_layouts_of_others(kind: str, build: Make) -> None:
    image = build(kind, "15M:- 1M:A 16M:- 512:b 1M:0 3M:C 5M:- 64k:D")
    compact(image.path)
    with disk(image.path) as opened:
        assert opened.pread(image.size, 0) == image.model.pread(image.size, 0)
        assert opened.facts()["doubts"] == []


def test_streams_are_refused(build: Make) -> None:
    with pytest.raises(UnsupportedError):
        compact(build("stream-A", "1M:A").path)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["monolithicSparse", "vmfsSparse"]),
    st.lists(st.tuples(st.integers(0, 250), st.integers(1, 60), st.booleans()), max_size=8),
)
def test_any_content(subformat: str, writes: list[tuple[int, int, bool]]) -> None:
    with TemporaryDirectory() as home:
        path, model = Path(home) / "a.vmdk", Model(150 * KIB + 512)
        create(path, model.size, subformat=subformat, grain=4 * KIB if subformat == "monolithicSparse" else 1024)
        with vmdkit.open(path, writable=True) as opened:
            for at, count, zero in writes:
                data = (b"\0" if zero else b"%d" % (at % 10)) * (min(count, 300 - at) * 512)
                opened.pwrite(data, at * 512)
                model.write(data, at * 512)
        compact(path)
        with disk(path) as opened:
            assert opened.pread(model.size, 0) == model.pread(model.size, 0)
            assert opened.facts()["doubts"] == []


@pytest.mark.parametrize("subformat", ["monolithicSparse", "vmfsSparse", "vmfs"])
def test_a_power_cut_at_any_moment(subformat: str) -> None:
    size, grain = 64 * KIB, {"monolithicSparse": 4 * KIB, "vmfsSparse": 4 * KIB}.get(subformat)
    files, model = PowerFiles(), Model(size)
    create("/d/a.vmdk", size, subformat=subformat, grain=grain, files=files)
    with files.open_disk("/d/a.vmdk", writable=True) as opened:
        for at in (40, 0, 50, 20, 4, 60):
            opened.pwrite(b"%02d" % at * 2048, at * KIB)
            model.write(b"%02d" % at * 2048, at * KIB)
            opened.flush()
        for at in (0, 20):
            opened.pwrite(bytes(4096), at * KIB)
            model.write(bytes(4096), at * KIB)
    before = files.checkpoint()
    compact("/d/a.vmdk", files=files)
    for state in files.states(before):
        with state.open_disk("/d/a.vmdk") as opened:
            assert opened.pread(size, 0) == model.pread(size, 0)
        done = compact("/d/a.vmdk", files=state)
        with state.open_disk("/d/a.vmdk") as opened:
            assert opened.pread(size, 0) == model.pread(size, 0)
            assert opened.facts()["doubts"] == []
        if subformat == "monolithicSparse":
            assert done.after == 20 * KIB + 4 * 4 * KIB


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.vmdk")
    create(path, MIB)
    with vmdkit.open(path, writable=True) as opened:
        opened.pwrite(bytes(MIB - 1) + b"x", 0)
    assert main(["compact", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": path, "before": 65536 + MIB, "after": 2 * 65536, "punched": 0}
    assert main(["compact", path]) == 0
    assert capsys.readouterr().out == f"{path}: 128 KiB -> 128 KiB\n"
