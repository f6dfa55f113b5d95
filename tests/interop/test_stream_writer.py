# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Streams that we write, as other programs read them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from model import Model
from require import requires
from streams import far_stream, written
from vmdkit.kernels import FAST, STORED
from vmdkit.vmdk.stream_writer import StreamRecipe

if TYPE_CHECKING:
    from pathlib import Path

LAYOUTS = {
    "one sector": "512:A",
    "empty": "1M:-",
    "no whole grain": "100k:A 28k:-",
    "seams of tables": "32704k:- 64k:A 64k:b 32M:- 3k:C",
    "random": "1M:z 3M:- 64k:y 500k:-",
    "mixture": "64k:A 64k:b 64k:- 64k:C 64k:0 32M:- 64k:d 64k:E 1k:F",
}
RECIPES = {"default": StreamRecipe(), "fast": StreamRecipe(level=FAST), "stored": StreamRecipe(level=STORED)}


@pytest.fixture(params=[(layout, "default") for layout in LAYOUTS] + [("mixture", "fast"), ("random", "stored")])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stream, and beside it the raw disk that it has to be."""
    layout, recipe = request.param
    model = Model(LAYOUTS[layout])
    (tmp_path / "disk.raw").write_bytes(model.pread(model.size, 0))
    path = tmp_path / "disk.vmdk"
    path.write_bytes(written(model, RECIPES[recipe]))
    return path


def run(*words: Any) -> bytes:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True).stdout


def test_qemu(disk: Path) -> None:
    requires("qemu-img>=7")
    raw = disk.with_name("disk.raw")
    run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", disk, raw)
    run("qemu-img", "check", "-f", "vmdk", disk)
    told = json.loads(run("qemu-img", "info", "--output=json", disk))
    assert told["format"] == "vmdk"
    assert told["virtual-size"] == raw.stat().st_size
    assert told["format-specific"]["data"]["create-type"] == "streamOptimized"
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, disk.with_name("out"))
    assert disk.with_name("out").read_bytes() == raw.read_bytes()


def test_7zip(disk: Path) -> None:
    requires("7zz")
    assert run("7zz", "x", "-tvmdk", "-so", disk) == disk.with_name("disk.raw").read_bytes()


def test_libvmdk(disk: Path) -> None:
    requires("vmdkinfo")
    told = run("vmdkinfo", disk).decode()
    assert "Stream optimized" in told
    assert f"({disk.with_name('disk.raw').stat().st_size} bytes)" in told


def test_what_qemu_makes_of_ours_is_what_we_were_given(tmp_path: Path) -> None:
    """Through a pipe, from a program to the next, and back."""
    requires("qemu-img>=7")
    raw = tmp_path / "in.raw"
    raw.write_bytes(Model("3M:A 64k:b 5M:- 1000k:z").pread((8 << 20) + (1064 << 10), 0))
    command = f"{sys.executable} -m vmdkit.cli.main convert --raw in.raw - -O streamOptimized | cat > piped.vmdk"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, cwd=tmp_path)
    run("qemu-img", "convert", "-f", "vmdk", "-O", "vmdk", tmp_path / "piped.vmdk", tmp_path / "back.vmdk")
    run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", tmp_path / "back.vmdk", raw)


def test_grains_beyond_8_gib_of_the_file(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    model = far_stream(tmp_path / "disk.vmdk", 9 << 30)
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", tmp_path / "disk.vmdk", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == model.pread(model.size, 0)


def test_more_than_2_tib(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    size = (3 << 40) + 512
    model = Model(size)
    for at in (0, (2 << 40) - 512, 1 << 41, size - 512):
        model.put("A", 512, at)
    path, raw = tmp_path / "disk.vmdk", tmp_path / "disk.raw"
    path.write_bytes(written(model))
    told = json.loads(run("qemu-img", "info", "--output=json", path))
    assert told["virtual-size"] == size
    for at in (0, (2 << 40) - 512, 1 << 41, size - 512):
        run(
            "qemu-img",
            "dd",
            "-f",
            "vmdk",
            "-O",
            "raw",
            f"if={path}",
            f"of={raw}",
            "bs=512",
            f"skip={at // 512}",
            f"count={at // 512 + 1}",
        )
        assert raw.read_bytes() == model.pread(512, at)
