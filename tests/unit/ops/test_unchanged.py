# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from vmdkit.errors import VmdkitError
from vmdkit.filters.fault import FaultDevice
from vmdkit.filters.slice import SliceDevice
from vmdkit.ops.compare import compare
from vmdkit.ops.copy import CopyOptions, copy, stream
from vmdkit.ops.hash import hash_device, hash_extents
from vmdkit.ops.tree_hash import tree_hash
from vmdkit.ops.unchanged import unchanged
from vmdkit.storage.file import FileDevice, open_file
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device

LAYOUT = "64k:A 64k:- 64k:b"


def later(path: Path) -> None:
    """Write to a file what it holds, at a time that differs whatever clock the file system has."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)
    now = time.time_ns() + 10**9
    os.utime(path, ns=(now, now))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return images.monolithic_sparse(tmp_path, LAYOUT).path


def test_nothing_is_said_where_nothing_has_changed(path: Path) -> None:
    with vmdkit.open(path) as disk, unchanged(disk):
        disk.pread(disk.size, 0)
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # reading it, as others may


@pytest.mark.parametrize("start", [0, 4096])
def test_a_window_into_a_file(start: int, path: Path) -> None:
    with SliceDevice(open_file(str(path)), start, 4096) as window:
        with unchanged(window):
            window.pread(4096, 0)
        with pytest.raises(VmdkitError, match="it was written to while it was read"), unchanged(window):
            later(path)


def test_a_file_that_was_written_to(path: Path) -> None:
    with (
        vmdkit.open(path) as disk,
        pytest.raises(VmdkitError, match=f"{path}: it was written to while it was read; what was read may be half"),
        unchanged(disk),
    ):
        later(path)


@pytest.mark.parametrize("step", [-512, 512])
def test_a_file_whose_size_has_changed(step: int, path: Path) -> None:
    size = path.stat().st_size
    with (
        vmdkit.open(path) as disk,
        pytest.raises(VmdkitError, match=f"it changed while it was read, from {size} to {size + step} bytes"),
        unchanged(disk),
    ):
        os.truncate(path, size + step)


def test_a_size_that_has_changed_since_opening(path: Path) -> None:
    size = path.stat().st_size
    with vmdkit.open(path) as disk:
        os.truncate(path, size + 512)
        with pytest.raises(VmdkitError, match=f"from {size} to {size + 512} bytes"), unchanged(disk):
            pass


def test_a_parent_counts_and_so_does_what_stands_behind_a_filter(tmp_path: Path) -> None:
    parent = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    base, child = parent.path, images.monolithic_sparse(tmp_path, LAYOUT, name="child", parent=parent).path
    with (
        vmdkit.open(child) as disk,
        pytest.raises(VmdkitError, match=f"{base}: it was written to"),
        unchanged(FaultDevice(disk, [])),
    ):
        later(base)


def _fail() -> None:
    raise ZeroDivisionError


def _touch_and_fail(path: Path) -> None:
    later(path)
    _fail()


def test_an_error_of_the_block_is_raised_and_told_of_the_change(path: Path) -> None:
    with vmdkit.open(path) as disk, pytest.raises(ZeroDivisionError) as caught, unchanged(disk):
        _touch_and_fail(path)
    assert [note.split(";")[0] for note in caught.value.__notes__] == [f"{path}: it was written to while it was read"]
    with vmdkit.open(path) as disk, pytest.raises(ZeroDivisionError) as caught, unchanged(disk):
        _fail()
    assert not hasattr(caught.value, "__notes__")


def test_what_has_no_file_or_is_closed_meanwhile_is_not_looked_at(path: Path) -> None:
    with unchanged(MemoryDevice(b"abc")):
        pass
    disk = vmdkit.open(path)
    with unchanged(disk):
        disk.close()
        later(path)


def _hash_extents(device: Device) -> None:
    for _ in hash_extents(device):
        pass


PROGRAMS: dict[str, Callable[[Device], object]] = {
    "copy": lambda device: copy(device, MemoryDevice(device.size), CopyOptions(scan=True)),
    "hash": hash_device,
    "tree": tree_hash,
    "extents": _hash_extents,
    "compare": lambda device: compare(device, MemoryDevice(bytes(device.size))),
    "compare, second": lambda device: compare(MemoryDevice(bytes(device.size)), device),
}


class Touched(FileDevice):
    """A file that somebody writes to as soon as it is read."""

    def _pread_into(self, view: memoryview, offset: int) -> None:
        super()._pread_into(view, offset)
        later(Path(self.name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_that_reads_a_whole_disk_notices(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with open_file(str(path)) as sound:
        PROGRAMS[name](sound)
    device = Touched(os.open(path, os.O_RDONLY), str(path))
    with device, pytest.raises(VmdkitError, match="it was written to while it was read"):
        PROGRAMS[name](device)


def test_a_sink_is_not_finished_when_the_source_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    finished: list[bool] = []

    class Hole:
        granularity = 1

        def pack(self, offset: int, view: memoryview) -> int:
            later(path)
            return offset

        def put(self, packed: int) -> None:
            pass

        def zeros(self, offset: int, count: int) -> None:
            pass

        def finish(self) -> None:
            finished.append(True)

    with open_file(str(path)) as device, pytest.raises(VmdkitError, match="it was written to"):
        stream(device, Hole())
    assert not finished
