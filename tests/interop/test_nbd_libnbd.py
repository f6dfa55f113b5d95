# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""libnbd's Python module, of the system's Python: the two programs of the manual, and calls that no tool makes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import images
import vmdkit
from images import CHILDREN
from require import requires
from vmdkit.nbd import Export, Options, Server

if TYPE_CHECKING:
    from images import Image

PYTHON: Final = "/usr/bin/python3"  # where Debian's python3-libnbd is
MIXED: Final = "64k:A 64k:0 64k:- 32k:B 32k:- 128k:c 4k:D 4k:0 4k:- 1M:- 3M:E 60k:- 512:F"
OVER: Final = "4k:- 64k:G 60k:- 64k:0 40k:- 32k:0 24k:H 96k:- 12k:0 1M:- 3M:- 60k:- 512:0"

# As the manual has them, to the letter.
READS: Final = """\
import nbd
h = nbd.NBD()
h.connect_systemd_socket_activation(["vmdkit", "serve", "-t", "disk.vmdk"])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
"""
WRITES: Final = """\
import nbd
h = nbd.NBD()
h.connect_command(["vmdkit", "serve", "-w", "-s", "--exit-with-parent", "disk.vmdk"])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
h.pwrite(buf, 512)
"""


def needs_libnbd() -> None:
    requires("nbdinfo")
    if subprocess.run([PYTHON, "-c", "import nbd"], capture_output=True, check=False).returncode:
        requires("python3-libnbd")


def flat(directory: Path) -> Image:
    return images.monolithic_flat(directory, MIXED, name="disk")


def sparse(directory: Path) -> Image:
    return images.monolithic_sparse(directory, MIXED, name="disk")


def child(directory: Path) -> Image:
    base = images.monolithic_sparse(directory, MIXED, name="base")
    return CHILDREN["hosted"].build(directory, OVER, name="disk", parent=base)


DISKS: Final = {"flat": flat, "sparse": sparse, "child": child}


