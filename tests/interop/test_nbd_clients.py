# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Other people's NBD clients read, write, map and list what ``vmdkit serve`` exports."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from require import requires

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 24 * MIB
SERVE = [sys.executable, "-m", "vmdkit.cli.main", "serve"]


def run(*command: str, status: int = 0, timeout: float = 60) -> str:
    """Run a peer; return its output. Nothing it says may come from a traceback of ours."""
    told = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert told.returncode == status, told.stderr
    assert "Traceback" not in told.stderr
    return told.stdout


@contextmanager
def serving(tmp_path: Path, *arguments: str) -> Iterator[str]:
    """Run ``vmdkit serve`` on a socket in ``tmp_path`` and yield the socket; it must end cleanly and silently."""
    path = tmp_path / "nbd.sock"
    process = subprocess.Popen([*SERVE, "-t", "-U", str(path), *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield str(path)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert not path.exists()


def uri(path: str, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={path}"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with data, holes, and data again."""
    dice = random.Random(11)
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in (0, 3 * MIB, 9 * MIB + 65536, SIZE - 65536):
            file.seek(at)
            file.write(dice.randbytes(min(2 * MIB, SIZE - at)))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty disk to write to."""
    path = tmp_path / "target.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def test_nbdinfo(tmp_path: Path, raw: Path) -> None:
    requires("nbdinfo")
    with serving(tmp_path, "--raw", "-x", "the disk", "-D", "what it is", str(raw)) as path:
        (export,) = json.loads(run("nbdinfo", "--json", uri(path, "the%20disk")))["exports"]
        assert export["export-size"] == SIZE
        assert export["contexts"] == ["base:allocation"]
        assert export["is_read_only"]
        assert export["can_multi_conn"]
        assert run("nbdinfo", "--size", uri(path)).strip() == str(SIZE)
        (listed,) = json.loads(run("nbdinfo", "--list", "--json", uri(path)))["exports"]
        assert (listed["export-name"], listed["description"]) == ("the disk", "what it is")


def test_maps_agree(tmp_path: Path, raw: Path) -> None:
    requires("nbdinfo", "qemu-img")
    with serving(tmp_path, "--raw", str(raw)) as path:
        ours = json.loads(run("nbdinfo", "--map", "--json", uri(path)))
        theirs = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri(path)))
        direct = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", str(raw)))
    found = [(each["offset"], each["length"], each["type"] == 3) for each in ours]
    assert found == [(each["start"], each["length"], each["zero"]) for each in theirs]
    assert found == [(each["start"], each["length"], not each["data"]) for each in direct]
    assert any(hole for _, _, hole in found)


@pytest.mark.parametrize("options", [[], ["--no-extents"], ["--connections=1"], ["--connections=4", "--requests=3"]])
def test_nbdcopy_out(tmp_path: Path, raw: Path, options: list[str]) -> None:
    requires("nbdcopy")
    with serving(tmp_path, "--raw", str(raw)) as path:
        run("nbdcopy", *options, uri(path), str(tmp_path / "copy"))
    run("cmp", str(raw), str(tmp_path / "copy"))


@pytest.mark.parametrize("options", [[], ["--connections=1"], ["--connections=4", "--flush"], ["--allocated"]])
def test_nbdcopy_in(tmp_path: Path, raw: Path, target: Path, options: list[str]) -> None:
    requires("nbdcopy")
    with serving(tmp_path, "--raw", "-w", str(target)) as path:
        run("nbdcopy", *options, str(raw), uri(path))
    run("cmp", str(raw), str(target))


def test_qemu_img(tmp_path: Path, raw: Path, target: Path) -> None:
    requires("qemu-img")
    with serving(tmp_path, "--raw", str(raw)) as path:
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(raw), uri(path))
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(path), str(tmp_path / "copy.qcow2"))
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(tmp_path / "copy.qcow2"))
    with serving(tmp_path, "--raw", "-w", str(target)) as path:
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(raw), uri(path))
    run("cmp", str(raw), str(target))


def test_qemu_io_writes(tmp_path: Path, target: Path) -> None:
    requires("qemu-io")
    words = ["write -P 7 0 1M", "write -f -P 8 65000 70000", "write -z 512k 100k", "discard 2M 1M", "flush"]
    words += ["read -P 7 0 65000", "read -P 8 65000 70000", "read -P 0 512k 100k", "read -P 7 612k 400k"]
    with serving(tmp_path, "--raw", "-w", str(target)) as path:
        told = run("qemu-io", "-f", "raw", *(part for word in words for part in ("-c", word)), uri(path))
    assert "verification failed" not in told
    content = target.read_bytes()
    expected = bytearray(b"\7" * MIB)
    expected[65000:135000] = b"\10" * 70000
    expected[524288 : 524288 + 102400] = bytes(102400)
    assert content[:MIB] == expected
    assert content[2 * MIB : 3 * MIB] == bytes(MIB)


def test_qemu_nbd_lists(tmp_path: Path, raw: Path, target: Path) -> None:
    requires("qemu-nbd")
    with serving(tmp_path, "--raw", "-x", "a", "-x", "b", str(raw), str(target)) as path:
        told = run("qemu-nbd", "-L", "-k", path)
    assert "exports available: 2" in told
    assert "export: 'a'" in told
    assert "base:allocation" in told


def test_nbdkit_in_front(tmp_path: Path, raw: Path) -> None:
    requires("nbdkit", "nbdcopy")
    with serving(tmp_path, "--raw", str(raw)) as path:
        copy = tmp_path / "copy"
        run("nbdkit", "-U", "-", "nbd", uri(path), "--run", f'nbdcopy "$uri" {copy}')
    run("cmp", str(raw), str(copy))


def test_tcp(tmp_path: Path, raw: Path) -> None:
    requires("nbdcopy")
    copy = tmp_path / "copy"
    run(*SERVE, "--raw", "-p", "0", str(raw), "--run", f'nbdcopy "$uri" {copy}')
    run("cmp", str(raw), str(copy))


# ── libnbd's two ways to start a server ──────────────────────────────────────────────────────────────────────────

ACTIVATION = """
import nbd
h = nbd.NBD()
h.connect_systemd_socket_activation([{python!r}, "-m", "vmdkit.cli.main", "serve", "-t", "--raw", {disk!r}])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
"""
COMMAND = """
import nbd
h = nbd.NBD()
h.connect_command([{python!r}, "-m", "vmdkit.cli.main", "serve", "-w", "-s", "--exit-with-parent", "--raw", {disk!r}])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
h.pwrite(buf, 512)
"""


@pytest.mark.parametrize("program", [ACTIVATION, COMMAND])
def test_libnbd(raw: Path, program: str) -> None:
    requires("nbdinfo")
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True, check=False).returncode:
        requires("python3-libnbd")
    told = run("/usr/bin/python3", "-c", program.format(python=sys.executable, disk=str(raw)))
    assert told == f"size = {SIZE}\n"
    if program is COMMAND:
        content = raw.read_bytes()[:1024]
        assert content[:512] == content[512:]
        deadline = time.monotonic() + 5
        while _users(raw) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not _users(raw)


def _users(path: Path) -> list[str]:
    """Return the processes that have a file open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if str(path) in links:
            found.append(pid)
    return found
