# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Prove that a copy holds what its source holds: from outside of what copied it.

::

    source ── pread, by a thread of its own, while it is copied ──► tree hash ─┐
                                                                               ├─► equal, or the first byte that is not
    the copy ── opened anew, cache dropped, by the second reader ─► tree hash ─┘

The copy engine's plan, its system calls and what it counts play no part here. What this proves and what not is said
in docs/proof.md.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.errors import DifferenceError
from vmdkit.filters.slice import SliceDevice
from vmdkit.ops.copy import ignore
from vmdkit.ops.plan import naming
from vmdkit.ops.pool import CHUNK, THREADS
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.ops.zeros import first_difference
from vmdkit.storage.file import FileDevice
from vmdkit.storage.vhd import FOOTER
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.witness.disk import open_raw, open_vhd, open_vmdk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from vmdkit.device import Device
    from vmdkit.ops.tree import Shape, TreeDigest

_POLL = 0.1  # seconds between two looks at how far the other thread is


class _StoppedError(Exception):
    """Nobody wants the digest any more."""


class Digesting:
    """Take the tree hash of a device in a thread, while others read it too. A context: its end stops the thread."""

    def __init__(self, device: Device, shape: Shape, zeros: Zeros = Zeros.EXTENTS, threads: int = THREADS) -> None:
        self._done = 0
        self._stopped = False
        self._digest: TreeDigest | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device, shape, zeros, threads), name="vmdkit-digest")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()

    def digest(self, progress: Callable[[int], None] = ignore) -> TreeDigest:
        """Wait for the digest; ``progress`` gets numbers of bytes. Raises what reading raised."""
        told = 0
        while True:
            self._thread.join(_POLL)
            done = self._done
            progress(done - told)
            told = done
            if not self._thread.is_alive():
                break
        if self._error is not None:
            raise self._error
        if self._digest is None:
            raise _StoppedError
        return self._digest

    def _run(self, device: Device, shape: Shape, zeros: Zeros, threads: int) -> None:
        try:
            self._digest = tree_hash(device, shape, zeros=zeros, progress=self._advance, threads=threads)
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error

    def _advance(self, count: int) -> None:
        if self._stopped:
            raise _StoppedError
        self._done += count


def has_second_reader(written: Device) -> bool:
    """Tell whether the second reader knows the kind of thing that ``written`` is."""
    return isinstance(written, (FileDevice, VmdkDisk)) or is_vhd(written)


def is_vhd(written: Device) -> bool:
    """Tell whether it is all but the footer of a file."""
    return isinstance(written, SliceDevice) and (written.start, written.device.size) == (0, written.size + FOOTER)


def second_reader(written: Device, shown: str = "") -> Device:
    """Open what ``written`` is made of by the second reader.

    ``written`` may have temporary names still; messages call it ``shown``. Whoever asks closes it. Raises what
    opening raises: of a disk that vmdkit has made the second reader must be able to say what it holds.
    """
    if is_vhd(written):
        return open_vhd(_path(written), shown or written.name)
    if not isinstance(written, VmdkDisk):
        return open_raw(_path(written), shown or written.name)
    parts: dict[str, str] = {}
    first = written.name
    for line, extent in zip(written.descriptor.extents, written.extent_files, strict=False):
        if extent.storage is not None and line.name:
            parts[line.name] = _path(extent.storage)
            first = parts[line.name] if extent.path == written.name else first
    return open_vmdk(first, parts, written.parent, shown or written.name)


def _path(file: Device) -> str:
    """Return a path that leads to an open file, whatever its name is by now."""
    fd = file.fileno()
    return file.name if fd is None else f"/proc/self/fd/{fd}"


def drop_cache(device: Device) -> bool:
    """Ask the kernel to forget what it holds of the files of ``device``; tell whether there are any.

    What is not durable yet stays: the caller has flushed.
    """
    asked = False
    for file in _files(device):
        fd = file.fileno()
        if fd is not None:
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                asked = True
    return asked


def _files(device: Device) -> Iterator[Device]:
    parts = list(device.parts())
    if not parts:
        yield device
    for part in parts:
        yield from _files(part)


def verify(
    source: Device,
    expected: TreeDigest,
    written: Device,
    *,
    zeros: Zeros = Zeros.EXTENTS,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> TreeDigest:
    """Read ``written`` and return its digest, which is that of ``source`` with zeros behind it up to the same size.

    Raises DifferenceError with the first byte that differs, and what reading raises.
    """
    if written.size < source.size:
        raise DifferenceError(
            f"it has {written.size} bytes, its source {source.size}", path=written.name, offset=written.size
        )
    found = tree_hash(written, expected.shape, zeros=zeros, progress=progress, threads=threads)
    wanted = expected.grown(written.size)
    span = wanted.first_difference(found)
    if span is not None:
        raise _difference(source, written, *span)
    return found


def _difference(source: Device, written: Device, offset: int, length: int) -> DifferenceError:
    """Read both again where their digests differ, and say which byte it is."""
    for at, count in ranges.split(offset, length, CHUNK):
        with naming(at, count, written):
            two = written.pread(count, at)
        held = max(0, min(count, source.size - at))
        with naming(at, held, source):
            one = source.pread(held, at) + bytes(count - held)
        found = first_difference(one, two)
        if found >= 0:
            return DifferenceError(
                f"it is not what its source holds: byte {at + found} is {two[found]:#04x}, not {one[found]:#04x}",
                path=written.name, offset=at + found,
            )  # fmt: skip
    return DifferenceError(
        f"the digests of {length} bytes at {offset} differ, though read again both are the same: "
        "something writes to one of them, or memory or storage cannot be trusted",
        path=written.name, offset=offset,
    )  # fmt: skip
