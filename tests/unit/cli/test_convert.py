# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

ROWS = ["hosted", "stream-A", "split-flat", "seSparse"]
LAYOUT = "64k:A 128k:- 64k:b 64k:0 64k:C"


@pytest.mark.parametrize("kind", ROWS)
def test_to_raw(kind: str, vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build(kind, LAYOUT)
    done = vmdkit("convert", image.path, "out.raw")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    expected = image.model.pread(image.size, 0)
    assert (tmp_path / "out.raw").read_bytes() == expected
    assert vmdkit("convert", image.path, "-", text=False).stdout == expected


def test_holes_stay_holes(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    assert vmdkit("convert", "--raw", raw, "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()
    assert (tmp_path / "out").stat().st_blocks == raw.stat().st_blocks


def test_scanning_finds_zeros_and_granularity_0_allocates(vmdkit: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"A" * 65536 + bytes(65536) + b"B" * 65536)
    sizes = {}
    for name, words in {"default": [], "scan": ["-S", "4k"], "all": ["-S", "0"]}.items():
        assert vmdkit("convert", "--raw", "in", name, *words).returncode == 0
        assert (tmp_path / name).read_bytes() == (tmp_path / "in").read_bytes()
        sizes[name] = (tmp_path / name).stat().st_blocks * 512
    assert sizes == {"default": 131072, "scan": 131072, "all": 196608}
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    assert vmdkit("convert", "--raw", "sparse", "full", "-S", "0").returncode == 0
    assert (tmp_path / "full").stat().st_blocks * 512 >= 1 << 20


def test_verbose_and_json_progress(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "out", "-v")
    assert done.stderr == "vmdkit: out: 68 KiB written, 956 KiB skipped as zero\n"
    done = vmdkit("convert", "--raw", raw, "out2", "--progress", "json")
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["done"], last["total"], last["skipped"]) == (1 << 20, 1 << 20, 978944)


def test_never_overwrites_without_f(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    done = vmdkit("convert", "--raw", raw, "out")
    assert (done.returncode, done.stderr) == (1, "vmdkit: out: it exists; -f overwrites it\n")
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert vmdkit("convert", "--raw", "-f", raw, "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()


def test_in_place(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = vmdkit("convert", "--raw", "-n", raw, "out")
    assert (done.returncode, done.stderr) == (1, "vmdkit: out: No such file or directory\n")
    out.write_bytes(b"x" * ((1 << 20) + 5))
    inode = out.stat().st_ino
    assert vmdkit("convert", "--raw", "-n", raw, "out").returncode == 0
    assert out.stat().st_ino == inode
    assert out.read_bytes() == raw.read_bytes() + b"xxxxx"
    os.truncate(out, 5)
    done = vmdkit("convert", "--raw", "-n", raw, "out")
    assert (done.returncode, done.stderr) == (1, "vmdkit: out: it holds 5 bytes, 1048576 are needed\n")


@pytest.mark.parametrize("words", [["-n"], ["-f"]])
def test_the_source_is_never_the_target(words: list[str], vmdkit: Any, raw: Path) -> None:
    before = raw.read_bytes()
    done = vmdkit("convert", "--raw", *words, raw, raw)
    assert (done.returncode, done.stderr) == (1, f"vmdkit: {raw}: the source is read from this very file\n")
    assert raw.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-O", "qcow9"],
            (
                "cannot write 'qcow9', only raw, monolithicSparse, twoGbMaxExtentSparse, monolithicFlat, "
                "twoGbMaxExtentFlat, vmfs, vmfsSparse, streamOptimized, vhd, tar.gz"
            ),
        ),
        (["-S", "5"], "a granularity of 5 does not divide 1048576, or is no multiple of 8"),
        (["-S", "lots"], "'lots' is no size; write for example 1048576, 64k, 10G or 1.5T"),
    ],
)
def test_nonsense(words: list[str], message: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", *words, raw, "out")
    assert (done.returncode, done.stderr) == (1, f"vmdkit: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


def test_threads(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", "--threads", "0", raw, "out")
    assert done.returncode == 2
    assert "between 1 and 64 threads, not 0" in done.stderr


def test_appending_to_the_source_is_refused(vmdkit: Any, raw: Path) -> None:
    with raw.open("ab") as out:
        done = vmdkit("convert", "--raw", raw, "-", stdout=out)
    assert (done.returncode, done.stderr) == (1, "vmdkit: standard output: the source is read from this very file\n")
    assert raw.stat().st_size == 1 << 20


def test_a_file_size_limit_is_told_and_leaves_nothing(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = vmdkit("convert", "--raw", raw, "out", preexec_fn=limit)
    assert (done.returncode, done.stderr) == (1, "vmdkit: out: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


def test_a_full_disk_is_told_and_leaves_nothing(vmdkit: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (tmp_path / "in").write_bytes(b"A" * (1 << 20))
        done = vmdkit("convert", "--raw", "in", "small/out")
        assert done.returncode == 1
        assert done.stderr.startswith("vmdkit: small/out: No space left on device, in the ")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number: int, code: int, tmp_path: Path) -> None:
    """A pipe as the source of time: the target is begun, then the signal comes."""
    script = (
        "import sys, time, vmdkit.converter as engine\n"
        "def slow(*_, **__):\n    print('begun', flush=True)\n    time.sleep(20)\n"
        "engine.copy = slow\n"
        "from vmdkit.cli.main import run\n"
        "sys.argv = ['vmdkit', 'convert', '--raw', 'in', 'out']\n"
        "sys.exit(run())\n"
    )
    (tmp_path / "in").write_bytes(b"A" * 4096)
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 2
        begun = time.monotonic()
        child.send_signal(number)
        _, told = child.communicate(timeout=10)
    assert child.returncode == code
    assert time.monotonic() - begun < 5
    assert told in ("vmdkit: interrupted\n", "vmdkit: ended by SIGTERM\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_reader_that_leaves(raw: Path) -> None:
    os.truncate(raw, 8 << 20)  # more than a pipe holds
    command = f"{sys.executable} -m vmdkit.cli.main convert --raw {raw} - | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == bytes(10) + b"141\n"
    assert done.stderr == b""


def test_standard_output_that_is_a_file(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        assert vmdkit("convert", "--raw", raw, "-", stdout=out).returncode == 0
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()


def test_a_damaged_source_leaves_nothing(vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build("stream-A", "64k:A 64k:b 64k:C")
    image.poke_entry(1, 0xFFFFFF)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = vmdkit("convert", image.path, "out")
    assert done.returncode == 1
    assert done.stderr.startswith("vmdkit: ")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_block_devices_are_written_in_place_unless_mounted(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(b"x" * (2 << 20))
    made = subprocess.run(["losetup", "-f", "--show", tmp_path / "block"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("no loop device can be had here")
    device = made.stdout.strip()
    try:
        done = vmdkit("convert", "--raw", raw, device)
        assert (done.returncode, done.stderr) == (
            1,
            f"vmdkit: {device}: it is a block device; -n writes over what it holds\n",
        )
        assert vmdkit("convert", "--raw", "-n", raw, device).returncode == 0
        assert (tmp_path / "block").read_bytes() == raw.read_bytes() + b"x" * (1 << 20)
        with open(device, "rb", opener=lambda path, flags: os.open(path, flags | os.O_EXCL)):  # as a mount holds it
            done = vmdkit("convert", "--raw", "-n", raw, device)
        assert (done.returncode, done.stderr) == (1, f"vmdkit: {device}: Device or resource busy\n")
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
