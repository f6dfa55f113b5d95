# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

import witness

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["hosted", "stream-A"])
def test_is_the_tree_hash_of_the_content(kind: str, vmdkit: Any, build: Any) -> None:
    image = build(kind, "64k:A 64k:- 64k:b")
    expected = witness.tree_hash(image.model.pread(image.size, 0))
    done = vmdkit("hash", image.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tree-sha256-64k:{expected}  {image.path}\n", "")


@pytest.mark.parametrize("kind", ["hosted", "stream-A"])
def test_flat_is_sha256sum_of_the_raw_content(kind: str, vmdkit: Any, build: Any) -> None:
    image = build(kind, "64k:A 64k:- 64k:b")
    expected = hashlib.sha256(image.model.pread(image.size, 0)).hexdigest()
    done = vmdkit("hash", "--flat", image.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}  {image.path}\n", "")


def test_flat_json_and_algorithm(vmdkit: Any, raw: Path) -> None:
    found = json.loads(vmdkit("hash", "--raw", "--json", "--flat", "--algorithm", "md5", raw.name).stdout)
    assert found == {
        "disk": "disk.raw",
        "size": 1 << 20,
        "algorithm": "md5",
        "kind": "flat",
        "digest": hashlib.md5(raw.read_bytes()).hexdigest(),
    }


def test_tree_json_and_block_size(vmdkit: Any, raw: Path) -> None:
    found = json.loads(vmdkit("hash", "--raw", "--json", "--block-size", "1M", raw.name).stdout)
    assert found == {
        "disk": "disk.raw",
        "size": 1 << 20,
        "algorithm": "sha256",
        "kind": "tree",
        "block_size": 1 << 20,
        "digest": "tree-sha256-1M:" + witness.tree_hash(raw.read_bytes(), 1 << 20),
    }


def test_several_disks(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(b"o")
    digests = {name: witness.tree_hash((tmp_path / name).read_bytes()) for name in ("disk.raw", "other.raw")}
    lines = "".join(f"tree-sha256-64k:{digest}  {name}\n" for name, digest in digests.items())
    assert vmdkit("hash", "--raw", *digests).stdout == lines
    found = json.loads(vmdkit("hash", "--raw", "--json", *digests).stdout)
    assert [disk["disk"] for disk in found] == list(digests)


def test_reading_all(vmdkit: Any, raw: Path) -> None:
    assert vmdkit("hash", "--raw", "--read-all", raw).stdout == vmdkit("hash", "--raw", raw).stdout


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flat", "--algorithm", "crc9\x1b"], "no digest is called 'crc9\\x1b'; usual ones are blake2b, blake3"),
        (["--algorithm", "md5"], "a tree is made of sha256 or blake3, not 'md5'; --flat takes any digest"),
        (["--block-size", "5k"], "a block of 5120 bytes; a power of two from 4 KiB to 16 MiB is due"),
        (["--block-size", "64k", "--flat"], "only the tree has blocks"),
        (["--per-extent", "other.raw"], "--per-extent takes one disk"),
    ],
)
def test_what_makes_no_sense(words: list[str], message: str, vmdkit: Any, raw: Path) -> None:
    done = vmdkit("hash", "--raw", *words, raw)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vmdkit: {message}")


def test_no_disk(vmdkit: Any) -> None:
    assert vmdkit("hash").stderr == "vmdkit: no disk to digest is named\n"


def test_checking(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(b"o")
    listed = vmdkit("hash", "--raw", raw.name).stdout + vmdkit("hash", "--raw", "--flat", other.name).stdout
    (tmp_path / "list").write_text(f"# two disks\n\n{listed}")
    done = vmdkit("hash", "--raw", "--check", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "disk.raw: OK\nother.raw: OK\n", "")
    assert vmdkit("hash", "-q", "--raw", "--check", "list").stdout == ""
    with raw.open("r+b") as file:
        file.seek(70000)
        file.write(b"a")
    done = vmdkit("hash", "--raw", "--check", "-", input=listed)
    assert (done.returncode, done.stdout) == (1, "disk.raw: FAILED\nother.raw: OK\n")
    assert done.stderr == "vmdkit: 1 of 2 is not as it was listed\n"
    found = json.loads(vmdkit("hash", "--raw", "--json", "--check", "list").stdout)
    assert [(disk["disk"], disk["ok"]) for disk in found] == [("disk.raw", False), ("other.raw", True)]


def test_checking_what_is_gone_goes_on(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    listed = vmdkit("hash", "--raw", raw.name).stdout
    (tmp_path / "list").write_text(listed.replace("disk.raw", "gone.raw") + listed)
    done = vmdkit("hash", "--raw", "--check", "list")
    assert (done.returncode, done.stdout) == (1, "gone.raw: FAILED to be read\ndisk.raw: OK\n")
    assert "gone.raw: No such file or directory" in done.stderr


def test_checking_another_disk(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(vmdkit("hash", "--raw", raw.name).stdout)
    moved = raw.rename(tmp_path / "moved.raw")
    assert vmdkit("hash", "--raw", "--check", "list", moved.name).stdout == "moved.raw: OK\n"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("what\n", [], "list: line 1 is no digest and disk, two blanks between"),
        ("\n# nothing\n", [], "list: it lists no digest"),
        ("00  disk.raw\n", [], "disk.raw: sha256 has 64 digits, not 2; --algorithm says which digest it is"),
        ("tree-md5-64k:" + 64 * "0" + "  disk.raw\n", [], "a tree is made of sha256 or blake3, not 'md5'"),
        (2 * ("00  disk.raw\n"), ["other"], "list: a disk goes with --check only where it is one"),
        ("00  disk.raw\n", ["--flat"], "--check knows from each digest how it was made"),
    ],
)
def test_lists_that_are_none(text: str, words: list[str], message: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    done = vmdkit("hash", "--raw", "--check", "list", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vmdkit: {message}")
