# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vmdkit
from vmdkit.converter import FORMATS, Order, convert
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.maker import Workshop
from vmdkit.ops.compare import compare
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device

KIB = 1024
RAW = ("raw", "vhd")  # read as raw bytes
CONTENT = b"A" * 70 * KIB + bytes(300 * KIB) + b"b" * 130 * KIB + b"z" * 512


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_what_the_source_holds(kind: str, tmp_path: Path) -> None:
    source = MemoryDevice(CONTENT, writable=False)
    path = str(tmp_path / "new.vmdk")
    checked: list[bytes] = []

    def check(before: Device, written: Device) -> None:
        assert before is source
        assert not (tmp_path / "new.vmdk").exists()
        checked.append(bytes(written.pread(written.size, 0)))

    tally = convert(source, Order(path, source.size), kind, check=check)
    assert tally.read + tally.moved + tally.skipped == source.size
    assert checked == [CONTENT]
    if kind == "tar.gz":
        return
    with vmdkit.open(path, raw=kind in RAW) as made:
        assert made.pread(source.size, 0) == CONTENT
        assert made.size == source.size + (512 if kind == "vhd" else 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_check_that_fails_leaves_nothing(kind: str, tmp_path: Path) -> None:
    def check(before: Device, written: Device) -> None:
        raise ValueError(kind)

    with pytest.raises(ValueError, match=kind):
        convert(MemoryDevice(CONTENT), Order(str(tmp_path / "new.vmdk"), len(CONTENT)), kind, check=check)
    assert names(tmp_path) == []


def test_more_room_than_the_source_needs(tmp_path: Path) -> None:
    path = str(tmp_path / "new.vmdk")
    convert(MemoryDevice(CONTENT), Order(path, 1 << 20), "monolithicSparse")
    with vmdkit.open(path) as made:
        assert made.size == 1 << 20
        assert compare(MemoryDevice(CONTENT), made).same


@pytest.mark.parametrize("kind", ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"])
@pytest.mark.parametrize("size", [5 * KIB - 7, 300 * KIB])  # a raw file may end within a sector, or be shorter
def test_what_a_child_has_behind_its_source_is_zero_not_the_parents(kind: str, size: int, tmp_path: Path) -> None:
    room, path = -(-size // (5 * KIB)) * 5 * KIB + 200 * KIB * (size > 5 * KIB), str(tmp_path / "new.vmdk")
    convert(MemoryDevice(b"p" * room), Order(str(tmp_path / "base.vmdk"), room), "monolithicSparse")
    with Workshop().open_disk(str(tmp_path / "base.vmdk")) as parent:
        source = MemoryDevice(b"p" * size, writable=False)
        convert(source, Order(path, room, parent=parent), kind)
    with vmdkit.open(path) as made:
        assert made.pread(room, 0) == b"p" * size + bytes(room - size)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    source, path = MemoryDevice(1024), str(tmp_path / "new.vmdk")
    with pytest.raises(UnsupportedError, match="cannot write 'qcow9', only raw, "):
        convert(source, Order(path, 1024), "qcow9")
    with pytest.raises(UsageError, match="1024 bytes do not fit into 512"):
        convert(source, Order(path, 512), "raw")
    with pytest.raises(UsageError, match="raw has no option 'adapter'; it takes none"):
        convert(source, Order(path, 1024, {"adapter": "ide"}), "raw")
    with pytest.raises(UsageError, match="monolithicFlat has no option 'grain'; it takes adapter, "):
        convert(source, Order(path, 1024, {"grain": 4096}), "monolithicFlat")
    assert names(tmp_path) == []


def test_the_files_of_the_source_are_not_overwritten(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.vmdk")
    vmdkit.create(path, 1 << 20, subformat="monolithicFlat")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with vmdkit.open(path) as source, pytest.raises(UsageError, match="read from this very file"):
        convert(source, Order(path, source.size, overwrite=True), "vmfs")
    with vmdkit.open(path) as source, pytest.raises(UsageError, match=r"disk-flat\.vmdk: the source is read from"):
        convert(source, Order(str(tmp_path / "disk"), source.size, overwrite=True), "vmfs")
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
