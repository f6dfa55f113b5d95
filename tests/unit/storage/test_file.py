# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Files: what is opened, holes, files that shrink, and the ladder of fallocate."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import pytest

from vmdkit.device import HOLE_ZERO, Can, Extent, Kind, Location
from vmdkit.errors import GateError, UnsupportedError, UsageError
from vmdkit.storage import file as module
from vmdkit.storage.file import FileDevice, open_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP = 64 << 10  # a hole no file system here rounds away


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Hole, data, hole, data, hole; each STEP long."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number, letter in ((1, b"A"), (3, b"B")):
            file.seek(number * STEP)
            file.write(letter * STEP)
        file.truncate(5 * STEP)
    return path


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_said_with_its_path_and_not_made(tmp_path: Path) -> None:
    for writable in (False, True):
        with pytest.raises(FileNotFoundError) as caught:
            open_file(str(tmp_path / "none"), writable=writable)
        assert caught.value.filename == str(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(5)
@pytest.mark.parametrize("writable", [False, True])
def test_a_fifo_does_not_block(tmp_path: Path, writable: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GateError, match="it is no regular file"):
        open_file(str(tmp_path / "pipe"), writable=writable)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/"])
def test_no_characters_and_no_directories(path: str) -> None:
    with pytest.raises(GateError, match=f"{path}: it is no regular file"):
        open_file(path)


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"real")
    (tmp_path / "link").symlink_to("real")
    with open_file(str(tmp_path / "link")) as device:
        assert device.pread(4, 0) == b"real"
    with pytest.raises(GateError, match="it is a symbolic link"):
        open_file(str(tmp_path / "link"), follow=False)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        open_file(str(tmp_path / "loop"))
    assert caught.value.errno == errno.ELOOP


