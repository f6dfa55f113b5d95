# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The parts that a disk is made of side by side, and the two that need no tables: raw bytes, and zeros."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Held(NamedTuple):
    """A run of a part, in bytes: ``zero``, or ``absent`` and the parent's, or data."""

    offset: int
    length: int
    zero: bool = False
    absent: bool = False


class File:
    """A file opened for reading once more; ``size`` in bytes."""

    def __init__(self, path: str, shown: str) -> None:
        self.path = shown
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            self.close()
            raise FormatError("it is no file", path=shown)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read_into(self, view: memoryview, at: int) -> None:
        """Fill ``view`` from ``at``; raises FormatError where the file ends before."""
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], at + done)
            if not got:
                raise FormatError("the file ends here", path=self.path, offset=at + done)
            done += got

    def read(self, count: int, at: int) -> bytes:
        """Return ``count`` bytes from ``at``."""
        if not 0 <= at <= at + count <= self.size:
            raise FormatError(f"{count} bytes are due here, and the file has {self.size}", path=self.path, offset=at)
        buf = bytearray(count)
        self.read_into(memoryview(buf), at)
        return bytes(buf)

    def data(self, count: int, at: int) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, length)`` of what is no hole of the file in a range."""
        end = at + count
        while at < end:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: nothing but holes
            stop = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            if start < end:
                yield start, stop - start
            at = max(start, stop)

    def close(self) -> None:
        """Give it back."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Part(ABC):
    """``length`` bytes of a disk."""

    def __init__(self, length: int) -> None:
        self.length = length

    @abstractmethod
    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with what is data here; called for one run of ``held``, or less."""

    @abstractmethod
    def held(self, count: int, offset: int) -> Iterator[Held]:
        """Yield what a range holds, ascending and contiguous."""


class Flat(Part):
    """The bytes of a file from ``start`` on."""

    def __init__(self, length: int, file: File, start: int = 0) -> None:
        super().__init__(length)
        if file.size < start + length:
            raise FormatError(f"it has {file.size} bytes, {start + length} are due", path=file.path, offset=file.size)
        self._file = file
        self._start = start

    def read(self, view: memoryview, offset: int) -> None:
        """Read from the file."""
        self._file.read_into(view, self._start + offset)

    def held(self, count: int, offset: int) -> Iterator[Held]:
        """Ask the file for its holes."""
        at = offset
        for start, length in self._file.data(count, self._start + offset):
            if start - self._start > at:
                yield Held(at, start - self._start - at, zero=True)
            yield Held(start - self._start, length)
            at = start - self._start + length
        if at < offset + count:
            yield Held(at, offset + count - at, zero=True)


class Nothing(Part):
    """Zeros, without a file."""

    def read(self, view: memoryview, offset: int) -> None:
        """Fill with zeros."""
        view[:] = bytes(len(view))

    def held(self, count: int, offset: int) -> Iterator[Held]:
        """All of it is zero."""
        yield Held(offset, count, zero=True)
