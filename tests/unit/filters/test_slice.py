# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The window: what it passes through; reading is the conformance suite's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
import ovas
import vmdkit
from vmdkit.device import Can, Kind
from vmdkit.errors import OutOfRangeError, ReadOnlyError, VmdkitError
from vmdkit.filters.slice import SliceDevice
from vmdkit.ops.copy import copy
from vmdkit.ops.plan import plan
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.storage.target import new_file

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device


@pytest.fixture
def file(tmp_path: Path) -> Device:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 512)
    return open_file(str(path))


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1), (0, 101), (101, 0), (100, 1), (1 << 70, 1)])
def test_a_window_lies_inside(start: int, length: int) -> None:
    with pytest.raises(OutOfRangeError):
        SliceDevice(MemoryDevice(100), start, length)


def test_to_the_end_by_default() -> None:
    with SliceDevice(MemoryDevice(b"0123456789"), 4) as window:
        assert window.pread(window.size, 0) == b"456789"


def test_the_kernel_finds_the_bytes(file: Device) -> None:
    with SliceDevice(file, 1000, 5000) as window:
        (run,) = window.locate(100, 50)
        assert (run.offset, run.length, run.kind, run.storage, run.at) == (50, 100, Kind.DATA, file, 1050)
        (segment,) = plan(window)
        assert (segment.fd, segment.at, segment.length) == (file.fileno(), 1000, 5000)
        target = MemoryDevice(5000)
        copy(window, target)
        assert target.pread(5000, 0) == file.pread(5000, 1000)


def test_the_kernel_copies_out_of_a_disk_inside_an_archive(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:- 128k:b", name="disk")
    path = ovas.ova(tmp_path / "box.ova", ovas.Ovf([ovas.Part("disk.vmdk", image.path.read_bytes(), image.size)]))
    with vmdkit.open(path) as disk:
        data = path.read_bytes()
        segments = [segment for segment in plan(disk) if not segment.zero]
        assert [(segment.offset, segment.length) for segment in segments] == [(0, 64 << 10), (128 << 10, 128 << 10)]
        for segment in segments:
            assert segment.fd >= 0
            wanted = image.model.pread(segment.length, segment.offset)
            assert data[segment.at : segment.at + segment.length] == wanted
        with new_file(str(tmp_path / "raw"), disk.size) as target:
            tally = copy(disk, target)
    assert tally.moved == 192 << 10
    assert (tmp_path / "raw").read_bytes() == image.model.pread(image.size, 0)


def test_a_descriptor_only_where_offsets_agree(file: Device) -> None:
    with SliceDevice(file, 0, 100, owned=False) as window:
        assert window.fileno() == file.fileno()
    with SliceDevice(file, 1, 100) as window:
        assert window.fileno() is None


@pytest.mark.parametrize("start", [0, 1, 1000])
def test_copying_sees_whether_the_file_changes(tmp_path: Path, start: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 9000)
    with SliceDevice(open_file(str(path)), start, 5000) as window:
        target = MemoryDevice(5000)
        copy(window, target)
        assert target.pread(5000, 0) == b"x" * 5000

        def grow(_: int) -> None:
            path.write_bytes(b"y" * 9001)

        with pytest.raises(VmdkitError, match="changed while it was read"):
            copy(window, target, progress=grow)


def test_writing_passes_through_and_stays_inside() -> None:
    memory = MemoryDevice(b"." * 20)
    with SliceDevice(memory, 5, 10, owned=False) as window:
        window.pwrite(b"ab", 0)
        window.pwrite(b"yz", 8)
        window.zero(1, 4)
        window.trim(1, 5)
        window.flush()
        with pytest.raises(OutOfRangeError):
            window.pwrite(b"abc", 8)
        assert Can.RESIZE not in window.can
    assert memory.pread(20, 0)[:9] == b".....ab.."
    assert memory.pread(5, 13) == b"yz..."


def test_a_window_for_reading_of_what_is_writable() -> None:
    with SliceDevice(MemoryDevice(10), 0, 5, writable=False) as window, pytest.raises(ReadOnlyError):
        window.pwrite(b"a", 0)


@pytest.mark.parametrize("owned", [True, False])
def test_closing(file: Device, *, owned: bool) -> None:
    SliceDevice(file, 0, 1, owned=owned).close()
    assert file.closed is owned