def test_refusals_give_the_descriptor_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(GateError):
            open_file("/dev/null")
        with pytest.raises(GateError):
            open_file(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_descriptor_is_not_inherited(sparse: Path) -> None:
    with open_file(str(sparse)) as device:
        number = device.fileno()
        assert number is not None
        assert not os.get_inheritable(number)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reads_at_every_edge(sparse: Path) -> None:
    whole = sparse.read_bytes()
    with open_file(str(sparse)) as device:
        assert device.size == len(whole)
        assert not device.writable
        for edge in range(0, 5 * STEP + 1, STEP):
            for start, end in ((edge - 3, edge), (edge, edge + 3), (edge - 3, edge + 3)):
                start, end = max(start, 0), min(end, len(whole))
                assert device.pread(end - start, start) == whole[start:end]


def test_a_file_that_has_shrunk_since_is_an_error_not_zeros(sparse: Path) -> None:
    with open_file(str(sparse)) as device:
        os.truncate(sparse, 4 * STEP + 10)
        with pytest.raises(OSError, match="the file ends at 262154; it had 327680 bytes when opened") as caught:
            device.pread(STEP, 4 * STEP)
        assert caught.value.errno == errno.EIO
        assert caught.value.filename == str(sparse)


def test_short_reads_are_completed(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, real = sparse.read_bytes(), os.preadv

    def stingy(fd: int, views: tuple[memoryview], offset: int) -> int:
        return real(fd, (views[0][:1000],), offset)

    with open_file(str(sparse)) as device:
        monkeypatch.setattr(os, "preadv", stingy)
        assert device.pread(STEP + 500, STEP - 77) == whole[STEP - 77 : 2 * STEP + 423]


def test_cache_and_flush_are_harmless(sparse: Path) -> None:
    with open_file(str(sparse)) as device:
        device.cache(device.size, 0)
        device.flush()


# ── holes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_holes_are_extents(sparse: Path) -> None:
    with open_file(str(sparse)) as device:
        assert list(device.extents()) == [
            Extent(0, STEP, HOLE_ZERO),
            Extent(STEP, STEP, 0),
            Extent(2 * STEP, STEP, HOLE_ZERO),
            Extent(3 * STEP, STEP, 0),
            Extent(4 * STEP, STEP, HOLE_ZERO),
        ]
        assert list(device.extents(10, STEP - 5)) == [Extent(STEP - 5, 5, HOLE_ZERO), Extent(STEP, 5, 0)]
        assert list(device.extents(10, 5 * STEP - 10)) == [Extent(5 * STEP - 10, 10, HOLE_ZERO)]


def test_holes_are_locations_only_while_nobody_writes_here(sparse: Path) -> None:
    with open_file(str(sparse)) as device:
        assert list(device.locate(2 * STEP, 0)) == [
            Location(0, STEP, Kind.HOLE),
            Location(STEP, STEP, Kind.DATA, device, STEP),
        ]
    with open_file(str(sparse), writable=True) as device:
        assert list(device.locate()) == [Location(0, 5 * STEP, Kind.DATA, device, 0)]
        assert len(list(device.extents())) == 5


def test_a_file_of_nothing_and_a_file_of_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    with open_file(str(path)) as device:
        assert list(device.extents()) == []
    os.truncate(path, 1 << 40)
    with open_file(str(path)) as device:
        assert list(device.extents()) == [Extent(0, 1 << 40, HOLE_ZERO)]
        assert device.pread(10, (1 << 40) - 10) == bytes(10)


def test_without_seek_data_everything_is_data(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(fd: int, offset: int, whence: int) -> int:
        asked.append(whence)
        raise OSError(errno.EINVAL, "not here")

    with open_file(str(sparse)) as device:
        monkeypatch.setattr(os, "lseek", refuse)
        for _ in range(2):
            assert list(device.extents(4 * STEP, 10)) == [Extent(10, 4 * STEP, 0)]
        assert len(asked) == 1  # it has learned


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_writes_zeroes_and_trims(sparse: Path) -> None:
    with open_file(str(sparse), writable=True) as device:
        assert device.can & (Can.WRITE | Can.TRIM | Can.FAST_ZERO | Can.FUA) == (
            Can.WRITE | Can.TRIM | Can.FAST_ZERO | Can.FUA
        )
        device.pwrite(b"x" * 10, 5 * STEP - 10, fua=True)
        device.zero(100, STEP - 50)
        device.zero(STEP, 3 * STEP, no_hole=True)
        device.trim(STEP, STEP)
    data = sparse.read_bytes()
    assert len(data) == 5 * STEP
    assert data[-10:] == b"x" * 10
    assert not any(data[: 5 * STEP - 10])


def test_short_writes_are_completed(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def stingy(fd: int, views: tuple[memoryview], offset: int) -> int:
        return real(fd, (views[0][:1000],), offset)

    with open_file(str(sparse), writable=True) as device:
        monkeypatch.setattr(os, "pwritev", stingy)
        device.pwrite(bytes(range(250)) * 20, 77)
    assert sparse.read_bytes()[77 : 77 + 5000] == bytes(range(250)) * 20


class Libc:
    """A fallocate that refuses some modes, or fails."""

    def __init__(self, device: FileDevice, refused: dict[int, int]) -> None:
        self.device, self.refused = device, refused
        self.asked: list[int] = []

    def fallocate64(self, fd: int, mode: int, offset: object, count: object) -> int:
        self.asked.append(mode)
        number = self.refused.get(mode)
        if number is None:
            os.pwrite(fd, bytes(int(count.value)), int(offset.value))  # type: ignore[attr-defined]
            return 0
        if number == errno.EINTR:
            del self.refused[mode]
        ctypes.set_errno(number)
        return -1


PUNCH, RANGE = 3, 17


@pytest.mark.parametrize(
    ("refused", "asked"),
    [
        ({}, [PUNCH]),
        ({PUNCH: errno.EINTR}, [PUNCH, PUNCH]),
        ({PUNCH: errno.EOPNOTSUPP}, [PUNCH, RANGE]),
        ({PUNCH: errno.ENOSYS, RANGE: errno.ENOTTY}, [PUNCH, RANGE]),
    ],
)
def test_the_ladder_of_zero(
    sparse: Path, monkeypatch: pytest.MonkeyPatch, refused: dict[int, int], asked: list[int]
) -> None:
    with open_file(str(sparse), writable=True) as device:
        libc = Libc(device, dict(refused))
        monkeypatch.setattr(module, "_libc", libc)
        device.zero(STEP, STEP)
        assert libc.asked == asked
        libc.asked.clear()
        device.zero(10, 3 * STEP)
        assert [mode for mode in libc.asked if mode in refused and refused[mode] != errno.EINTR] == []  # learned
    data = sparse.read_bytes()
    assert not any(data[STEP : 2 * STEP])
    assert data[3 * STEP : 3 * STEP + 11] == bytes(10) + b"B"


def test_fast_zero_where_nothing_is_fast(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_file(str(sparse), writable=True) as device:
        monkeypatch.setattr(module, "_libc", Libc(device, {PUNCH: errno.EOPNOTSUPP, RANGE: errno.EOPNOTSUPP}))
        with pytest.raises(UnsupportedError, match="cannot zero a range without writing"):
            device.zero(STEP, STEP, fast=True)
    assert sparse.read_bytes()[STEP : 2 * STEP] == b"A" * STEP


def test_no_hole_never_punches(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_file(str(sparse), writable=True) as device:
        libc = Libc(device, {RANGE: errno.EOPNOTSUPP})
        monkeypatch.setattr(module, "_libc", libc)
        device.zero(STEP, STEP, no_hole=True)
        assert libc.asked == [RANGE]
    assert not any(sparse.read_bytes()[STEP : 2 * STEP])


@pytest.mark.parametrize("verb", [FileDevice.zero, FileDevice.trim])
def test_an_error_that_is_no_refusal_is_raised(
    sparse: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[[FileDevice, int, int], None]
) -> None:
    with open_file(str(sparse), writable=True) as device:
        monkeypatch.setattr(module, "_libc", Libc(device, {PUNCH: errno.EIO}))
        with pytest.raises(OSError, match="Input/output error") as caught:
            verb(device, STEP, STEP)
        assert caught.value.filename == str(sparse)


def test_trim_that_is_refused_does_nothing(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_file(str(sparse), writable=True) as device:
        monkeypatch.setattr(module, "_libc", Libc(device, {PUNCH: errno.EOPNOTSUPP}))
        device.trim(STEP, STEP)
    assert sparse.read_bytes()[STEP : 2 * STEP] == b"A" * STEP


# ── closing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_walked_after_the_close_is_no_other_file(sparse: Path, tmp_path: Path) -> None:
    """The number of a closed descriptor is given to the next file that anybody opens."""
    (tmp_path / "other").write_bytes(b"other")
    device = open_file(str(sparse))
    number = device.fileno()
    runs, places = device.extents(), device.locate()
    device.close()
    assert device.fileno() is None
    with (tmp_path / "other").open("rb") as other:
        assert other.fileno() == number
        for walk in (runs, places):
            with pytest.raises((OSError, UsageError)):
                list(walk)


def test_a_read_that_races_with_close_reads_no_other_file(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other!!!!!")
    device = open_file(str(sparse))
    device.close()
    with (tmp_path / "other").open("rb"), pytest.raises(OSError, match="Bad file descriptor"):
        device._pread_into(memoryview(bytearray(4)), 0)


def test_an_error_of_lseek_that_is_no_refusal_is_raised(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with open_file(str(sparse)) as device:
        monkeypatch.setattr(os, "lseek", fail)
        with pytest.raises(OSError, match="Input/output error") as caught:
            list(device.extents())
        assert caught.value.filename == str(sparse)


def test_holes_that_appear_while_they_are_walked_do_no_harm(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEEK_HOLE answers the very offset if the data there have been punched out meanwhile."""
    real = os.lseek
    punched: list[int] = []

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and not punched:
            punched.append(offset)
            return offset
        return real(fd, offset, whence)

    with open_file(str(sparse)) as device:
        monkeypatch.setattr(os, "lseek", lseek)
        assert sum(run.length for run in device.extents()) == device.size
