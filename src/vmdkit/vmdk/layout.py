# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where the metadata of a new sparse extent lie: as VMware puts them (format spec 1.7, 1.9).

::

    hosted   header │ descriptor │ RGD │ RGTs ... │ GD │ GTs ... │ padding to a grain │ grains
    COWD     header │ GD │ tables and grains as they come

VMware's recent programs do not read the grain directory: they know where each table is, because all tables are
there from the beginning, in order, right behind the directory. So they are here. A new table is zeros, zeros are
holes: a disk of 2 TiB has 256 MiB of tables and takes some hundred KiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import UsageError
from vmdkit.units import KIB, MIB, SECTOR, TIB, format_size
from vmdkit.vmdk import structs
from vmdkit.vmdk.structs import CowdHeader, HostedHeader, encode_sectors

if TYPE_CHECKING:
    from vmdkit.device import Device

DESCRIPTOR_AREA = 20 * SECTOR  # bytes reserved for an embedded descriptor
HOSTED_GRAIN = 64 * KIB
COWD_GRAIN = SECTOR
HOSTED_ENTRIES = structs.HOSTED_ENTRIES
COWD_ENTRIES = 4096
WIDTH = 4  # bytes of a pointer
MOST_HOSTED = 2 * TIB  # bytes of one extent: pointers have 32 bits of sectors
MOST_COWD = 2 * TIB - SECTOR  # the header counts sectors in 32 bits
HOSTED_TABLE = HOSTED_ENTRIES * WIDTH
COWD_TABLE = COWD_ENTRIES * WIDTH


def round_up(count: int, step: int) -> int:
    """Return the first multiple of ``step`` that is not below ``count``."""
    return -(-count // step) * step


def check_grain(grain: int, low: int, high: int = MIB) -> None:
    """Raise UsageError unless ``grain`` (bytes) is a power of two from ``low`` to ``high``."""
    if grain < low or grain > high or grain & (grain - 1):
        raise UsageError(
            f"a grain of {grain} bytes; a power of two from {format_size(low)} to {format_size(high)} is due"
        )


def hosted_header(
    capacity: int, grain: int = HOSTED_GRAIN, *, descriptor: int = 0, at: int = 0, zero_grains: bool = False
) -> HostedHeader:
    """Return the header of an extent of ``capacity`` bytes, all tables preallocated (format spec 1.7).

    ``descriptor`` is the area (bytes) reserved behind the header for an embedded text, 0 for an extent of a split
    disk. The tables follow it, or begin at ``at``.
    """
    tables = -(-capacity // (grain * HOSTED_ENTRIES))
    directory = round_up(tables * WIDTH, SECTOR)
    redundant = at or SECTOR + descriptor
    primary = redundant + directory + tables * HOSTED_TABLE
    return HostedHeader(
        version=2 if zero_grains else 1,
        flags=structs.FLAG_NEWLINES | structs.FLAG_REDUNDANT | (structs.FLAG_ZERO_GRAINS if zero_grains else 0),
        capacity=capacity,
        grain_size=grain,
        descriptor_offset=SECTOR if descriptor else 0,
        descriptor_size=descriptor,
        rgd_offset=redundant,
        gd_offset=primary,
        overhead=round_up(primary + directory + tables * HOSTED_TABLE, grain),
    )


def table_count(header: HostedHeader) -> int:
    """Return the number of grain tables that the capacity needs."""
    return -(-header.capacity // (header.grain_size * HOSTED_ENTRIES))


def first_table(header: HostedHeader, directory: int) -> int:
    """Return the address of the first table behind the directory at ``directory``."""
    return directory + round_up(table_count(header) * WIDTH, SECTOR)


def directories(header: HostedHeader) -> list[tuple[int, bytes]]:
    """Return (address, bytes) of both directories of a preallocated layout."""
    numbers = np.arange(table_count(header), dtype=np.int64)
    return [
        (at, encode_sectors(first_table(header, at) + numbers * HOSTED_TABLE))
        for at in (header.rgd_offset, header.gd_offset)
    ]


def write_hosted(storage: Device, header: HostedHeader, text: bytes = b"", *, grains: int = 0) -> None:
    """Write a new extent into an empty file; not flushed. ``text`` goes into the descriptor's area.

    ``grains`` bytes of grains are there already, and all tables that point at them.
    """
    if len(text) > header.descriptor_size:
        raise UsageError(f"the descriptor has {len(text)} bytes; {header.descriptor_size} are reserved for it")
    storage.resize(header.overhead + grains)
    for at, directory in directories(header):
        storage.pwrite(directory, at)
    storage.pwrite(text, SECTOR)
    storage.pwrite(header.pack(), 0)


def cowd_header(capacity: int, grain: int = COWD_GRAIN) -> CowdHeader:
    """Return the header of an empty delta of ``capacity`` bytes (format spec 1.9)."""
    header = CowdHeader(capacity=capacity, grain_size=grain)
    header.gd_entries = -(-capacity // (grain * COWD_ENTRIES))
    header.free = round_up(header.gd_offset + header.gd_entries * WIDTH, SECTOR)
    return header


def write_cowd(storage: Device, header: CowdHeader) -> None:
    """Write a new delta into an empty file; not flushed. Its directory is zeros: tables come with their grains."""
    storage.resize(header.free)
    storage.pwrite(header.pack(), 0)
