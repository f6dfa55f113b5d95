# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Give a hosted sparse extent the metadata of another capacity, where VMware would have put them at its creation.

::

    1  old   header │ text │ RGD RGTs GD GTs │ grain 0 │ grain 1 │ grain 2 │ ...
    2        grains in the way of the larger tables go to the end │ barrier ── their entries │ barrier
    3        a second set of tables at the end of the file │ barrier ── the header points there │ barrier
    4  new   header │ text │ RGD RGTs ... GD GTs ...       │ grain 2 │ ... │ barrier ── the header points here │ barrier
    5        the second set is cut off

Why not leave the tables at the end? The format allows it, and every free reader follows it; but VMware's recent
programs do not read the grain directory, they expect all tables in order behind it and all grains behind ``overHead``
(format spec 1.7). So the tables have to be in front, where the old ones are, and those are needed until the new ones
are durable: hence the second set. The header is one sector, so each switch happens or does not. After a power cut the
extent is whole, with its old capacity or its new one, and the same call finishes or repeats the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError
from vmdkit.units import SECTOR
from vmdkit.vmdk import layout, structs
from vmdkit.vmdk.grain_moves import Move, grains_below, highest, move, present_chunks
from vmdkit.vmdk.hosted import read_header, read_tables
from vmdkit.vmdk.structs import UNALLOCATED, HostedHeader, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device
    from vmdkit.vmdk.tables import GrainTables

_HIGHEST = (1 << 32) * SECTOR  # bytes a pointer can reach


def both_copies(storage: Device, header: HostedHeader) -> list[GrainTables]:
    """Return the tables, the redundant copy first where there is one: the order in which they are written."""
    places = [header.gd_offset]
    if header.flags & structs.FLAG_REDUNDANT and header.rgd_offset:
        places.insert(0, header.rgd_offset)
    return [read_tables(storage, header, place) for place in places]


def is_canonical(storage: Device, header: HostedHeader) -> bool:
    """Tell whether all metadata are where VMware would have put them."""
    due = _target(header, header.capacity)
    same = (header.rgd_offset, header.gd_offset, header.overhead) == (due.rgd_offset, due.gd_offset, due.overhead)
    if not same or header.descriptor_offset != due.descriptor_offset or not header.flags & structs.FLAG_REDUNDANT:
        return False
    return all(storage.pread(len(data), at) == data for at, data in layout.directories(due))


