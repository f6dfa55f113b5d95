# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit convert -O streamOptimized``, as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from stream_walk import walk

if TYPE_CHECKING:
    from pathlib import Path

STREAM = ["-O", "streamOptimized"]
LAYOUT = "64k:A 128k:- 64k:b 64k:0 64k:C 512:z"


@pytest.mark.parametrize("kind", ["hosted", "stream-A", "stream-QEMU", "split-flat", "seSparse"])
def test_from_every_kind(kind: str, vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build(kind, LAYOUT)
    done = vmdkit("convert", image.path, "out.vmdk", *STREAM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = walk((tmp_path / "out.vmdk").read_bytes())
    assert found.pread(found.size, 0) == image.model.pread(image.size, 0)
    assert list(found.grains) == [0, 3 << 16, 5 << 16, 6 << 16]
    assert 'SPARSE "out.vmdk"' in found.text
    assert vmdkit("check", "out.vmdk").returncode == 0


def test_a_chain_becomes_one_stream(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    assert vmdkit("convert", "--raw", raw, "base.vmdk", "-O", "monolithicSparse").returncode == 0
    assert vmdkit("snapshot", "base.vmdk", "child.vmdk").returncode == 0
    assert vmdkit("convert", "child.vmdk", "out.vmdk", *STREAM).returncode == 0
    found = walk((tmp_path / "out.vmdk").read_bytes())
    assert found.pread(found.size, 0) == raw.read_bytes()


@pytest.mark.parametrize(
    "words", [STREAM, ["-O", "vmdk", "-o", "subformat=streamOptimized"], ["-O", "STREAMoptimized"]]
)
def test_to_a_pipe_and_to_a_file_the_same(words: list[str], vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    told = vmdkit("convert", "--raw", raw, "-", *words, "-o", "cid=c0ffee00", text=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert vmdkit("convert", "--raw", raw, "stream.vmdk", *words, "-o", "cid=c0ffee00").returncode == 0
    assert told.stdout == (tmp_path / "stream.vmdk").read_bytes()
    found = walk(told.stdout)
    assert found.pread(found.size, 0) == raw.read_bytes()


def test_options(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    words = ["-o", "adapter=ide,hwversion=13,cid=1,uuid=000102030405060708090a0b0c0d0e0f,grain=4k"]
    assert vmdkit("convert", "--raw", raw, "out.vmdk", *STREAM, *words).returncode == 0
    found = walk((tmp_path / "out.vmdk").read_bytes())
    lines = found.lines()
    assert found.grain == 4096
    assert lines["CID"] == "00000001"
    assert lines["ddb.adapterType"] == "ide"
    assert lines["ddb.virtualHWVersion"] == "13"
    assert lines["ddb.uuid"] == "00 01 02 03 04 05 06 07-08 09 0a 0b 0c 0d 0e 0f"


def test_levels(vmdkit: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(
        b"".join(b"line %d of the log: %x\n" % (number, number * number) for number in range(1 << 15))
    )
    sizes = {}
    for words in (["--level", "0"], ["--fast"], ["--level", "1"], [], ["--level", "12"]):
        done = vmdkit("convert", "--raw", "in", "out.vmdk", *STREAM, "-f", *words)
        assert (done.returncode, done.stderr) == (0, "")
        data = (tmp_path / "out.vmdk").read_bytes()
        assert walk(data).pread(len((tmp_path / "in").read_bytes()), 0) == (tmp_path / "in").read_bytes()
        sizes[" ".join(words)] = len(data)
    assert sizes["--level 12"] < sizes[""] < sizes["--level 1"] < sizes["--level 0"]
    assert sizes[""] < sizes["--fast"] < sizes["--level 0"]


def test_verbose_and_progress(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "out.vmdk", *STREAM, "-v")
    assert done.stderr.startswith("vmdkit: out.vmdk: 128 KiB packed into ")
    assert done.stderr.endswith(", 896 KiB skipped as zero\n")
    done = vmdkit("convert", "--raw", raw, "-", *STREAM, "-v", "--progress", "json", text=False)
    lines = done.stderr.decode().splitlines()
    assert lines[-1] == "vmdkit: -: 128 KiB packed, 896 KiB skipped as zero"
    assert json.loads(lines[-2])["done"] == 1 << 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STREAM, "--level", "13"], "--level 13; from 1 (fast) to 12 (smallest) are due, or 0"),
        (
            [*STREAM, "-o", "cid=ffffffff"],
            "content ID 'ffffffff'; up to eight hexadecimal digits are due, not all 0 or F,",
        ),
        ([*STREAM, "-o", "uuid=1"], "UUID '1'; sixteen bytes in hexadecimal are due"),
        ([*STREAM, "-o", "grain=5k"], "a grain of 5120 bytes; a power of two from 4 KiB to 1 MiB is due"),
        ([*STREAM, "-o", "thin=on"], "streamOptimized has no option 'thin'; it takes adapter, hwversion, grain,"),
        ([*STREAM, "-o", "adapter=nvme"], "adapter 'nvme' is unknown;"),
        (["--fast"], "--fast and --level are for formats that deflate, not for raw"),
        (["-O", "vmfs", "--level", "3"], "--fast and --level are for formats that deflate, not for vmfs"),
        (["-o", "cid=1"], "raw has no option 'cid'; it takes none"),
    ],
)
def test_nonsense(words: list[str], message: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "-" if "cid=ffffffff" in words else "out.vmdk", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vmdkit: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


def test_fast_and_level_exclude_each_other(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "out", *STREAM, "--fast", "--level", "3")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_formats_that_need_a_file(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "-", "-O", "vmfs")
    assert (done.returncode, done.stderr) == (
        1,
        "vmdkit: standard output takes only raw, streamOptimized, tar.gz, not vmfs\n",
    )


def test_a_terminal_is_spared(raw: Path) -> None:
    main, other = pty.openpty()
    command = [sys.executable, "-m", "vmdkit.cli.main", "convert", "--raw", str(raw), "-", *STREAM]
    done = subprocess.run(command, stdout=other, stderr=subprocess.PIPE, check=False, text=True)
    os.close(other)
    os.close(main)
    assert done.returncode == 1
    assert done.stderr == "vmdkit: standard output is a terminal; redirect it, or name a file\n"


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_overwritten_untold(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out.vmdk").write_bytes(b"precious")
    done = vmdkit("convert", "--raw", raw, "out.vmdk", *STREAM)
    assert (done.returncode, done.stderr) == (1, "vmdkit: out.vmdk: it exists; -f overwrites it\n")
    assert (tmp_path / "out.vmdk").read_bytes() == b"precious"
    assert vmdkit("convert", "--raw", raw, "out.vmdk", *STREAM, "-f").returncode == 0
    walk((tmp_path / "out.vmdk").read_bytes())


@pytest.mark.parametrize("words", [[], ["-f"]])
def test_the_source_is_never_the_target(words: list[str], vmdkit: Any, raw: Path) -> None:
    before = raw.read_bytes()
    done = vmdkit("convert", "--raw", raw, raw, *STREAM, *words)
    assert (done.returncode, done.stderr) == (1, f"vmdkit: {raw}: the source is read from this very file\n")
    with raw.open("ab") as out:
        done = vmdkit("convert", "--raw", raw, "-", *STREAM, stdout=out)
    assert (done.returncode, done.stderr) == (1, "vmdkit: standard output: the source is read from this very file\n")
    assert raw.read_bytes() == before


def test_a_damaged_source_leaves_nothing(vmdkit: Any, build: Any, tmp_path: Path) -> None:
    image = build("stream-A", "64k:A 1M:b 64k:C 1M:z 64k:D")
    image.poke_entry(20, 0xFFFFFF)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = vmdkit("convert", image.path, "out.vmdk", *STREAM)
    assert done.returncode == 1
    assert done.stderr.startswith("vmdkit: ")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    piped = vmdkit("convert", image.path, "-", *STREAM, text=False)
    assert piped.returncode == 1
    with pytest.raises(AssertionError):
        walk(piped.stdout)


def test_a_file_size_limit_is_told_and_leaves_nothing(vmdkit: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(1 << 20))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = vmdkit("convert", "--raw", "in", "out.vmdk", *STREAM, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (1, "vmdkit: out.vmdk: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_full_device_is_told(vmdkit: Any, raw: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = vmdkit("convert", "--raw", raw, "-", *STREAM, stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(8 << 20))
    verb = f"{sys.executable} -m vmdkit.cli.main convert --raw in - -O streamOptimized"
    command = f"{verb} | head -c 4; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == b"KDMV141\n"
    assert done.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: int, tmp_path: Path) -> None:
    """The pipe is full and nobody reads; or a file is on its way: either way it ends soon and leaves nothing."""
    (tmp_path / "in").write_bytes(os.urandom(1 << 20) * 16)
    command = [sys.executable, "-m", "vmdkit.cli.main", "convert", "--raw", "in", "-", *STREAM]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(512)[:4] == b"KDMV"
        begun = time.monotonic()
        child.send_signal(number)
        assert child.stderr is not None
        child.stdout.close()
        told = child.stderr.read().decode()
        code = child.wait(timeout=20)
    assert time.monotonic() - begun < 15
    assert code in (128 + number, 141)
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time, vmdkit.vmdk.stream_writer as writer\n"
        "real = writer.StreamWriter.put\n"
        "def slow(self, packed):\n    real(self, packed)\n    print('begun', flush=True)\n    time.sleep(20)\n"
        "writer.StreamWriter.put = slow\n"
        "from vmdkit.cli.main import run\n"
        "sys.argv = ['vmdkit', 'convert', '--raw', 'in', 'out.vmdk', '-O', 'streamOptimized']\n"
        "sys.exit(run())\n"
    )
    (tmp_path / "in").write_bytes(b"A" * (4 << 20))
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=10)
    assert (child.returncode, told) == (130, "vmdkit: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
