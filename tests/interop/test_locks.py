# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""qemu refuses what we write, and we refuse what qemu has open."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from require import requires
from vmdkit.vmdk import locks
from vmdkit.vmdk.locks import LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPES = {
    "monolithicSparse": lambda path: images.monolithic_sparse(path, "64k:A 64k:-"),
    "monolithicFlat": lambda path: images.monolithic_flat(path, "64k:A 64k:-"),
    "twoGbMaxExtentSparse": lambda path: images.split_sparse(path, "64k:A 64k:-", split=64 << 10),
    "vmfsSparse": lambda path: images.vmfs_sparse(path, "64k:A 64k:-"),
}


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    requires("qemu-img>=7", "qemu-io")
    monkeypatch.setattr(locks, "WAIT", 0.1)


@contextmanager
def qemu(path: Path, *options: str) -> Iterator[int]:
    """Have a qemu process hold a disk open; give its number."""
    command = ["qemu-io", "-f", "vmdk", *options, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")  # answered once the disk is open
        process.stdin.flush()
        said = ""
        limit = time.monotonic() + 20
        while "KiB" not in said and time.monotonic() < limit:
            said += process.stdout.read(1)
        yield process.pid
        process.stdin.close()
        process.wait(20)


def told(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("shape", SHAPES)
def test_qemu_refuses_what_we_write(shape: str, tmp_path: Path) -> None:
    path = str(SHAPES[shape](tmp_path).path)
    with vmdkit.open(path, writable=True):
        for command in (("qemu-io", "-f", "vmdk", "-c", "write 0 512", path), ("qemu-img", "info", path)):
            done = told(*command)
            assert done.returncode == 1
            assert "lock" in done.stderr
        assert told("qemu-img", "info", "-U", path).returncode == 0  # who insists may read
    assert told("qemu-img", "info", path).returncode == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [(), ("-r",)])
def test_we_refuse_what_qemu_has_open(shape: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = SHAPES[shape](tmp_path).path
    before = sorted(file.name for file in tmp_path.iterdir())
    with qemu(path, *options) as pid:
        with pytest.raises(LockedError) as caught:
            vmdkit.open(path, writable=True)
        assert f"qemu-io (process {pid}) on this machine" in str(caught.value)
        with vmdkit.open(path) as disk:
            said = " ".join(str(doubt) for doubt in disk.doubts)  # type: ignore[attr-defined]
            assert (f"it is being written by qemu-io (process {pid})" in said) == (not options)
    vmdkit.open(path, writable=True).close()
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_a_parent_of_what_we_write_is_read_only_to_qemu(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, "64k:A 64k:B", name="base")
    child = images.monolithic_sparse(tmp_path, "64k:- 64k:-", name="child", parent=base)
    with vmdkit.open(child.path, writable=True):
        assert told("qemu-img", "info", str(base.path)).returncode == 0
        assert told("qemu-io", "-f", "vmdk", "-c", "write 0 512", str(base.path)).returncode == 1
    with qemu(base.path, "-r"):
        vmdkit.open(child.path, writable=True).close()
    with qemu(base.path), pytest.raises(LockedError):
        vmdkit.open(child.path, writable=True)
