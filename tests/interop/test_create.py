# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that vmdkit has made, in the hands of qemu, 7-Zip and libvmdk."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from model import Model
from require import requires
from vmdkit.maker import create
from vmdkit.units import GIB, KIB, MIB, TIB
from vmdkit.vmdk.create import SHAPES

if TYPE_CHECKING:
    from pathlib import Path

ALL = [shape.name for shape in SHAPES.values()]
CHILDREN = [shape.name for shape in SHAPES.values() if shape.child]
SIZES = [10 * MIB, 33 * MIB + 512, 5 * GIB]


def run(*words: Any) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def info(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("qemu-img", "info", "--output=json", path))
    return found


def made(subformat: str, tmp_path: Path, size: int = 10 * MIB) -> tuple[Path, Model]:
    """Make a disk with our writer's data in it."""
    path, model = tmp_path / "a.vmdk", Model(size)
    create(path, size, subformat=subformat, thin=subformat == "vmfs")
    with vmdkit.open(path, writable=True) as disk:
        for data, at in ((b"begin" * 1000, 0), (b"middle" * 30_000, size // 2 - 7), (b"end" * 100, size - 300)):
            disk.pwrite(data, at)
            model.write(data, at)
    return path, model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", ALL)
def test_qemu_img(subformat: str, size: int, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    path, model = made(subformat, tmp_path, size)
    run("qemu-img", "check", path)
    facts = info(path)
    assert facts["virtual-size"] == size
    assert facts["format-specific"]["data"]["create-type"] == subformat
    if size <= 64 * MIB:
        run("qemu-img", "convert", "-O", "raw", path, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == model.pread(size, 0)


@pytest.mark.parametrize("subformat", [name for name in ALL if name != "vmfsSparse"])
def test_7zip(subformat: str, tmp_path: Path) -> None:
    requires("7zz")
    path, model = made(subformat, tmp_path)
    told = subprocess.run(["7zz", "x", "-tvmdk", "-so", path], check=True, capture_output=True)
    assert told.stdout == model.pread(model.size, 0)
    assert not told.stderr.strip()


@pytest.mark.parametrize("subformat", ALL)
def test_libvmdk(subformat: str, tmp_path: Path) -> None:
    requires("vmdkinfo")
    path, model = made(subformat, tmp_path, 33 * MIB)
    told = run("vmdkinfo", path)
    assert re.search(rf"Media size:\s.*\({model.size} bytes\)", told)
    assert re.search(r"Extent: 1\b", told)


# qemu overwrites the header of a fresh vmfsSparse delta (format spec 3.1).
@pytest.mark.parametrize("subformat", [name for name in ALL if name != "vmfsSparse"])
def test_qemu_writes_and_we_read(subformat: str, tmp_path: Path) -> None:
    requires("qemu-io")
    path, model = made(subformat, tmp_path)
    run("qemu-io", "-c", "write -P 0x51 3M 200k", "-c", "write -P 0x52 65024 1k", path)
    model.write(b"\x51" * 200 * KIB, 3 * MIB)
    model.write(b"\x52" * KIB, 65024)
    with vmdkit.open(path) as disk:
        assert disk.pread(disk.size, 0) == model.pread(model.size, 0)


@pytest.mark.parametrize("base", ALL)
@pytest.mark.parametrize("subformat", CHILDREN)
def test_children_in_qemu(base: str, subformat: str, tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io")
    path, model = made(base, tmp_path)
    child = tmp_path / "child.vmdk"
    create(child, parent=path, subformat=subformat)
    assert info(child)["full-backing-filename"] == str(path)
    with vmdkit.open(child, writable=True) as disk:
        disk.pwrite(b"C" * 1000, 4 * MIB + 1)
    model.write(b"C" * 1000, 4 * MIB + 1)
    if subformat != "vmfsSparse":
        run("qemu-io", "-c", "write -P 0x53 1M 64k", child)
        model.write(b"\x53" * 64 * KIB, MIB)
    run("qemu-img", "check", child)
    run("qemu-img", "convert", "-O", "raw", child, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == model.pread(model.size, 0)
    with vmdkit.open(child) as disk:
        assert disk.pread(disk.size, 0) == model.pread(model.size, 0)


def test_our_child_of_qemus_disk_and_the_reverse(tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io")
    theirs, ours = tmp_path / "t.vmdk", tmp_path / "o.vmdk"
    run("qemu-img", "create", "-f", "vmdk", theirs, "10M")
    run("qemu-io", "-c", "write -P 0x61 0 128k", theirs)
    create(ours, parent=theirs)
    run("qemu-io", "-c", "read -P 0x61 0 128k", "-c", "write -P 0x62 64k 512", ours)
    run("qemu-img", "create", "-f", "vmdk", "-b", ours, "-F", "vmdk", tmp_path / "top.vmdk")
    run("qemu-io", "-c", "write -P 0x63 128k 512", tmp_path / "top.vmdk")
    with vmdkit.open(tmp_path / "top.vmdk") as disk:
        assert disk.pread(192 * KIB, 0) == (
            b"a" * 64 * KIB + b"b" * 512 + b"a" * (64 * KIB - 512) + b"c" * 512 + bytes(64 * KIB - 512)
        )


@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
def test_two_tebibytes_in_qemu(subformat: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    create(tmp_path / "a.vmdk", 2 * TIB, subformat=subformat)
    assert info(tmp_path / "a.vmdk")["virtual-size"] == 2 * TIB
