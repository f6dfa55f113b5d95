# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in the middle of a conversion, nothing is left: for each format that is written."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.formats import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
KINDS = [row.name for row in FORMATS.values()]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.raw"
    path.write_bytes(random.Random(6).randbytes(3 * MIB))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def slow(folder: Path, kind: str, *more: str) -> subprocess.Popen[str]:
    """Begin a conversion that takes seconds, and return when it has written something."""
    words = ["convert", "--raw", "--rate-limit", "2M", "big.raw", "new", "-O", kind, *more]
    child = subprocess.Popen(
        [sys.executable, "-m", "vmdkit.cli.main", *words], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        if any(path.stat().st_size > 64 << 10 for path in folder.glob(".vmdkit-*")):
            return child
        time.sleep(0.02)
    raise AssertionError(f"nothing was written: {child.communicate()[1]}")


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption(kind: str, big: Path, tmp_path: Path) -> None:
    with slow(tmp_path, kind) as child:
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=20)
    assert (child.returncode, told) == (130, "vmdkit: interrupted\n")
    assert names(tmp_path) == ["big.raw"]


@pytest.mark.parametrize("kind", ["monolithicSparse", "twoGbMaxExtentFlat", "raw"])
def test_an_interruption_leaves_the_old_disk(kind: str, big: Path, tmp_path: Path, vmdkit: Any) -> None:
    os.truncate(tmp_path / "big.raw", MIB)
    assert vmdkit("convert", "--raw", big, "new", "-O", kind).returncode == 0
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    big.write_bytes(random.Random(7).randbytes(3 * MIB))
    with slow(tmp_path, kind, "-f") as child:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
    assert child.returncode == 143
    assert names(tmp_path) == sorted(before)
    for name, content in before.items():
        assert name == "big.raw" or (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_cut_off_meanwhile(kind: str, big: Path, tmp_path: Path) -> None:
    with slow(tmp_path, kind) as child:
        os.truncate(big, 5 * MIB // 2)
        _, told = child.communicate(timeout=20)
    assert child.returncode == 1
    assert told.startswith("vmdkit: big.raw: ")
    assert told.count("\n") == 1
    assert names(tmp_path) == ["big.raw"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_written_meanwhile(kind: str, big: Path, tmp_path: Path) -> None:
    with slow(tmp_path, kind) as child:
        with big.open("r+b") as file:
            file.seek(5 * MIB // 2)
            file.write(b"changed")
        _, told = child.communicate(timeout=20)
    assert child.returncode == 1
    assert told.startswith("vmdkit: big.raw: it was written to while it was read")
    assert names(tmp_path) == ["big.raw"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_the_size_of_files(kind: str, big: Path, tmp_path: Path, vmdkit: Any) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = vmdkit("convert", "--raw", big, "new", "-O", kind, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith("vmdkit: new")
    assert "File too large" in done.stderr
    assert names(tmp_path) == ["big.raw"]


def test_more_files_than_a_program_has_open_as_a_rule(tmp_path: Path, vmdkit: Any) -> None:
    def limit() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))

    with (tmp_path / "in").open("wb") as file:
        file.truncate(100 << 30)
    for words in (
        ["convert", "--raw", "in", "out", "-O", "twoGbMaxExtentSparse", "--no-sync"],
        ["compare", "--raw-a", "in", "out"],
    ):
        done = vmdkit(*words, preexec_fn=limit)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_file_system(kind: str, big: Path, tmp_path: Path, vmdkit: Any) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = vmdkit("convert", "--raw", big, "small/new", "-O", kind)
        assert done.returncode == 1
        assert done.stderr.startswith("vmdkit: small/new")
        assert "No space left on device" in done.stderr
        assert names(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_source(kind: str, damage: str, build: Any, tmp_path: Path, vmdkit: Any) -> None:
    image = build("stream-A", "64k:A 64k:b 64k:c 64k:D 1M:-")
    path = image.path
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[128 << 10] ^= 0x10  # in the packed data of a grain: b and c do not shrink
        path.write_bytes(content)
    else:
        os.truncate(path, path.stat().st_size - 2048)
    before = names(tmp_path)
    done = vmdkit("convert", path, "new", "-O", kind)
    assert done.returncode == 1
    assert done.stderr.startswith("vmdkit: ")
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == before
