# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import vmdkit as library

MIB = 1 << 20


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.raw"
    path.write_bytes(random.Random(5).randbytes(6 * MIB) + bytes(MIB) + b"end" * 1000)
    return path


def test_into_a_vmdk(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    library.create(str(tmp_path / "disk.vmdk"), 2 * MIB)
    with library.open(str(tmp_path / "disk.vmdk"), writable=True) as disk:
        disk.pwrite(b"x" * 2 * MIB, 0)
    done = vmdkit("copy", "--raw-source", raw, "disk.vmdk", "-v")
    assert (done.returncode, done.stderr) == (0, "vmdkit: disk.vmdk: 68 KiB written, 956 KiB skipped as zero\n")
    with library.open(str(tmp_path / "disk.vmdk")) as disk:
        assert disk.pread(2 * MIB, 0) == raw.read_bytes() + b"x" * MIB


@pytest.mark.parametrize("kind", ["monolithicFlat", "vmfsSparse"])
def test_into_any_vmdk(kind: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    library.create(str(tmp_path / "disk.vmdk"), MIB, subformat=kind)
    assert vmdkit("copy", "--raw-source", "--destination-is-zero", raw, "disk.vmdk").returncode == 0
    assert vmdkit("compare", "--raw-a", raw, "disk.vmdk").returncode == 0


def test_into_a_raw_file(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * (MIB + 5))
    done = vmdkit("copy", "--raw", "--flush", raw, "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out").read_bytes() == raw.read_bytes() + b"xxxxx"
    assert (tmp_path / "out").stat().st_blocks * 512 < 128 << 10
    assert vmdkit("copy", "--raw", "--allocated", raw, "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == raw.read_bytes() + b"xxxxx"
    assert (tmp_path / "out").stat().st_blocks * 512 >= MIB


def test_what_cannot_be(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"precious" * 10)
    for words, message in (
        (("--raw", raw, "small"), "small: it holds 80 bytes, 1048576 are needed"),
        (("--raw", raw, "none"), "none: there is none to write into; 'vmdkit convert' makes new disks"),
        (("--raw", "none", "small"), "none: No such file or directory"),
        (("--raw", raw, raw), f"{raw}: the source is read from this very file"),
        (("-", "-"), "from standard input to standard output there is nothing to do"),
        (("--raw", "--resume", raw, "-"), "a pipe cannot be resumed"),
        (("--raw", "--journal", "x", raw, "small"), "--journal and --checkpoint say how to --resume"),
        (("--raw", "--allocated", "-S", "4k", raw, "small"), "--allocated leaves no holes, -S makes them"),
        (
            ("--raw", "--rate-limit", "fast", raw, "small"),
            "'fast' is no size; write for example 1048576, 64k, 10G or 1.5T",
        ),
    ):
        done = vmdkit("copy", *words)
        assert (done.returncode, done.stderr) == (1, f"vmdkit: {message}\n")
    assert small.read_bytes() == b"precious" * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "small"]


def test_from_and_to_a_pipe(vmdkit: Any, big: Path, tmp_path: Path) -> None:
    content = big.read_bytes()
    (tmp_path / "out").write_bytes(b"x" * (len(content) + 10))
    done = vmdkit("copy", "-", "out", "--raw", input=content, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == content + b"x" * 10
    done = vmdkit("copy", "--raw", big, "-", text=False)
    assert (done.returncode, done.stdout) == (0, content)
    done = vmdkit("copy", "-", "out", "--raw", input=content + b"y" * 11, text=False)
    assert (done.returncode, done.stderr) == (1, b"vmdkit: out: more bytes come than the 7343042 that it holds\n")


def test_a_rate_limit(vmdkit: Any, big: Path, tmp_path: Path) -> None:
    os.truncate(tmp_path / "big.raw", 2 * MIB)
    (tmp_path / "out").write_bytes(bytes(2 * MIB))
    begun = time.monotonic()
    assert vmdkit("copy", "--raw", "--rate-limit", "2M/s", big, "out").returncode == 0
    assert time.monotonic() - begun > 0.7
    assert (tmp_path / "out").read_bytes() == big.read_bytes()


def slow_copy(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    words = ["--raw", "--resume", "--checkpoint", "0.1", "--rate-limit", "4M", *more, "big.raw", "out"]
    command = [sys.executable, "-m", "vmdkit.cli.main", "copy", *words]
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


def wait_for(journal: Path, least: int = 1) -> int:
    """Wait until the journal says that so many bytes are done, and return how many are."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if (done := json.loads(journal.read_text())["done"]) >= least:
                return int(done)
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError("nothing was noted")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_resumes(number: int, vmdkit: Any, big: Path, tmp_path: Path) -> None:
    journal, out = tmp_path / "out.vmdkit-resume", tmp_path / "out"
    out.write_bytes(b"x" * (8 * MIB))
    with slow_copy(tmp_path) as child:
        done = wait_for(journal, 3 * MIB)
        child.send_signal(number)
        _, told = child.communicate(timeout=20)
    assert child.returncode != 0
    if number != signal.SIGKILL:
        assert told.startswith("vmdkit: out.vmdkit-resume says how far it came; the same command goes on from there\n")
    content = big.read_bytes()
    assert out.read_bytes()[:done] == content[:done]
    assert out.read_bytes()[: len(content)] != content
    mark = 3 * MIB // 2
    with out.open("r+b") as file:  # what is done must not be done again: it is looked at, but only at its ends
        file.seek(mark)
        file.write(b"mark")
    again = vmdkit("copy", "--raw", "--resume", big, out)
    assert again.returncode == 0, again.stderr
    found = out.read_bytes()
    assert found[: len(content)] == content[:mark] + b"mark" + content[mark + 4 :]
    assert found[len(content) :] == b"x" * (8 * MIB - len(content))
    assert not journal.exists()


def test_a_source_that_changed_meanwhile(vmdkit: Any, big: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(bytes(8 * MIB))
    with slow_copy(tmp_path, "--journal", "my.journal") as child:
        wait_for(tmp_path / "my.journal")
        child.kill()
    with big.open("r+b") as file:
        file.write(b"changed")
    done = vmdkit("copy", "--raw", "--resume", "--journal", "my.journal", "big.raw", "out")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "vmdkit: my.journal: the source has changed since the copy was begun (files); remove "
    )


def test_devices_are_resumed_from_here(tmp_path: Path) -> None:
    """What is no regular file has no place beside it for a journal."""
    from argparse import Namespace

    from vmdkit.cli.copy import journal_path

    name = journal_path(Namespace(journal=None, target="nbd://host/disk"))
    assert name.startswith("vmdkit-copy-")
    assert Path(name).name == name
    assert name != journal_path(Namespace(journal=None, target="nbd://host/other"))


def test_block_devices(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(b"x" * (2 * MIB))
    made = subprocess.run(["losetup", "-f", "--show", tmp_path / "block"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("no loop device can be had here")
    device = made.stdout.strip()
    try:
        assert vmdkit("copy", "--raw-source", "--resume", raw, device).returncode == 0
        assert (tmp_path / "block").read_bytes() == raw.read_bytes() + b"x" * MIB
        (tmp_path / "huge").write_bytes(bytes(3 * MIB))
        done = vmdkit("copy", "--raw", "huge", device)
        assert (done.returncode, done.stderr) == (1, f"vmdkit: {device}: it holds 2097152 bytes, 3145728 are needed\n")
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
