# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["hosted", "stream-A"])
def test_is_sha256sum_of_the_raw_content(kind: str, vmdkit: Any, build: Any) -> None:
    image = build(kind, "64k:A 64k:- 64k:b")
    expected = hashlib.sha256(image.model.pread(image.size, 0)).hexdigest()
    done = vmdkit("hash", image.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}  {image.path}\n", "")


def test_json_and_algorithm(vmdkit: Any, raw: Path) -> None:
    found = json.loads(vmdkit("hash", "--raw", "--json", "--algorithm", "md5", raw.name).stdout)
    assert found == {
        "disk": "disk.raw",
        "algorithm": "md5",
        "size": 1 << 20,
        "digest": hashlib.md5(raw.read_bytes()).hexdigest(),
    }


def test_per_extent(vmdkit: Any, raw: Path) -> None:
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"A" * 65536, b"B" * 4096))
    assert vmdkit("hash", "--raw", "--per-extent", raw).stdout == (
        f"               0            65536 hole,zero -\n"
        f"           65536            65536 data      {one}\n"
        f"          131072           131072 hole,zero -\n"
        f"          262144             4096 data      {two}\n"
        f"          266240           782336 hole,zero -\n"
    )
    found = json.loads(vmdkit("hash", "--raw", "--per-extent", "--json", raw).stdout)
    assert [(run["offset"], run["type"], run["digest"]) for run in found][:2] == [
        (0, "hole,zero", None),
        (65536, "data", one),
    ]


def test_an_unknown_algorithm(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("hash", "--raw", "--algorithm", "crc9\x1b", raw)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("vmdkit: no digest is called 'crc9\\x1b'; usual ones are blake2b, blake3")
