# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Files in memory that behave as FileDevice does, a gate over them, and faults: what our own writer is tortured on."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from vmdkit.device import HOLE_ZERO, BlockSize, Can, Device
from vmdkit.errors import GateError
from vmdkit.filters.record_writes import RecordWrites
from vmdkit.gate import Gate
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmdkit.filters.record_writes import Journal

_BLOCK = 4096  # bytes; what a file system gives and takes back at once
_CAN = Can.FLUSH | Can.EXTENTS | Can.CACHE | Can.MULTI_CONN
_MAY = Can.WRITE | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM | Can.RESIZE


class MemoryFile(Device):
    """One opening of bytes that are kept elsewhere; blocks of zeros are holes, as in a file just written."""

    def __init__(self, content: bytearray, name: str, *, writable: bool) -> None:
        super().__init__(len(content), name=name, can=_CAN | _MAY if writable else _CAN, block_size=BlockSize())
        self._content = content

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = memoryview(self._content)[offset : offset + len(view)]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._content[offset : offset + len(view)] = view

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self._content[offset : offset + count] = bytes(count)

    def _trim(self, count: int, offset: int) -> None:
        self._content[offset : offset + count] = bytes(count)

    def _resize(self, size: int, *, reserve: bool) -> None:
        if size < len(self._content):
            del self._content[size:]
        else:
            self._content.extend(bytes(size - len(self._content)))

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        zeros, end = bytes(_BLOCK), offset + count
        while offset < end:
            start = offset - offset % _BLOCK
            stop = min(start + _BLOCK, end)
            hole = zeros.startswith(self._content[start : start + _BLOCK])
            yield offset, stop - offset, HOLE_ZERO if hole else 0
            offset = stop


class Folder(Gate):
    """Files in memory by name; what is opened for writing is recorded, and may fail on purpose."""

    def __init__(
        self, files: Mapping[str, bytes | bytearray], journal: Journal | None = None, faults: Faults | None = None
    ) -> None:
        self.files = {name: bytearray(content) for name, content in files.items()}
        self._journal = journal
        self._faults = faults

    def device(self, name: str, *, writable: bool = False) -> Device:
        """Open a file."""
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        device: Device = MemoryFile(self.files[name], name, writable=writable)
        if writable and self._journal is not None:
            device = RecordWrites(device, self._journal)
        if writable and self._faults is not None:
            device = Faulty(device, self._faults)
        return device

    def resolve(self, name: str, base: str) -> str:
        """Take bare names only."""
        if "/" in name:
            raise GateError(f"the image names {name!r}", path=base)
        return name

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a file that an image names."""
        return self.device(self.resolve(name, base), writable=writable)


class Faults(Protocol):
    """Decides which changes fail."""

    def __call__(self, verb: str, name: str) -> int:
        """Return the error number that this change is to fail with, 0 for none."""
        ...


class FailAt:
    """Fails change number ``first`` of some verbs, and ``count`` in all (a full disk stays full for a while)."""

    def __init__(self, number: int, verbs: tuple[str, ...], *, first: int, count: int = 1) -> None:
        self._number = number
        self._verbs = verbs
        self._first = first
        self._count = count
        self.seen = 0

    def __call__(self, verb: str, name: str) -> int:
        """Count, and fail in turn."""
        if verb not in self._verbs:
            return 0
        self.seen += 1
        return self._number if self._first <= self.seen < self._first + self._count else 0


class Faulty(Device):
    """A device whose changes fail when told to: a write after about half of its sectors, a barrier for good.

    After a failed barrier nothing that was written before is known to be on the disk, whatever a later barrier says;
    so none reaches the recording any more.
    """

    def __init__(self, inner: Device, faults: Faults) -> None:
        super().__init__(
            inner.size, name=inner.name, can=inner.can, block_size=inner.block_size, contexts=inner.contexts
        )
        self._inner = inner
        self._faults = faults
        self._doomed = False

    def _fault(self, verb: str) -> OSError | None:
        number = self._faults(verb, self._name)
        return OSError(number, os.strerror(number), self._name) if number else None

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._inner.pread_into(view, offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        error = self._fault("write")
        if error is not None:
            middle = (offset + len(view) // 2) // SECTOR * SECTOR
            self._inner.pwrite(view[: max(0, middle - offset)], offset)
            raise error
        self._inner.pwrite(view, offset)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        error = self._fault("zero")
        if error is not None:
            raise error
        self._inner.zero(count, offset, no_hole=no_hole, fast=fast)

    def _trim(self, count: int, offset: int) -> None:
        error = self._fault("trim")
        if error is not None:
            raise error
        self._inner.trim(count, offset)

    def _resize(self, size: int, *, reserve: bool) -> None:
        error = self._fault("resize")
        if error is not None:
            raise error
        self._inner.resize(size, reserve=reserve)

    def _flush(self) -> None:
        error = self._fault("flush")
        if error is not None:
            self._doomed = True
            raise error
        if not self._doomed:
            self._inner.flush()

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        yield from self._inner.extents(count, offset, context=context)

    def _close(self) -> None:
        self._inner.close()
