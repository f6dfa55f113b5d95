# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Tell that a source was changed while it was read: then what was read is of no one moment, and no copy."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import VmdkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device

_MEANS = "what was read may be half old, half new; do it again when nothing writes to the file"


class _State(NamedTuple):
    size: int
    mtime: int  # nanoseconds


@contextmanager
def unchanged(*devices: Device) -> Iterator[None]:
    """Raise VmdkitError where a file below ``devices`` has another size or time of change when the block ends.

    A size that differs from what it was on opening is noticed as well. Where the block itself raises, that error is
    raised, and a note on it names a file that has changed. Only regular files can tell: block devices and remote
    disks are not looked at, and two writes within one tick of the file system's clock (4 ms) are one.
    """
    before = [(device, fd, _state(fd)) for device, fd in _files(devices)]
    try:
        yield
    except Exception as error:
        changed = _changed(before)
        if changed is not None:
            error.add_note(str(changed))
        raise
    changed = _changed(before)
    if changed is not None:
        raise changed


def _changed(before: list[tuple[Device, int, _State]]) -> VmdkitError | None:
    for device, fd, then in before:
        if device.closed:
            continue
        now = _state(fd)
        known = device.size if then.size == now.size else then.size
        if now.size != known:
            text = f"it changed while it was read, from {known} to {now.size} bytes"
        elif now.mtime != then.mtime:
            text = "it was written to while it was read"
        else:
            continue
        return VmdkitError(f"{text}; {_MEANS}", path=device.name)
    return None


def _state(fd: int) -> _State:
    status = os.fstat(fd)
    return _State(status.st_size, status.st_mtime_ns)


def _files(devices: tuple[Device, ...]) -> Iterator[tuple[Device, int]]:
    """Yield every device below that is a regular file, once, with its descriptor."""
    waiting, seen = list(devices), set[int]()
    while waiting:
        device = waiting.pop()
        if id(device) in seen:
            continue
        seen.add(id(device))
        parts = list(device.parts())
        waiting.extend(parts)
        fd = None if parts else device.fileno()  # a window into a file has its descriptor, and another size
        if fd is not None and stat.S_ISREG(os.fstat(fd).st_mode):
            yield device, fd
