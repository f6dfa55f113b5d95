# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Put a changed descriptor where the old one is, so that a power cut leaves one of the two, whole.

::

    one sector differs          the sector is written where it is: it is the old one or the new one
    separate file               new file beside │ barrier ── it takes the name │ barrier
    embedded, several sectors   copy to the end of the file │ barrier ── the header points there │ barrier
                                new text in its place │ barrier ── the header points back │ barrier ── the copy goes

In the embedded case the header, one sector, always points at a whole text, and readers follow it (format spec 1.7).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError
from vmdkit.units import SECTOR
from vmdkit.vmdk import layout
from vmdkit.vmdk.descriptor import parse
from vmdkit.vmdk.hosted import read_header
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files


def is_embedded(disk: VmdkDisk) -> bool:
    """Tell whether the text lies in the first extent's file."""
    return disk.descriptor.at > 0


def check_room(disk: VmdkDisk, new: bytes) -> None:
    """Raise UnsupportedError where ``new`` does not fit into the area reserved for it in the extent's file."""
    storage = disk.extent_files[0].storage
    if not is_embedded(disk) or storage is None:
        return
    area = read_header(storage).descriptor_size
    if len(new) > area:
        raise UnsupportedError(
            f"the descriptor would have {len(new)} bytes, and {area} are reserved for it in this file",
            path=disk.descriptor.path,
        )


def rewrite(files: Files, disk: VmdkDisk, new: bytes) -> None:
    """Make ``new`` the descriptor of a disk that is open for writing; durable on return.

    ``disk.descriptor`` is what ``new`` says afterwards. The text of a separate descriptor may be a new file then:
    what else changes the text of the same opening must come through here too.
    Raises UnsupportedError where the text is longer than the area reserved for it, and OSError.
    """
    text = disk.descriptor
    if new == text.raw:
        return
    parse(new, text.path)  # what cannot be read back is not written
    if is_embedded(disk):
        storage = disk.extent_files[0].storage
        if storage is None:
            raise UnsupportedError("its descriptor is in no file", path=text.path)
        check_room(disk, new)
        _embedded(storage, text, new)
    elif not _in_place(files, text, new):
        _replace(files, text.path, new)
    text.raw = new
    fresh = parse(new, text.path)
    text.header, text.ddb, text.extents = fresh.header, fresh.ddb, fresh.extents


def _differing(old: bytes, new: bytes, at: int) -> list[int]:
    """Return the addresses of the sectors in which two texts at ``at`` differ."""
    first = at - at % SECTOR
    most = max(len(old), len(new))
    old, new = old.ljust(most, b"\0"), new.ljust(most, b"\0")
    starts = range(first, at + most, SECTOR)
    return [
        start
        for start in starts
        if old[max(start - at, 0) : start + SECTOR - at] != new[max(start - at, 0) : start + SECTOR - at]
    ]


def _in_place(files: Files, text: Descriptor, new: bytes) -> bool:
    """Write a text of the same length that differs in one sector; False where that is not so."""
    if len(new) != len(text.raw) or len(_differing(text.raw, new, 0)) > 1:
        return False
    with files.open_file(text.path, writable=True) as storage:
        if storage.pread(len(new), 0) != text.raw:
            return False
        (at,) = _differing(text.raw, new, 0)
        storage.pwrite(new[at : at + SECTOR], at)
        storage.flush()
    return True


def _replace(files: Files, path: str, new: bytes) -> None:
    final = files.real_path(path)
    home = os.path.dirname(final)
    temporary = os.path.join(home, f".vmdkit-{os.urandom(6).hex()}.part")
    try:
        with files.new_file(temporary, path) as storage:
            storage.resize(len(new))
            storage.pwrite(new, 0)
            storage.flush()
        files.rename(temporary, final, replace=True)
    finally:
        with suppress(FileNotFoundError):
            files.remove(temporary)
    files.sync_directory(home)


def _embedded(storage: Device, text: Descriptor, new: bytes) -> None:
    header = read_header(storage)
    area = header.descriptor_size
    old, new = text.raw.ljust(area, b"\0"), new.ljust(area, b"\0")
    sectors = _differing(old, new, text.at)
    if len(sectors) <= 1:
        for at in sectors:
            storage.pwrite(new[at - text.at : at - text.at + SECTOR], at)
        storage.flush()
        return
    home = text.at
    if home >= min(header.rgd_offset or header.gd_offset, header.gd_offset):
        home = SECTOR  # a power cut left the text at the end of the file; its place is free
    end = layout.round_up(storage.size, header.grain_size)
    if home == text.at:
        storage.resize(end + area)
        storage.pwrite(old, end)
        storage.flush()
        _point(storage, end)
    storage.pwrite(new, home)
    storage.flush()
    _point(storage, home)
    if home == text.at:
        storage.resize(end)
        storage.flush()
    text.at = home


def _point(storage: Device, at: int) -> None:
    """Make the header name the place of the text; one sector, durable on return."""
    sector = bytearray(storage.pread(SECTOR, 0))
    field = HostedHeader.offset_of("descriptor_offset")
    sector[field : field + 8] = (at // SECTOR).to_bytes(8, "little")
    storage.pwrite(sector, 0)
    storage.flush()