def program(text: str, directory: Path) -> str:
    """Run a program in a directory, with our command in the path; no server may be left behind."""
    here = Path(sys.executable).parent
    done = subprocess.run(
        [PYTHON, "-c", text], capture_output=True, text=True, timeout=60, check=False, cwd=directory,
        env={**os.environ, "PATH": f"{here}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    end = time.monotonic() + 10
    while (left := [pid for pid in os.listdir("/proc") if pid.isdigit() and _works_in(pid, directory)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.02)
    assert not left
    return done.stdout


def _works_in(pid: str, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(directory)
    except OSError:
        return False


@pytest.mark.parametrize("kind", DISKS)
def test_the_program_that_reads(kind: str, tmp_path: Path) -> None:
    needs_libnbd()
    image = DISKS[kind](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    shown = READS + f"assert buf == bytes.fromhex({image.model.pread(512, 0).hex()!r})\n"
    assert program(READS, tmp_path) == f"size = {image.size}\n"
    assert program(shown, tmp_path) == f"size = {image.size}\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", DISKS)
def test_the_program_that_writes(kind: str, tmp_path: Path) -> None:
    needs_libnbd()
    requires("qemu-img>=7")
    image = DISKS[kind](tmp_path)
    assert program(WRITES, tmp_path) == f"size = {image.size}\n"
    expected = bytearray(image.model.pread(image.size, 0))
    expected[512:1024] = expected[:512]
    (tmp_path / "expected.raw").write_bytes(expected)
    for words in (["check", "-f", "vmdk"], ["compare", "-f", "raw", "-F", "vmdk", "expected.raw"]):
        if words[0] == "compare" or kind != "flat":
            command = ["qemu-img", *words, "disk.vmdk"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    with vmdkit.open(tmp_path / "disk.vmdk") as disk:
        assert bytes(disk.pread(disk.size, 0)) == bytes(expected)


# ── what tools do not ask ────────────────────────────────────────────────────────────────────────────────────────


def against(image: Image, text: str, *, writable: bool = False) -> None:
    """Run a program with ``h``, not connected, and ``uri`` against a server of ``image``."""
    with (
        vmdkit.open(image.path, writable=writable) as disk,
        Server(Export(disk, read_only=not writable), options=Options(spin=0)) as server,
    ):
        text = f"import nbd\nimport errno\nuri = {server.uri!r}\nh = nbd.NBD()\n{text}"
        done = subprocess.run([PYTHON, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_pread_structured(tmp_path: Path) -> None:
    needs_libnbd()
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:- 64k:B 64k:-")
    against(
        image,
        """
h.connect_uri(uri)
for flags in (0, nbd.CMD_FLAG_DF):
    pieces = []
    def chunk(data, offset, status, error):
        assert error.value == 0
        pieces.append((offset, len(data), status))
    data = h.pread_structured(256 << 10, 0, chunk, flags)
    assert data == h.pread(256 << 10, 0)
    if flags:
        assert pieces == [(0, 256 << 10, nbd.READ_DATA)]
    else:
        holes = [(offset, count) for offset, count, status in pieces if status == nbd.READ_HOLE]
        assert holes == [(64 << 10, 64 << 10), (192 << 10, 64 << 10)], pieces
        assert sum(count for _, count, _ in pieces) == 256 << 10
""",
    )


def test_block_status_of_two_contexts(tmp_path: Path) -> None:
    needs_libnbd()
    image = images.chain(tmp_path, [("hosted", "64k:A 64k:A 64k:-"), ("hosted", "64k:- 64k:B 64k:-")])
    against(
        image,
        """
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.add_meta_context("x-nobody:knows")
h.connect_uri(uri)
assert h.can_meta_context("base:allocation") and h.can_meta_context("qemu:allocation-depth")
assert not h.can_meta_context("x-nobody:knows")
for flags in (0, nbd.CMD_FLAG_REQ_ONE):
    told = {}
    h.block_status(192 << 10, 0, lambda name, offset, entries, error: told.setdefault(name, entries) and 0, flags)
    K = 64 << 10
    if flags:
        assert told == {"base:allocation": [2 * K, 0], "qemu:allocation-depth": [K, 2]}, told
    else:
        assert told == {"base:allocation": [2 * K, 0, K, 3], "qemu:allocation-depth": [K, 2, K, 1, K, 0]}, told
""",
    )


def test_options_one_by_one(tmp_path: Path) -> None:
    needs_libnbd()
    against(
        images.monolithic_flat(tmp_path, "64k:A"),
        """
h.set_opt_mode(True)
h.connect_uri(uri)
listed = []
assert h.opt_list(lambda name, text: listed.append((name, text)) or 0) == 1
assert listed == [("", "")]
h.set_export_name("nothere")
for call in (h.opt_info, h.opt_go):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == "ENOENT", error
    else:
        raise SystemExit("an export that is not there")
h.set_export_name("")
contexts = []
h.add_meta_context("base:")
h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == 64 << 10
h.opt_go()
assert h.pread(16, 0) == b"A" + b"0" * 15
h.shutdown()
""",
    )


def test_abort(tmp_path: Path) -> None:
    needs_libnbd()
    text = "h.set_opt_mode(True)\nh.connect_uri(uri)\nh.opt_abort()\nassert h.aio_is_closed()\n"
    against(images.monolithic_flat(tmp_path, "64k:A"), text)


def test_attacks_without_strict_mode(tmp_path: Path) -> None:
    needs_libnbd()
    against(
        images.monolithic_flat(tmp_path, MIXED),
        """
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
def refused(number, call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errnum == number, (call, error)
    else:
        raise SystemExit("%r was not refused" % call)
    assert len(h.pread(1, 0)) == 1
refused(errno.EPERM, h.pwrite, b"x" * 512, 0)
refused(errno.EPERM, h.trim, 512, 0)
refused(errno.EPERM, h.zero, 512, 0)
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.EINVAL, h.pread, 513, size - 512)
refused(errno.EINVAL, h.pread, 512, 2**63 - 1)
refused(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_FUA)
refused(errno.EINVAL, h.pread, 512, 0, 0x8000)
refused(errno.EINVAL, h.cache, 512, size)
refused(errno.EINVAL, h.block_status, 512, 0, lambda *_: 0)
refused(errno.EINVAL, h.pread, (32 << 20) + 1, 0)
assert h.pread(0, 0) == b""
h.flush()
""",
    )


def test_attacks_on_a_writable_disk(tmp_path: Path) -> None:
    needs_libnbd()
    image = images.monolithic_sparse(tmp_path, MIXED)
    against(
        image,
        """
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
before = h.pread(size, 0)
def refused(number, call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errnum == number, (call, error)
    else:
        raise SystemExit("%r was not refused" % call)
    assert len(h.pread(1, 0)) == 1
refused(errno.ENOSPC, h.pwrite, b"x" * 1024, size - 512)
refused(errno.ENOSPC, h.pwrite, b"x", size)
refused(errno.ENOSPC, h.zero, 1024, size - 512)
refused(errno.EINVAL, h.trim, 1024, size - 512)
refused(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
refused(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_REQ_ONE)
refused(errno.EINVAL, h.pwrite, bytes((32 << 20) + 512), 0)
h.pwrite(b"", 0)
h.zero(0, 0)
h.trim(0, 0)
assert h.pread(size, 0) == before
""",
        writable=True,
    )


def test_many_commands_under_way(tmp_path: Path) -> None:
    needs_libnbd()
    image = images.monolithic_sparse(tmp_path, "8M:-")
    against(
        image,
        """
h.connect_uri(uri)
def finish():
    while h.aio_in_flight():
        h.poll(-1)
    for cookie in cookies:
        assert h.aio_command_completed(cookie)
buffers = [nbd.Buffer.from_bytearray(bytearray([65 + number % 26]) * 65536) for number in range(128)]
cookies = [h.aio_pwrite(buffer, number * 65536) for number, buffer in enumerate(buffers)]
finish()
h.flush()
reads = [(number, nbd.Buffer(65536)) for number in range(128)]
cookies = [h.aio_pread(buffer, number * 65536) for number, buffer in reads]
finish()
for number, buffer in reads:
    assert buffer.to_bytearray() == bytearray([65 + number % 26]) * 65536
h.shutdown()
""",
        writable=True,
    )
    requires("qemu-img>=7")
    subprocess.run(["qemu-img", "check", image.path], check=True, capture_output=True)
