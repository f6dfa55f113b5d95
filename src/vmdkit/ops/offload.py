# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Let the kernel move bytes between two descriptors: the best call first, and one that was refused never again."""

from __future__ import annotations

import errno
import fcntl
import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING

from vmdkit.kernels import ZEROS
from vmdkit.storage.file import KEEP_SIZE, fallocate
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 16 * MIB  # bytes moved by one call, so that progress moves and a signal is noticed
_WORTH_RESERVING = MIB  # bytes; the file system gives them at once, and is a quarter faster than bit by bit (measured)
_PIPE = MIB  # bytes that a pipe holds; the most an unprivileged process may ask for
# What "not between these two" looks like: other file systems, swap files, sealed or immutable targets, sockets, old
# kernels, seccomp filters. Anything else (ENOSPC, EIO, EFBIG, EDQUOT) is a fault of the copy itself.
_REFUSALS = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
    errno.EOVERFLOW,
    errno.ENOTSOCK,
    errno.EISDIR,
}


class Offload:
    """Move ranges between any two files; used by one thread, since sendfile moves the file's own position."""

    def __init__(self) -> None:
        known = (("copy_file_range", _range), ("sendfile", _sendfile))
        self._all = [call for name, call in known if hasattr(os, name)]
        self._calls: dict[tuple[int, int], list[Callable[[int, int, int, int, int], int]]] = {}
        self._hopeless: set[int] = set()
        self._reserves = True

    def worth(self, source: int) -> bool:
        """Tell whether moving from ``source`` has not failed so far."""
        return bool(self._all) and source not in self._hopeless

    def move(self, source: int, at: int, count: int, target: int, offset: int) -> int:
        """Move up to ``count`` bytes from ``source[at:]`` to ``target[offset:]``; return how many, 0: read them.

        Raises OSError where the copy itself fails, as for a full disk.
        """
        calls = self._calls.get((source, target))
        if calls is None:
            calls = self._calls[source, target] = list(self._all)
        count = min(count, STEP)
        if calls and count >= _WORTH_RESERVING and self._reserves:
            self._reserves = not fallocate(target, KEEP_SIZE, offset, count)
        while calls:
            try:
                moved = calls[0](source, at, count, target, offset)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                moved = 0
            if moved:
                return moved
            del calls[0]  # 0 is what some kernels answer where they cannot; a true end of file is found by reading
        self._hopeless.add(source)
        return 0


def _range(source: int, at: int, count: int, target: int, offset: int) -> int:
    return os.copy_file_range(source, target, count, at, offset)


def _sendfile(source: int, at: int, count: int, target: int, offset: int) -> int:
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, at, count)


class Pipe:
    """Write in order to a pipe, socket or file; patient with descriptors that do not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._splices = hasattr(os, "sendfile")
        with suppress(OSError, AttributeError):  # no pipe, or no Linux: what it is will do
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)

    def send(self, source: int, at: int, count: int) -> int:
        """Move up to ``count`` bytes from the file ``source``; return how many, 0 where they must be read."""
        while self._splices:
            try:
                moved = os.sendfile(self._fd, source, at, min(count, STEP))
            except InterruptedError:
                continue
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                moved = 0
            if moved:
                return moved
            self._splices = False
        return 0

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait()

    def zeros(self, count: int) -> None:
        """Write ``count`` zero bytes from one shared buffer."""
        zeros = memoryview(ZEROS)
        while count:
            step = min(count, len(zeros))
            self.write(zeros[:step])
            count -= step

    def _wait(self) -> None:
        select.select((), (self._fd,), ())