def relayout(storage: Device, capacity: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Change the capacity of the extent in ``storage`` (bytes), and put its metadata where they belong.

    What lies behind a smaller capacity is forgotten. The unclean flag has to be durable before, and is left to the
    caller. Durable on return. Raises UnsupportedError where pointers do not reach, before anything is changed.
    """
    header = read_header(storage)
    target = _target(header, capacity)
    if capacity > header.capacity:
        _forget_tail(storage, header)
    if layout.table_count(target) == layout.table_count(header) and is_canonical(storage, header):
        if capacity < header.capacity:
            _forget_entries(storage, header, capacity)
        _switch(storage, target)
    else:
        _move_tables(storage, header, target, progress)
    storage.resize(used_end(storage, read_header(storage)))
    storage.flush()


def used_end(storage: Device, header: HostedHeader) -> int:
    """Return where the last thing in use ends, a whole number of grains: what follows may be cut off."""
    end = max(header.overhead, header.descriptor_offset + header.descriptor_size)
    for tables in both_copies(storage, header):
        end = max(end, int(tables.directory.max(initial=0)) + tables.raw_size)
    for place in (header.rgd_offset, header.gd_offset):
        end = max(end, place + layout.table_count(header) * layout.WIDTH)
    last = highest(both_copies(storage, header)[-1])
    return layout.round_up(max(end, last + header.grain_size if last >= 0 else 0), header.grain_size)


def _move_tables(storage: Device, header: HostedHeader, target: HostedHeader, progress: Callable[[int], None]) -> None:
    """Put the tables of ``target`` in front, by way of a second set behind everything."""
    if target.descriptor_offset != header.descriptor_offset:
        raise UnsupportedError("its descriptor is not behind its header", path=storage.name)
    grain = header.grain_size
    inside = grains_below(both_copies(storage, header)[-1], target.overhead)
    end = layout.round_up(max(used_end(storage, header), target.overhead), grain)
    if end + len(inside) * grain + target.overhead + grain > _HIGHEST:
        raise UnsupportedError("the extent file has no room below 2 TiB to move its tables", path=storage.name)
    storage.resize(min(end, storage.size))  # what a power cut has left behind the end would be in the way
    storage.resize(end + len(inside) * grain)
    moves = [Move(number, old, end + index * grain) for index, (number, old) in enumerate(inside)]
    move(storage, both_copies(storage, header), moves, grain, progress)
    aside = _write_aside(storage, header, min(target.capacity, header.capacity))
    _write_in_front(storage, aside, target)


def _target(header: HostedHeader, capacity: int) -> HostedHeader:
    """Return the header that the extent has in the end; as the old one but for places and capacity."""
    zero_grains = bool(header.flags & structs.FLAG_ZERO_GRAINS)
    area = header.descriptor_size if header.descriptor_offset else 0
    new = layout.hosted_header(capacity, header.grain_size, descriptor=area, zero_grains=zero_grains)
    new.version, new.flags = header.version, header.flags | structs.FLAG_REDUNDANT
    new.unclean_shutdown = header.unclean_shutdown
    return new


def _write_aside(storage: Device, header: HostedHeader, capacity: int) -> HostedHeader:
    """Write a second set of tables for ``capacity`` at the end of the file, and let the header point there."""
    at = layout.round_up(storage.size, header.grain_size)
    aside = layout.hosted_header(capacity, header.grain_size, at=at)
    end = aside.overhead
    aside.version, aside.flags = header.version, header.flags | structs.FLAG_REDUNDANT
    aside.descriptor_offset, aside.descriptor_size = header.descriptor_offset, header.descriptor_size
    aside.unclean_shutdown, aside.overhead = header.unclean_shutdown, header.overhead
    storage.resize(end)
    _write_tables(storage, both_copies(storage, header)[-1], aside)
    _switch(storage, aside)
    return aside


def _write_in_front(storage: Device, aside: HostedHeader, target: HostedHeader) -> None:
    """Write the final tables over what nothing uses any more, and let the header point there."""
    first = SECTOR + target.descriptor_size
    storage.zero(target.overhead - first, first)
    _write_tables(storage, both_copies(storage, aside)[-1], target)
    _switch(storage, target)


def _write_tables(storage: Device, source: GrainTables, header: HostedHeader) -> None:
    """Write both directories and every table that has entries; durable. The space for them is zero already."""
    entries = -(-header.capacity // header.grain_size)
    for at, directory in layout.directories(header):
        storage.pwrite(directory, at)
    for first, codes in present_chunks(source):
        codes[max(0, entries - first) :] = UNALLOCATED  # what a smaller capacity has no place for
        kept = codes[: max(0, layout.table_count(header) * layout.HOSTED_ENTRIES - first)]
        if len(kept) and (kept != UNALLOCATED).any():
            raw = encode_sectors(kept)
            for at in (header.rgd_offset, header.gd_offset):
                storage.pwrite(raw, layout.first_table(header, at) + first * layout.WIDTH)
    storage.flush()


def _switch(storage: Device, header: HostedHeader) -> None:
    storage.flush()
    storage.pwrite(header.pack(), 0)
    storage.flush()


def _forget_tail(storage: Device, header: HostedHeader) -> None:
    """Make zero what lies behind the capacity in its last grain, before a larger capacity shows it."""
    within = header.capacity % header.grain_size
    if not within:
        return
    last = header.capacity // header.grain_size
    tables = both_copies(storage, header)[-1]
    number, entry = divmod(last, tables.entries)
    table = tables.table(number)
    address: int = table if isinstance(table, int) else table[entry]
    if address >= 0 and address + within < storage.size:
        storage.zero(min(header.grain_size - within, storage.size - address - within), address + within)
        storage.flush()


def _forget_entries(storage: Device, header: HostedHeader, capacity: int) -> None:
    """Drop the entries behind a smaller capacity, in both copies; durable."""
    entries = -(-capacity // header.grain_size)
    count = layout.table_count(header) * layout.HOSTED_ENTRIES
    for tables in both_copies(storage, header):
        number, entry = divmod(entries, tables.entries)
        place = int(tables.directory[number]) if entry else -1
        if place >= 0 and entries < count:
            storage.zero((tables.entries - entry) * layout.WIDTH, place + entry * layout.WIDTH)
    storage.flush()
