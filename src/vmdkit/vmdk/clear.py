# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Empty a child whose parent has the same bytes: forget every grain, and give the space back.

Each entry may be there or gone at a power cut, since both show the same; so tables are zeroed in any order. What is
cut off the file has to wait until no durable entry points there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.units import SECTOR
from vmdkit.vmdk import layout
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.hosted import HostedExtent, read_directory
from vmdkit.vmdk.structs import CowdHeader

if TYPE_CHECKING:
    from vmdkit.vmdk.disk import VmdkDisk


def clear(disk: VmdkDisk) -> bool:
    """Empty every extent of a disk that is open for writing; durable on return. False where one cannot be."""
    if not all(isinstance(extent, (HostedExtent, CowdExtent)) for extent in disk.extent_files):
        return False
    for extent in disk.extent_files:
        if isinstance(extent, HostedExtent):
            _hosted(extent)
        elif isinstance(extent, CowdExtent):
            _cowd(extent)
    return True


def _hosted(extent: HostedExtent) -> None:
    storage, header = extent.file, extent.header
    extent.mark_unclean(unclean=True)
    storage.flush()
    end = header.overhead
    for at in {header.gd_offset, header.rgd_offset} - {0}:
        directory = read_directory(storage, header, at, low=SECTOR)
        for first, length in _joined(sorted(directory[directory >= 0].tolist()), extent.tables.raw_size):
            storage.zero(length, first)
            end = max(end, first + length)
        end = max(end, layout.round_up(at + len(directory) * layout.WIDTH, SECTOR))
    storage.flush()
    end = layout.round_up(max(end, header.descriptor_offset + header.descriptor_size), header.grain_size)
    if storage.size > end:
        storage.resize(end)
    extent.mark_unclean(unclean=False)
    storage.flush()


def _cowd(extent: CowdExtent) -> None:
    """Drop all tables; then the header says that nothing is used, and then the file is cut."""
    storage, header = extent.file, extent.header
    extent.mark_unclean(unclean=True)
    storage.flush()
    empty = layout.round_up(header.gd_offset + header.gd_entries * layout.WIDTH, SECTOR)
    storage.zero(header.gd_entries * layout.WIDTH, header.gd_offset)
    storage.flush()
    storage.pwrite((empty // SECTOR).to_bytes(4, "little"), CowdHeader.offset_of("free"))
    storage.flush()
    storage.resize(empty)
    extent.mark_unclean(unclean=False)
    storage.flush()


def _joined(addresses: list[int], size: int) -> list[tuple[int, int]]:
    """Return (address, length) of runs of neighbouring tables."""
    runs: list[tuple[int, int]] = []
    for address in addresses:
        if runs and runs[-1][0] + runs[-1][1] == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((address, size))
    return runs
