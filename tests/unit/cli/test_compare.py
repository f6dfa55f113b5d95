# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pair(raw: Path, tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "other").write_bytes(raw.read_bytes())
    return "disk.raw", "other"


def test_same(vmdkit: Any, pair: Any) -> None:
    done = vmdkit("compare", "--raw", *pair)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Images are identical.\n", "")
    done = vmdkit("compare", "--raw", "-q", *pair)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_differ(vmdkit: Any, pair: Any, tmp_path: Path) -> None:
    with (tmp_path / "other").open("r+b") as file:
        file.seek(200_001)
        file.write(b"x")
    done = vmdkit("compare", "--raw", *pair)
    assert (done.returncode, done.stdout) == (1, "Content mismatch at offset 200001!\n")
    found = json.loads(vmdkit("compare", "--raw", "--json", *pair).stdout)
    assert (found["same"], found["offset"], found["sizes"]) == (False, 200_001, [1 << 20, 1 << 20])


def test_sizes(vmdkit: Any, pair: Any, tmp_path: Path) -> None:
    with (tmp_path / "other").open("ab") as file:
        file.write(bytes(512))
    done = vmdkit("compare", "--raw", *pair)
    assert (done.returncode, done.stdout) == (0, "Images are identical.\n")
    assert done.stderr == "vmdkit: warning: sizes differ: 1048576 and 1049088 bytes\n"
    done = vmdkit("compare", "--raw", "--strict", *pair)
    assert (done.returncode, done.stdout) == (1, "Sizes differ: 1048576 and 1049088 bytes.\n")
    with (tmp_path / "other").open("ab") as file:
        file.write(b"x")
    done = vmdkit("compare", "--raw", *pair)
    assert (done.returncode, done.stdout) == (1, "Content mismatch at offset 1049088!\n")


def test_not_opened(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("compare", "--raw", raw, "none")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "vmdkit: none: No such file or directory\n")
    assert vmdkit("compare", raw, raw).returncode == 2


def test_not_read(vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build("stream-A", "64k:A 64k:b 64k:C")
    (tmp_path / "copy").write_bytes(image.model.pread(image.size, 0))
    image.poke_entry(1, 0xFFFFFF)
    done = vmdkit("compare", "--raw-b", image.path, "copy")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"vmdkit: {image.path}: grain table: entry 1 of table 0 points outside")


def test_a_vmdk_with_raw(vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build("hosted", "64k:A 64k:- 64k:B")
    (tmp_path / "copy").write_bytes(image.model.pread(image.size, 0))
    assert vmdkit("compare", "--raw-b", image.path, "copy").returncode == 0
    assert vmdkit("compare", "--raw-a", "copy", image.path).returncode == 0
    assert vmdkit("compare", image.path, image.path).returncode == 0


def test_nearly_empty_disks_are_quick(vmdkit: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(16 << 30)
    begun = time.perf_counter()
    assert vmdkit("compare", "--raw", "a", "b").returncode == 0
    assert time.perf_counter() - begun < 1


def test_all_differences(vmdkit: Any, pair: Any, tmp_path: Path) -> None:
    assert vmdkit("compare", "--raw", "--all", *pair).stdout == "Images are identical.\n"
    with (tmp_path / "other").open("r+b") as file:
        for at in (200_001, 700_000, 700_500):
            file.seek(at)
            file.write(b"x")
    done = vmdkit("compare", "--raw", "--all", *pair)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        "          199680              512\n"
        "          699904             1024\n"
        "2 ranges of sectors with 1536 bytes differ.\n"
    )  # fmt: skip
    assert json.loads(vmdkit("compare", "--raw", "--all", "--json", *pair).stdout) == {
        "same": False,
        "offset": 199680,
        "sizes": [1 << 20, 1 << 20],
        "read": 1 << 20,
        "skipped": 0,
        "ranges": [{"offset": 199680, "length": 512}, {"offset": 699904, "length": 1024}],
        "differing": 1536,
        "complete": True,
    }
    done = vmdkit("compare", "--raw", "--all", "--limit", "1", *pair)
    assert done.stdout.endswith("1 range of sectors with 512 bytes differs; there are more, --limit lists more.\n")
    assert vmdkit("compare", "--raw", "--all", "-q", *pair).stdout == ""
    assert vmdkit("compare", "--raw", "--all", "--limit", "0", *pair).returncode == 2
    with (tmp_path / "other").open("ab") as file:
        file.write(b"y")
    done = vmdkit("compare", "--raw", "--all", *pair)
    assert done.stderr == "vmdkit: warning: sizes differ: 1048576 and 1048577 bytes\n"
    assert "         1048576                1\n" in done.stdout
