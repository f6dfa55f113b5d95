# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit copy`` through other programs' servers, beside nbdcopy; and VHDs as qemu-img sees them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import images
from require import requires

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LAYOUT = "64k:A 64k:0 64k:- 128k:c 4k:D 60k:- 1M:- 1M:e 64k:-"


def ours(folder: Path, *words: Any, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vmdkit.cli.main", *map(str, words)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture
def image(tmp_path: Path) -> images.Image:
    return images.SUBFORMATS["hosted"].build(tmp_path, LAYOUT)


def raw_of(image: images.Image) -> bytes:
    return image.model.pread(image.size, 0)


@pytest.mark.parametrize("options", [["--destination-is-zero", "--flush"], [], ["--allocated"], ["--threads", "1"]])
def test_into_qcow2_and_back(options: list[str], image: images.Image, tmp_path: Path) -> None:
    requires("qemu-nbd", "qemu-img>=7")
    out = tmp_path / "out.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", out, str(image.size)], check=True)
    ours(tmp_path, "copy", *options, image.path, "[", "qemu-nbd", "-f", "qcow2", out, "]")
    subprocess.run(["qemu-img", "compare", "-f", "vmdk", "-F", "qcow2", image.path, out], check=True)
    ours(tmp_path, "convert", "[", "qemu-nbd", "-r", "-f", "qcow2", out, "]", "back.vmdk", "-O", "monolithicSparse")
    subprocess.run(["qemu-img", "compare", "-f", "vmdk", "-F", "qcow2", tmp_path / "back.vmdk", out], check=True)


@pytest.mark.parametrize("filters", [[], ["--filter=nozero"], ["--filter=noextents"], ["--filter=blocksize-policy"]])
def test_from_server_to_server_as_nbdcopy(filters: list[str], image: images.Image, tmp_path: Path) -> None:
    requires("nbdkit", "nbdcopy")
    data = raw_of(image)
    (tmp_path / "in").write_bytes(data)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"x" * (len(data) + MIB))
    more = ["blocksize-minimum=4096", "blocksize-error-policy=error"] if "policy" in "".join(filters) else []
    source = ["[", "nbdkit", "file", str(tmp_path / "in"), *filters, *more, "]"]
    ours(tmp_path, "copy", *source, "[", "nbdkit", "file", tmp_path / "one", *filters, *more, "]")
    target = ["[", "nbdkit", "--exit-with-parent", "file", str(tmp_path / "two"), "]"]
    subprocess.run(["nbdcopy", "--", *source, *target], check=True, timeout=60)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == data + b"x" * MIB


def test_a_server_that_fails_in_the_middle_is_resumed(tmp_path: Path) -> None:
    requires("nbdkit")
    data = random.Random(8).randbytes(8 * MIB)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "out").write_bytes(b"x" * len(data))
    server = ["[", "nbdkit", "file", str(tmp_path / "out")]
    failing = ["--filter=error", "error-pwrite-rate=100%", f"error-file={tmp_path / 'fail'}"]
    words = ["copy", "--raw-source", "--resume", "--checkpoint", "0", "--threads", "1", "--journal", "j", "in"]
    # the filter fails from the moment that there is such a file: a first piece is copied, then it appears
    child = subprocess.Popen(
        [sys.executable, "-m", "vmdkit.cli.main", *words, "--rate-limit", "4M", *server, *failing, "]"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while child.poll() is None:
        try:
            if json.loads((tmp_path / "j").read_text())["done"] >= 2 * MIB:
                break
        except FileNotFoundError:
            continue
    (tmp_path / "fail").touch()
    _, told = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "Input/output error" in told
    done = json.loads((tmp_path / "j").read_text())["done"]
    assert 2 * MIB <= done < len(data)
    assert (tmp_path / "out").read_bytes()[:done] == data[:done]
    (tmp_path / "fail").unlink()
    ours(tmp_path, *words, *server, *failing, "]")
    assert (tmp_path / "out").read_bytes() == data
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("size", [512, 3 * MIB, 20 * MIB, 100 * MIB + 512, (1 << 30) + 512, (200 << 30) + 512])
def test_a_vhd_has_size_and_bytes_for_qemu(size: int, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    with (tmp_path / "in").open("wb") as file:
        file.truncate(size)
        file.write(b"begin")
        file.seek(size - 3)
        file.write(b"end")
    ours(tmp_path, "convert", "--raw", "in", "out.vhd", "-O", "vhd", "--no-sync")
    told = subprocess.run(
        ["qemu-img", "info", "-f", "vpc", "--output=json", tmp_path / "out.vhd"], capture_output=True, check=True
    )
    assert json.loads(told.stdout)["virtual-size"] == size
    subprocess.run(["qemu-img", "compare", "-f", "vpc", "-F", "raw", tmp_path / "out.vhd", tmp_path / "in"], check=True)


def test_a_tar_is_what_gnu_tar_would_have_made(image: images.Image, tmp_path: Path) -> None:
    requires("tar")
    ours(tmp_path, "convert", image.path, "out.tar.gz", "-O", "tar.gz")
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "x", "-xzf", tmp_path / "out.tar.gz"], check=True)
    assert (tmp_path / "x" / "disk.raw").read_bytes() == raw_of(image)
    subprocess.run(
        ["tar", "-C", tmp_path / "x", "--format=oldgnu", "-Sczf", tmp_path / "theirs.tar.gz", "disk.raw"], check=True
    )
    for name in ("out", "theirs"):
        listed = subprocess.run(
            ["tar", "-tvzf", tmp_path / f"{name}.tar.gz"], capture_output=True, check=True, text=True
        )
        assert listed.stdout.split()[2] == str(image.size)
