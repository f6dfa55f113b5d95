# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdkit
from vmdkit.cli.main import main
from vmdkit.errors import UsageError
from vmdkit.maker import Workshop, create
from vmdkit.units import GIB, KIB, MIB, TIB
from vmdkit.vmdk.create import SHAPES, Recipe, new_disk
from vmdkit.vmdk.measure import measure

ALL = [shape.name for shape in SHAPES.values()]
SLACK = 1024 + 128 * 3  # a descriptor is counted generously


def size_of(home: Path) -> int:
    return sum(path.stat().st_size for path in home.iterdir())


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([name for name in ALL if name != "vmfs"]),
    st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(1, 300 * KIB)), max_size=4),
)
def test_the_forecast_is_what_is_written(subformat: str, writes: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as home:
        grain = 64 * KIB if subformat == "vmfsSparse" else None
        recipe = Recipe(subformat, grain=grain)
        with new_disk(Workshop(), f"{home}/a.vmdk", 41 * MIB, recipe) as disk:
            for at, count in writes:
                disk.pwrite(b"x" * count, at)
        with vmdkit.open(f"{home}/a.vmdk") as disk:
            found = measure(disk, subformat, recipe)
        real = size_of(Path(home))
        assert real <= found.required <= real + SLACK + (grain or 0)
        assert found.required <= found.fully_allocated


@pytest.mark.parametrize("subformat", [name for name in ALL if name != "vmfs"])
def test_an_empty_disk(subformat: str, tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 5 * GIB, subformat=subformat)
    found = measure(5 * GIB, subformat)
    assert size_of(tmp_path) <= found.required <= size_of(tmp_path) + SLACK
    assert 5 * GIB < found.fully_allocated < 5 * GIB + 50 * MIB


def test_thin_counts_data_and_thick_everything(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", GIB)
    with vmdkit.open(tmp_path / "a.vmdk", writable=True) as disk:
        disk.pwrite(b"x", 100 * MIB)
        disk.flush()
        assert measure(disk, "vmfs").required > GIB
        assert measure(disk, "vmfs", Recipe("vmfs", thin=True)).required < MIB
        assert measure(disk, "raw") == (GIB, GIB)


def test_streams_are_forecast_for_data_that_do_not_shrink(tmp_path: Path) -> None:
    with new_disk(Workshop(), str(tmp_path / "a.vmdk"), 64 * MIB) as disk:
        for at in range(0, 3 * MIB, MIB):
            disk.pwrite(os.urandom(MIB), at * 20)
    with vmdkit.open(tmp_path / "a.vmdk") as disk:
        found = measure(disk, "streamOptimized")
    assert 3 * MIB < found.required < 3 * MIB + 256 * KIB
    assert 64 * MIB < found.fully_allocated < 66 * MIB


def test_nonsense() -> None:
    with pytest.raises(UsageError, match="cannot be created"):
        measure(MIB, "qcow2")
    with pytest.raises(UsageError, match="at most"):
        measure(3 * TIB, "monolithicSparse")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path / "a.vmdk", MIB)
    assert main(["measure", str(tmp_path / "a.vmdk"), "-O", "monolithicSparse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"required": 65536, "fully-allocated": MIB + 65536}
    assert main(["measure", "--size", "1M"]) == 0
    assert capsys.readouterr().out == "required size: 1048576\nfully allocated size: 1048576\n"
    assert main(["measure", "-O", "raw"]) == 1
    assert main(["measure", "--size", "1M", "-O", "qcow2"]) == 1
