# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What qemu-img and nbdinfo say of a disk, and make of it, vmdkit must say and make too."""

from __future__ import annotations

import filecmp
import hashlib
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from require import requires

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIZE = 4 << 20
GRAIN = 64 << 10
SUBFORMATS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]
SHARED = ("start", "length", "depth", "present", "zero", "data", "offset")  # qemu-img 7.2 knows no others


def ours(*words: Any, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vmdkit.cli.main", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def theirs(*words: Any, code: int = 0) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a raw disk with runs of data, zeros and holes on grain boundaries."""
    requires("qemu-img>=7")
    path = tmp_path_factory.mktemp("convert") / "disk.raw"
    dice = random.Random(7)
    with path.open("wb") as file:
        file.truncate(SIZE)
        offset = 0
        while offset < SIZE:
            length = min(GRAIN * dice.randint(1, 12), SIZE - offset)
            if dice.random() < 0.5:
                file.seek(offset)
                file.write(dice.randbytes(length // 2) * 2)
            offset += length
    return path


@pytest.fixture(scope="module", params=SUBFORMATS)
def image(request: pytest.FixtureRequest, disk: Path) -> Path:
    path = disk.with_name(f"{request.param}.vmdk")
    theirs("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={request.param}", disk, path)
    return path


@pytest.fixture(scope="module")
def child(disk: Path) -> Path:
    """Make a child with grains of its own over a sparse base, and one of them twice."""
    base, path = disk.with_name("base.vmdk"), disk.with_name("child.vmdk")
    theirs("qemu-img", "convert", "-f", "raw", "-O", "vmdk", disk, base)
    theirs("qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base.name, path)
    writes = [f"write -P {number} {at}k 64k" for number, at in ((1, 0), (2, 640), (3, 2048), (4, 640))]
    theirs("qemu-io", *[word for write in writes for word in ("-c", write)], path)
    return path


def shared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in SHARED if key in row} for row in rows]


def test_converts_as_qemu(image: Path, disk: Path, tmp_path: Path) -> None:
    for words in ([], ["-f", "-S", "4k", "--threads", "1"]):
        ours("convert", image, tmp_path / "out", *words)
        assert filecmp.cmp(tmp_path / "out", disk, shallow=False)
    theirs("qemu-img", "compare", "-f", "vmdk", "-F", "raw", image, tmp_path / "out")


def test_streams_and_hashes(image: Path, disk: Path) -> None:
    expected = hashlib.sha256(disk.read_bytes()).hexdigest()
    command = f"{sys.executable} -m vmdkit.cli.main convert {image} - | sha256sum"
    assert theirs("bash", "-o", "pipefail", "-c", command).split()[0] == expected
    assert ours("hash", "--flat", image).split()[0] == expected


def test_converts_a_chain(child: Path, tmp_path: Path) -> None:
    ours("convert", child, tmp_path / "ours")
    theirs("qemu-img", "convert", "-O", "raw", child, tmp_path / "theirs")
    assert filecmp.cmp(tmp_path / "ours", tmp_path / "theirs", shallow=False)


def test_maps_as_qemu(image: Path) -> None:
    """Holes inside flat files are where qemu-img calls unallocated space present data: there only zero is compared."""
    mine = json.loads(ours("map", "--json", image))
    qemu = json.loads(theirs("qemu-img", "map", "--output=json", image))
    if "Flat" in image.name:
        assert zeros(mine) == zeros(qemu)
        return
    assert shared(mine) == shared(qemu)
    for row in mine:
        assert row["compressed"] == (image.name.startswith("stream") and row["data"])
        assert ("filename" in row) == ("offset" in row)


def test_maps_a_chain_as_qemu(child: Path) -> None:
    mine = json.loads(ours("map", "--json", child))
    assert shared(mine) == shared(json.loads(theirs("qemu-img", "map", "--output=json", child)))


@pytest.mark.parametrize("form", ["--map", "--totals"])
def test_maps_as_nbdinfo(disk: Path, form: str) -> None:
    requires("nbdinfo", "qemu-nbd")
    image = disk.with_name("monolithicSparse.vmdk")
    theirs("qemu-img", "convert", "-f", "raw", "-O", "vmdk", disk, image)
    words = ["--map", "--totals"] if form == "--totals" else ["--map"]
    told = json.loads(theirs("nbdinfo", *words, "--json", "--", "[", "qemu-nbd", "-r", "-f", "vmdk", image, "]"))
    if form == "--map":
        assert json.loads(ours("map", "--nbd-json", image)) == told
        return
    mine = json.loads(ours("map", "--totals", "--json", image))
    for row in (*mine, *told):
        row["percent"] = round(row["percent"], 3)
    assert mine == told


def test_compares_as_qemu(image: Path, disk: Path, tmp_path: Path) -> None:
    content = bytearray(disk.read_bytes())
    assert_same_answer(image, tmp_path, content, 0)
    assert_same_answer(image, tmp_path, content + bytes(GRAIN), 0)
    assert_same_answer(image, tmp_path, content + bytes(GRAIN), 1, "-s")
    assert_same_answer(image, tmp_path, content + bytes(GRAIN) + b"x" * 512, 1)
    content[5 * GRAIN + 77] ^= 1
    assert_same_answer(image, tmp_path, content, 1)


def test_compares_nothing_as_qemu(disk: Path) -> None:
    theirs("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, disk.with_name("none"), code=2)
    ours("compare", "--raw", disk, disk.with_name("none"), code=2)


def assert_same_answer(image: Path, folder: Path, content: bytes | bytearray, code: int, *words: str) -> None:
    raw = folder / "changed"
    raw.write_bytes(content)
    theirs("qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", *words, image, raw, code=code)
    ours("compare", "-q", "--raw-b", *words, image, raw, code=code)


def zeros(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return the joined runs that read as zero."""
    joined: list[tuple[int, int]] = []
    for row in rows:
        if not row["zero"]:
            continue
        start, end = row["start"], row["start"] + row["length"]
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined
