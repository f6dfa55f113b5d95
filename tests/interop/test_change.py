# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that vmdkit has changed, in the hands of qemu, 7-Zip and libvmdk; and changed by them in between."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from model import Model
from require import requires
from vmdkit.maker import commit, compact, create, rebase, resize, snapshot
from vmdkit.units import KIB, MIB
from vmdkit.vmdk.create import SHAPES

if TYPE_CHECKING:
    from pathlib import Path

ALL = [shape.name for shape in SHAPES.values()]
SIZE = 3 * MIB


def run(*words: Any) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def agree(path: Path, model: Model) -> None:
    """Hold what qemu, libvmdk and vmdkit's own check say of a disk against the model."""
    out = path.with_suffix(".raw")
    run("qemu-img", "check", path)
    run("qemu-img", "convert", "-O", "raw", path, out)
    assert out.read_bytes() == model.pread(model.size, 0)
    assert f"({model.size} bytes)" in run("vmdkinfo", path)
    with vmdkit.open(path) as disk:
        assert disk.pread(disk.size, 0) == model.pread(model.size, 0)


def write(path: Path, model: Model, seed: int, *, theirs: bool = False) -> None:
    """Write here and there; qemu in one opening, since each one changes the content ID."""
    dice, commands = random.Random(seed), list[str]()
    for _ in range(6):
        at, count = dice.randrange(model.size // 512 - 1) * 512, dice.choice([512, 9 * 512, 65536, 200 * KIB])
        count, byte = min(count, model.size - at), dice.randrange(1, 256)
        commands += ["-c", f"write -P {byte} {at} {count}"]
        if not theirs:
            with vmdkit.open(path, writable=True) as disk:
                disk.pwrite(bytes([byte]) * count, at)
        model.write(bytes([byte]) * count, at)
    if theirs:
        run("qemu-io", *commands, path)


def resized(model: Model, size: int) -> Model:
    new = Model(size)
    new.write(model.pread(min(model.size, size), 0), 0)
    return new


@pytest.mark.parametrize("subformat", ALL)
def test_a_life(subformat: str, tmp_path: Path) -> None:
    """Write, grow, snapshot, write, snapshot, rebase, commit, compact, shrink: a disk as its owner sees it."""
    requires("qemu-img>=7", "qemu-io", "vmdkinfo")
    theirs = "vmfs" not in subformat  # qemu overwrites the header of a fresh vmfsSparse delta
    base, model = tmp_path / "a.vmdk", Model(SIZE)
    create(base, SIZE, subformat=subformat)
    write(base, model, 1, theirs=subformat != "vmfsSparse")
    size = 8 * MIB if "vmfs" in subformat else 33 * MIB  # qemu reads grains of 512 bytes one by one
    resize(base, size)
    model = resized(model, size)
    write(base, model, 2)
    agree(base, model)
    first = tmp_path / "a-000001.vmdk"
    assert snapshot(base) == str(first)
    write(first, model, 3, theirs=theirs)
    second = tmp_path / "a-000002.vmdk"
    assert snapshot(first) == str(second)
    middle = model.copy()
    write(second, model, 4, theirs=theirs)
    compact(second)
    agree(second, model)
    commit(first)
    agree(base, middle)
    rebase(second, base)
    agree(second, model)
    commit(first, delete=True)  # nothing is left in it, and nobody is made from it
    commit(second, delete=True)
    compact(base)
    agree(base, model)
    resize(base, 4 * MIB, shrink=True)
    agree(base, resized(model, 4 * MIB))


def test_7zip_reads_what_was_moved(tmp_path: Path) -> None:
    requires("7zz")
    path, model = tmp_path / "a.vmdk", Model(SIZE)
    create(path, SIZE)
    write(path, model, 5)
    resize(path, 100 * MIB)
    compact(path)
    told = subprocess.run(["7zz", "x", "-tvmdk", "-so", path], check=True, capture_output=True).stdout
    assert told[:SIZE] == model.pread(SIZE, 0)
    assert len(told) == 100 * MIB
    assert not any(told[SIZE:])


def test_flattened_children_are_disks_of_their_own(tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io", "7zz")
    base, model = tmp_path / "a.vmdk", Model(SIZE)
    run("qemu-img", "create", "-q", "-f", "vmdk", base, SIZE)
    write(base, model, 6, theirs=True)
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", tmp_path / "b.vmdk")
    write(tmp_path / "b.vmdk", model, 7, theirs=True)
    rebase(tmp_path / "b.vmdk", None)
    base.unlink()
    told = subprocess.run(["7zz", "x", "-tvmdk", "-so", tmp_path / "b.vmdk"], check=True, capture_output=True).stdout
    assert told == model.pread(SIZE, 0)
    facts = json.loads(run("qemu-img", "info", "--output=json", tmp_path / "b.vmdk"))
    assert "backing-filename" not in facts


def test_qemus_own_disks_are_changed(tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io", "vmdkinfo")
    for subformat in ("monolithicSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        home = tmp_path / subformat
        home.mkdir()
        path, model = home / "q.vmdk", Model(SIZE)
        run("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, SIZE)
        write(path, model, 8, theirs=True)
        resize(path, 33 * MIB)
        model = resized(model, 33 * MIB)
        write(path, model, 9, theirs=True)
        agree(path, model)
        compact(path)
        agree(path, model)
