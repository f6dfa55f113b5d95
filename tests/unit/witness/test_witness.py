# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vmdkit
from images import SUBFORMATS
from layout import expected_bytes
from vmdkit.converter import FORMATS, Order, convert
from vmdkit.errors import FormatError
from vmdkit.storage.memory import MemoryDevice
from vmdkit.witness.disk import open_raw, open_vhd, open_vmdk
from vmdkit.witness.part import File

if TYPE_CHECKING:
    from vmdkit.device import Device

LAYOUT = "64k:A 64k:0 128k:- 4k:b 60k:- 1M:C 512:d 3M:-"
STRICT = ("hosted", "hosted-zeros", "hosted-4k", "hosted-1m", "hosted-reversed", "split", "flat", "split-flat", "vmfs",
          "vmfsSparse", "vmfsSparse-4k", "stream-A")  # fmt: skip


def check(disk: Device, expected: bytes, least: int = 2 << 20) -> None:
    """See that a disk reads as expected, at once, in pieces, and as its extents say, which know of ``least`` zeros."""
    assert disk.size == len(expected)
    assert disk.pread(disk.size, 0) == expected
    for offset, count in ((0, 1), (65535, 2), (70000, 200000), (disk.size - 1, 1), (disk.size // 2 - 7, 15)):
        assert disk.pread(count, offset) == expected[offset : offset + count]
    zero = 0
    for extent in disk.extents():
        if extent.flags:
            zero += extent.length
            assert not any(expected[extent.offset : extent.offset + extent.length])
    assert zero > least


@pytest.mark.parametrize("kind", STRICT)
def test_reads_what_others_made(kind: str, tmp_path: Path) -> None:
    image = SUBFORMATS[kind].build(tmp_path, LAYOUT)
    with open_vmdk(str(image.path)) as disk:
        check(disk, expected_bytes(LAYOUT))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("raw", "tar.gz")])
def test_reads_what_we_make(kind: str, tmp_path: Path) -> None:
    expected = expected_bytes(LAYOUT)
    path = str(tmp_path / "disk.vmdk")
    convert(MemoryDevice(expected), Order(path, len(expected)), kind)
    with open_vhd(path) if kind == "vhd" else open_vmdk(path) as disk:
        check(disk, expected, least=-1)  # how much is left out is the writer's business


def test_reads_raw_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"A" * 70000)
        file.truncate(4 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"odd")
    with open_raw(str(path)) as disk:
        check(disk, path.read_bytes())


@pytest.mark.parametrize("at", [0, 48, 63, 64, 100])
def test_a_vhd_whose_footer_is_damaged(at: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    convert(MemoryDevice(b"A" * 4096), Order(str(path), 4096), "vhd")
    with path.open("r+b") as file:
        file.seek(4096 + at)
        file.write(b"?")
    with pytest.raises(FormatError, match=r"it does not end as a fixed VHD does \(at offset 0x1000\)"):
        open_vhd(str(path))


def test_grains_side_by_side_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = SUBFORMATS["vmfsSparse"].build(tmp_path, "64k:A")
    reads: list[int] = []
    read_into = File.read_into

    def counted(self: File, view: memoryview, at: int) -> None:
        reads.append(len(view))
        read_into(self, view, at)

    monkeypatch.setattr(File, "read_into", counted)
    with open_vmdk(str(image.path)) as disk:
        reads.clear()
        assert disk.pread(disk.size, 0) == expected_bytes("64k:A")
    assert 65536 in reads  # 128 grains of a sector


def test_a_child_takes_the_rest_from_its_parent(tmp_path: Path) -> None:
    base, child = str(tmp_path / "base.vmdk"), str(tmp_path / "child.vmdk")
    vmdkit.create(base, 1 << 20)
    with vmdkit.open(base, writable=True) as disk:
        disk.pwrite(b"base" * 50000, 0)
    vmdkit.create(child, parent=base)
    with vmdkit.open(child, writable=True) as disk:
        disk.pwrite(b"child" * 100, 70000)
        expected = disk.pread(disk.size, 0)
    with vmdkit.open(base) as parent, open_vmdk(child, parent=parent) as disk:
        assert disk.pread(disk.size, 0) == expected
        assert [extent.flags for extent in disk.extents()] == [0, 3]
    with pytest.raises(FormatError, match="it is a child"):
        open_vmdk(child)
    with vmdkit.open(base) as parent, pytest.raises(FormatError, match="it is no child"):
        open_vmdk(base, parent=parent)


def test_files_that_have_other_names_for_now(tmp_path: Path) -> None:
    image = SUBFORMATS["split"].build(tmp_path, LAYOUT)
    parts = {}
    for number, path in enumerate(sorted(tmp_path.glob("*-s*.vmdk"))):
        parts[path.name] = str(path.rename(tmp_path / f"part{number}"))
    assert parts
    with open_vmdk(str(image.path), parts) as disk:
        check(disk, expected_bytes(LAYOUT))


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("hosted", "header.version", 9, "the header is not one that we write"),
        ("hosted", "header.capacity", 1, "the header is not one that we write"),
        ("hosted", "header.grainSize", 0, "the header is not one that we write"),
        ("hosted", "header.grainSize", 7, "a grain of 3584 bytes|cannot hold"),
        ("hosted", "header.numGTEsPerGT", 0, "the header is not one that we write"),
        ("hosted", "header.gdOffset", 1 << 40, "are due here, and the file has"),
        ("hosted", "header.uncleanShutdown", 1, "its flags are not those of a disk that was closed"),
        ("vmfsSparse", "header.grainSize", 1 << 20, "a grain of|the header"),
    ],
)
def test_damage(kind: str, field: str, value: int, message: str, tmp_path: Path) -> None:
    image = SUBFORMATS[kind].build(tmp_path, LAYOUT)
    image.poke(field, value)
    with pytest.raises(FormatError, match=message):
        open_vmdk(str(image.path))


