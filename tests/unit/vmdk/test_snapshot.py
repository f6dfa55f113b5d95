# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import vmdkit
from vmdkit.cli.main import main
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.maker import create, snapshot
from vmdkit.units import MIB, TIB
from vmdkit.vmdk.create import SHAPES
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Make

FAMILY = {
    "monolithicSparse": "monolithicSparse",
    "monolithicFlat": "monolithicSparse",
    "twoGbMaxExtentSparse": "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat": "twoGbMaxExtentSparse",
    "vmfs": "vmfsSparse",
    "vmfsSparse": "vmfsSparse",
}


@pytest.mark.parametrize("base", [shape.name for shape in SHAPES.values()])
def test_the_child_is_of_the_family(base: str, tmp_path: Path) -> None:
    create(tmp_path / "x.vmdk", MIB, subformat=base)
    first = snapshot(tmp_path / "x.vmdk")
    with vmdkit.open(first, writable=True) as disk:
        disk.pwrite(b"1" * 1000, 0)
    second = snapshot(first)
    assert [os.path.basename(path) for path in (first, second)] == ["x-000001.vmdk", "x-000002.vmdk"]
    with vmdkit.open(second) as disk:
        assert isinstance(disk, VmdkDisk)
        assert disk.pread(1001, 0) == b"1" * 1000 + b"\0"
        assert disk.descriptor.create_type == FAMILY[base]
        assert disk.facts()["doubts"] == []


def test_numbers_that_are_taken_are_left(tmp_path: Path) -> None:
    create(tmp_path / "x.vmdk", MIB)
    (tmp_path / "x-000001-delta.vmdk").touch()
    assert snapshot(tmp_path / "x.vmdk") == str(tmp_path / "x-000002.vmdk")
    assert snapshot(tmp_path / "x.vmdk") == str(tmp_path / "x-000003.vmdk")


def test_a_disk_that_is_written_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "x.vmdk", MIB)
    with (tmp_path / "x.vmdk").open("r+b") as file:
        file.seek(72)
        file.write(b"\1")
    with pytest.raises(UsageError, match="not closed cleanly"):
        snapshot(tmp_path / "x.vmdk")


def test_what_would_be_sesparse_is_refused(build: Make, tmp_path: Path) -> None:
    create(tmp_path / "x.vmdk", 3 * TIB, subformat="vmfs", thin=True)
    with pytest.raises(UnsupportedError, match="seSparse"):
        snapshot(tmp_path / "x.vmdk")
    with pytest.raises(UnsupportedError, match="seSparse"):
        snapshot(build("seSparse", "1M:A").path)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path / "x.vmdk", MIB)
    assert main(["snapshot", str(tmp_path / "x.vmdk")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x-000001.vmdk'}\n"
    assert main(["snapshot", str(tmp_path / "x.vmdk"), str(tmp_path / "x-000001.vmdk")]) == 1
    assert "it exists" in capsys.readouterr().err
