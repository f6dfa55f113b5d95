# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Change the capacity of a COWD extent (format spec 1.9).

::

    header │ GD │ what came first │ ...          the directory has no room to grow
    header │ GD ──────────▶       │ ... │ what came first

What lies behind the directory goes to the end: tables first, then grains, each copied, a barrier, its pointer, a
barrier. Then the room is zeroed, a barrier, and the header, one sector, gets capacity, number of entries and end of
file together. The directory stays at sector 4, where every COWD file has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import SECTOR
from vmdkit.vmdk import layout
from vmdkit.vmdk.grain_moves import Move, grains_below, highest, move
from vmdkit.vmdk.structs import CowdHeader, decode_sectors, encode_sectors
from vmdkit.vmdk.tables import GrainTables

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes


def read_cowd(storage: Device) -> CowdHeader:
    """Return the header; it was checked when the disk was opened."""
    return CowdHeader.unpack(storage.pread(CowdHeader.size_of(), 0), path=storage.name)


def cowd_tables(storage: Device, header: CowdHeader) -> GrainTables:
    """Return the tables as the file has them now."""
    low = header.gd_offset + table_count(header) * layout.WIDTH

    def decode(raw: bytes | bytearray) -> Codes:
        return decode_sectors(raw, low=low, high=storage.size)

    directory = decode(storage.pread(table_count(header) * layout.WIDTH, header.gd_offset))
    return GrainTables(storage, directory, entries=layout.COWD_ENTRIES, width=layout.WIDTH, decode=decode)


def table_count(header: CowdHeader) -> int:
    """Return the number of grain tables that the capacity needs; the directory may have more entries."""
    return -(-header.capacity // (header.grain_size * layout.COWD_ENTRIES))


def used_end(storage: Device, header: CowdHeader) -> int:
    """Return where the last thing in use ends."""
    tables = cowd_tables(storage, header)
    last = highest(tables)
    return max(
        layout.round_up(header.gd_offset + header.gd_entries * layout.WIDTH, SECTOR),
        int(tables.directory.max(initial=-1)) + layout.COWD_TABLE if (tables.directory >= 0).any() else 0,
        last + header.grain_size if last >= 0 else 0,
    )


def resize_cowd(storage: Device, capacity: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Change the capacity (bytes); the unclean flag is the caller's. Durable on return."""
    header = read_cowd(storage)
    target = layout.cowd_header(capacity, header.grain_size)
    old_end = header.gd_offset + table_count(header) * layout.WIDTH
    new_end = header.gd_offset + target.gd_entries * layout.WIDTH
    if capacity > header.capacity:
        _forget_behind(storage, header)
        room = layout.round_up(new_end, SECTOR)
        if room > layout.round_up(old_end, SECTOR):
            _make_room(storage, header, room, progress)
        storage.zero(room - old_end, old_end)
        storage.flush()
        header = read_cowd(storage)
        header.free = max(header.free, room)
    header.capacity, header.gd_entries = capacity, target.gd_entries
    write_head(storage, header)
    if new_end < old_end:
        storage.zero(old_end - new_end, new_end)
    _forget_behind(storage, header)
    finish_cowd(storage)


def write_head(storage: Device, header: CowdHeader) -> None:
    """Write the first sector of the header, in which everything that changes lies; durable."""
    storage.pwrite(header.pack()[:SECTOR], 0)
    storage.flush()


def finish_cowd(storage: Device) -> None:
    """Let the header say where the used file ends, and cut the file there; durable."""
    header = read_cowd(storage)
    header.free = used_end(storage, header)
    write_head(storage, header)
    storage.resize(header.free)
    storage.flush()


def _make_room(storage: Device, header: CowdHeader, room: int, progress: Callable[[int], None]) -> None:
    """Move what begins below ``room`` behind everything."""
    tables = cowd_tables(storage, header)
    inside = np.flatnonzero((tables.directory >= 0) & (tables.directory < room)).tolist()
    at = layout.round_up(max(header.free, used_end(storage, header), room), SECTOR)
    places = {number: at + index * layout.COWD_TABLE for index, number in enumerate(inside)}
    _reserve(storage, header, at + len(inside) * layout.COWD_TABLE)
    for number, place in places.items():
        storage.pwrite(storage.pread(layout.COWD_TABLE, int(tables.directory[number])), place)
    storage.flush()
    for number, place in places.items():
        entry = encode_sectors(np.array([place], dtype=np.int64))
        storage.pwrite(entry, header.gd_offset + number * layout.WIDTH)
    storage.flush()
    tables = cowd_tables(storage, header)
    grain = header.grain_size
    at = layout.round_up(header.free, grain)
    grains = grains_below(tables, room)
    _reserve(storage, header, at + len(grains) * grain)
    moves = [Move(number, old, at + index * grain) for index, (number, old) in enumerate(grains)]
    move(storage, [cowd_tables(storage, header)], moves, grain, progress)


def _reserve(storage: Device, header: CowdHeader, end: int) -> None:
    """Make the file and its header's end reach ``end`` before any pointer does (VMware checks that)."""
    if end > storage.size:
        storage.resize(end)
    header.free = max(header.free, end)
    write_head(storage, header)


def _forget_behind(storage: Device, header: CowdHeader) -> None:
    """Drop what the last table and the last grain hold behind the capacity; durable."""
    grain, tables = header.grain_size, cowd_tables(storage, header)
    number, entry = divmod(header.capacity // grain, layout.COWD_ENTRIES)
    if number >= len(tables) or int(tables.directory[number]) < 0:
        return
    within = header.capacity % grain
    if within:
        address = int(tables.bulk(number, number + 1)[entry])
        if 0 <= address < storage.size - within:
            storage.zero(min(grain - within, storage.size - address - within), address + within)
        entry += 1
    if entry < layout.COWD_ENTRIES:
        place = int(tables.directory[number]) + entry * layout.WIDTH
        storage.zero((layout.COWD_ENTRIES - entry) * layout.WIDTH, place)
    storage.flush()
