# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A local file or block device as a Device.

Every fallback learns: the best system call is tried first, and one that the file system refuses is not tried again
on this device. Holes come from SEEK_DATA; they are reported by ``extents`` always, by ``locate`` only where the
file was opened for reading, since there an answer has to stay true while the device is open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING

from vmdkit.device import HOLE_ZERO, BlockSize, Can, Device, Kind, Location
from vmdkit.errors import GateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESERVE, KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0, 1, 2, 16  # fallocate(2), linux/falloc.h
_REFUSALS = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}
_MOST_AT_ONCE = 0x7FFFF000  # bytes; what Linux moves in one read or write
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, count: int) -> int:
    """Call fallocate(2); return 0 or the number of its error. Python's own has no mode, and writes where it cannot."""
    call = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
    while call(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(count)):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            return number
    return 0


def open_file(path: str, *, writable: bool = False, follow: bool = True, regular: bool = False) -> FileDevice:
    """Open ``path``; never creates.

    ``follow`` false refuses a symbolic link in the last place, ``regular`` true refuses block devices; FIFOs,
    sockets, directories and character devices are refused always, and without blocking on them.
    Raises OSError with the path, or GateError for a refusal.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    if not follow:
        flags |= os.O_NOFOLLOW
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise GateError("it is a symbolic link", path=path) from error
        if error.errno == errno.ENXIO:  # a FIFO or socket opened with O_NONBLOCK
            raise GateError("it is no regular file", path=path) from error
        raise
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and (regular or not stat.S_ISBLK(mode)):
            raise GateError("it is no regular file", path=path)
        return FileDevice(fd, path, writable=writable, block_device=stat.S_ISBLK(mode))
    except BaseException:
        os.close(fd)
        raise


class _Naming:
    """A context that gives the system's errors the name of the file: calls on descriptors know none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self._name


class FileDevice(Device):
    """An open file descriptor; owns and closes it."""

    def __init__(self, fd: int, path: str, *, writable: bool = False, block_device: bool = False) -> None:
        size = os.lseek(fd, 0, os.SEEK_END)
        can = Can.FLUSH | Can.EXTENTS | Can.CACHE | Can.MULTI_CONN | Can.FORK
        if writable:
            can |= Can.WRITE | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM | Can.PLACE
            can |= Can.NONE if block_device else Can.RESIZE
        super().__init__(size, name=path, can=can, block_size=BlockSize())
        self._fd = fd
        self._naming = _Naming(path)
        self._block_device = block_device
        self._seek_data = not block_device
        self._modes = {_RESERVE, _PUNCH_HOLE | KEEP_SIZE, _ZERO_RANGE | KEEP_SIZE}

    def fileno(self) -> int | None:
        """Return the descriptor; it stays ours. None once closed."""
        return self._fd if self._fd >= 0 else None

    def _pread_into(self, view: memoryview, offset: int) -> None:
        got = os.preadv(self._fd, (view,), offset)
        while got < len(view):
            more = os.preadv(self._fd, (view[got:],), offset + got)
            if not more:
                raise self._cut_off(offset + got)
            got += more

    def _pwrite(self, view: memoryview, offset: int) -> None:
        with self._naming:
            while view:
                done = os.pwritev(self._fd, (view[:_MOST_AT_ONCE],), offset)
                view, offset = view[done:], offset + done

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        """Punch, or zero the range in the file system's tables, or (never when ``fast``) write."""
        modes = [_ZERO_RANGE | KEEP_SIZE] if no_hole else [_PUNCH_HOLE | KEEP_SIZE, _ZERO_RANGE | KEEP_SIZE]
        if any(self._fallocate(mode, count, offset) for mode in modes):
            return
        if fast:
            raise UnsupportedError("the file system cannot zero a range without writing", path=self._name)
        super()._zero(count, offset, no_hole=no_hole, fast=fast)

    def _trim(self, count: int, offset: int) -> None:
        self._fallocate(_PUNCH_HOLE | KEEP_SIZE, count, offset)

    def _fallocate(self, mode: int, count: int, offset: int) -> bool:
        """Try fallocate(2); False where this file system has refused the mode, now or before."""
        if mode not in self._modes:
            return False
        number = fallocate(self._fd, mode, offset, count)
        if number in _REFUSALS:
            self._modes.discard(mode)
            return False
        if number:
            raise OSError(number, os.strerror(number), self._name)
        return True

    def _resize(self, size: int, *, reserve: bool) -> None:
        if reserve and size > self._size:
            try:
                if self._fallocate(_RESERVE, size - self._size, self._size):
                    return
            except OSError:
                os.ftruncate(self._fd, self._size)  # a part of it may have been given
                raise
        with self._naming:
            os.ftruncate(self._fd, size)

    @property
    def in_place(self) -> bool:
        """Every byte of a file has its place."""
        return self._writable

    def _flush(self) -> None:
        with self._naming:
            os.fdatasync(self._fd)

    def _cache(self, count: int, offset: int) -> None:
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_WILLNEED)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        for start, length, hole in self._data_and_holes(count, offset):
            yield start, length, HOLE_ZERO if hole else 0

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        if self.writable:
            yield Location(offset, count, Kind.DATA, self, offset)
            return
        for start, length, hole in self._data_and_holes(count, offset):
            if hole:
                yield Location(start, length, Kind.HOLE)
            else:
                yield Location(start, length, Kind.DATA, self, start)

    def _place(self, count: int, offset: int) -> Location:
        return Location(offset, count, Kind.DATA, self, offset)

    def _data_and_holes(self, count: int, offset: int) -> Iterator[tuple[int, int, bool]]:
        """Walk a range by SEEK_DATA and SEEK_HOLE: yield (offset, length, is a hole)."""
        end = offset + count
        while offset < end:
            data = self._next_data(offset, end)
            if data > offset:
                yield offset, data - offset, True
            if data >= end:
                return
            hole = min(self._seek(data, os.SEEK_HOLE, end), end)
            if hole > data:  # else it has been punched since SEEK_DATA
                yield data, hole - data, False
            offset = hole

    def _next_data(self, offset: int, end: int) -> int:
        if not self._seek_data:
            return offset
        return min(self._seek(offset, os.SEEK_DATA, offset), end)

    def _seek(self, offset: int, whence: int, refused: int) -> int:
        """Return lseek's answer; the end of the device after the last data, ``refused`` if unsupported."""
        if not self._seek_data:
            return refused
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on: a hole, or a file that was cut meanwhile
                self._still_whole()
                return self._size
            if error.errno not in _REFUSALS:
                raise OSError(error.errno, error.strerror, self._name) from error
            self._seek_data = False
            return refused

    def _still_whole(self) -> None:
        if not self._block_device:
            size = os.fstat(self._fd).st_size
            if size < self._size:
                raise self._cut_off(size)

    def _cut_off(self, end: int) -> OSError:
        return OSError(errno.EIO, f"the file ends at {end}; it had {self._size} bytes when opened", self._name)

    def _close(self) -> None:
        # The number goes to the next file that is opened: a reader that comes late must not find it here.
        fd, self._fd = self._fd, -1
        os.close(fd)
