# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make the file that is to be written: complete under its final name, or not there at all.

A new file is written under a temporary name beside the final one, made durable, and then takes its name in one step;
an error or a signal removes it. In place is only what the user said so: block devices, and files with -n.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError
from vmdkit.storage.file import FileDevice, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device


@contextmanager
def new_file(path: str, size: int, *, overwrite: bool = False, sync: bool = True) -> Iterator[FileDevice]:
    """Give an empty file of ``size`` bytes that becomes ``path`` when the block ends without an error.

    A symbolic link is followed, so that the link stays. With ``overwrite`` the new file takes the old one's mode.
    Raises UsageError where ``path`` exists and may not be overwritten, or is nothing to be replaced, and OSError.
    """
    final = os.path.realpath(path)
    mode = _replaceable(path, final, overwrite)
    temporary = os.path.join(os.path.dirname(final), f".vmdkit-{os.urandom(6).hex()}.part")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
        with _sized(fd, size, path, mode) as device:
            yield device
            if sync:
                os.fsync(fd)
        _take_name(temporary, final, overwrite, path)
        if sync:
            _sync_directory(os.path.dirname(final))
    except OSError as error:
        if error.filename in (None, temporary):
            error.filename, error.filename2 = path, None  # the name the user knows
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def in_place(path: str, size: int, *, sync: bool = True) -> Iterator[FileDevice]:
    """Give an existing file or block device to write over; with ``sync`` made durable at the end.

    Raises UsageError where it holds fewer than ``size`` bytes, OSError (EBUSY) for a block device that is mounted or
    otherwise claimed, and what opening raises.
    """
    with _claimed(path), open_file(path, writable=True) as device:
        if device.size < size:
            raise UsageError(f"it holds {device.size} bytes, {size} are needed", path=path)
        yield device
        if sync:
            device.flush()


def read_back(device: FileDevice) -> FileDevice:
    """Open what a new file holds once more, for reading, while it has no name yet; whoever asks closes it."""
    return FileDevice(os.open(f"/proc/self/fd/{device.fileno()}", os.O_RDONLY | os.O_CLOEXEC), device.name)


@contextmanager
def _claimed(path: str) -> Iterator[None]:
    """Hold a block device for ourselves; Linux refuses that where it is mounted (open(2), O_EXCL)."""
    if not is_block_device(path):
        yield
        return
    fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(fd)


def is_block_device(path: str) -> bool:
    """Tell whether ``path`` is an existing block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def refuse_own_files(source: Device, path: str | int, name: str) -> None:
    """Raise UsageError where ``path``, or an open descriptor, is one of the files that ``source`` is read from."""
    try:
        target = os.stat(path)
    except OSError:
        return
    for status in _files(source):
        if (status.st_dev, status.st_ino) == (target.st_dev, target.st_ino):
            raise UsageError("the source is read from this very file", path=name)


def _files(device: Device) -> Iterator[os.stat_result]:
    """Yield the status of every file below a device and its parents."""
    waiting, seen = [device], set[int]()
    while waiting:
        device = waiting.pop()
        if id(device) in seen:
            continue
        seen.add(id(device))
        waiting.extend(device.parts())
        fd = device.fileno()
        with suppress(OSError):
            yield os.fstat(fd) if fd is not None else os.stat(device.name)


def _replaceable(path: str, final: str, overwrite: bool) -> int | None:
    """Return the mode of the regular file that would be replaced, None where there is none."""
    try:
        mode = os.stat(final).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise UsageError("it is no regular file; pipes are written through '-', block devices with -n", path=path)
    if not overwrite:
        raise UsageError("it exists; -f overwrites it", path=path)
    return stat.S_IMODE(mode)


def _sized(fd: int, size: int, path: str, mode: int | None) -> FileDevice:
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        os.ftruncate(fd, size)
        return FileDevice(fd, path, writable=True)
    except BaseException:
        os.close(fd)
        raise


def _take_name(temporary: str, final: str, overwrite: bool, path: str) -> None:
    """Give the file its final name; without ``overwrite`` a file that came meanwhile is not harmed."""
    if overwrite:
        os.rename(temporary, final)
        return
    try:
        os.link(temporary, final)
    except FileExistsError as error:
        raise UsageError("it exists now; it did not when we began", path=path) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
        if os.path.lexists(final):  # no hard links here; a small gap is left
            raise UsageError("it exists now; it did not when we began", path=path) from error
        os.rename(temporary, final)


def _sync_directory(path: str) -> None:
    """Make the new name durable; file systems that cannot are forgiven."""
    with suppress(OSError):
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