@pytest.mark.parametrize("entry", [2, 1 << 30])
def test_a_grain_that_cannot_be_there(entry: int, tmp_path: Path) -> None:
    image = SUBFORMATS["hosted"].build(tmp_path, LAYOUT)
    image.poke_entry(0, entry)
    with open_vmdk(str(image.path)) as disk, pytest.raises(FormatError, match="the grain at 0x0 of this extent"):
        disk.pread(512, 0)


def test_a_stream_cut_off(tmp_path: Path) -> None:
    image = SUBFORMATS["stream-A"].build(tmp_path, LAYOUT)
    path = Path(image.path)
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(FormatError, match="without a footer and an end of stream"):
        open_vmdk(str(path))
    path.write_bytes(data[:-1536] + bytes(512) + data[-1024:])
    with pytest.raises(FormatError, match="the marker of the footer is missing"):
        open_vmdk(str(path))


def test_a_stream_whose_grain_is_damaged(tmp_path: Path) -> None:
    image = SUBFORMATS["stream-A"].build(tmp_path, "64k:a 64k:b")
    path = Path(image.path)
    data = bytearray(path.read_bytes())
    first = next(at for at in range(512, len(data), 512) if data[at : at + 8] == bytes(8) and data[at + 12] == 0x78)
    data[first + 2000] ^= 1
    path.write_bytes(data)
    with open_vmdk(str(path)) as disk:
        with pytest.raises(FormatError, match="the grain cannot be inflated"):
            disk.pread(65536, 0)
        assert disk.pread(65536, 65536) == expected_bytes("64k:a 64k:b")[65536:]
    data[first] = 9
    path.write_bytes(data)
    with open_vmdk(str(path)) as disk, pytest.raises(FormatError, match="the marker of the grain at 0x0 names 0x1200"):
        disk.pread(65536, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"parentCID=ffffffff\n", "no extent in the descriptor"),
        (b'parentCID=ffffffff\nRW 8 SESPARSE "x"\n', "type SESPARSE is none that we write"),
        (b'parentCID=ffffffff\nRW 8 FLAT "../x" 0\n', "is not as we write them"),
        (b'parentCID=ffffffff\nNOACCESS 8 FLAT "x" 0\n', "is not as we write them"),
        (b"\0" * 2000000, "it is no descriptor"),
        (b'parentCID=ffffffff\nRW 8 SPARSE "x"\n', "which is no magic of an extent"),
        (b'parentCID=ffffffff\nRW 9 FLAT "x" 0\n', "x: it has 4096 bytes, 4608 are due"),
    ],
)
def test_descriptors_that_are_none(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 4096)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=message):
        open_vmdk(str(path))


def test_it_loads_nothing_of_the_first_reader() -> None:
    code = "import sys, vmdkit.witness.disk; print([name for name in sys.modules if 'vmdkit.vmdk' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
