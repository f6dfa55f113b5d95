# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a disk's files as small as its data, in place, without changing what it reads.

::

    sparse   grains of zeros are dropped │ tables │ barrier
             header │ tables │ A │ . │ B │ . │ C │ D │      the last grains go to the free places: copies │ barrier
             header │ tables │ A │ D │ B │ C │ . │ . │      ── their entries │ barrier
             header │ tables │ A │ D │ B │ C │              the rest is cut off
    flat     blocks of zeros become holes

At any moment each grain is at its old place or at its new one, and both hold it (grain_moves.py); the content ID
stays, since the content does. The interrupted work is finished by the same command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmdkit import ranges
from vmdkit.device import ExtentFlags
from vmdkit.errors import UnsupportedError
from vmdkit.kernels import is_zero
from vmdkit.units import GIB, MIB, SECTOR
from vmdkit.vmdk import cowd_resize, layout
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.extent_file import RunKind
from vmdkit.vmdk.flat import FlatExtent, ZeroExtent
from vmdkit.vmdk.grain_moves import Move, move, present_chunks
from vmdkit.vmdk.hosted import HostedExtent, read_header
from vmdkit.vmdk.relayout import both_copies, is_canonical, relayout, used_end
from vmdkit.vmdk.same_content import quiet
from vmdkit.vmdk.structs import UNALLOCATED
from vmdkit.vmdk.tables import TableExtent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmdkit.device import Device
    from vmdkit.vmdk.extent_file import Run
    from vmdkit.vmdk.files import Files
    from vmdkit.vmdk.structs import CowdHeader
    from vmdkit.vmdk.tables import GrainTables
    from vmdkit.vmdk.writable import WritableDisk

    Progress = Callable[[int], None]

_STEP = MIB  # bytes read at once
_BLOCK = 4096  # bytes of a flat file that become a hole together
_PUBLISH = GIB  # bytes of dropped grains after which tables are published: bounds what waits in memory
_MOST_SLOTS = 1 << 30  # places for grains; one byte of memory for each
_KNOWN = (HostedExtent, CowdExtent, FlatExtent, ZeroExtent)


@dataclass(frozen=True, slots=True)
class Compacted:
    """Bytes of all extent files before and after, and bytes of flat files that became holes."""

    before: int
    after: int
    punched: int


def compact(files: Files, path: str, progress: Progress = lambda _: None) -> Compacted:
    """Compact the disk at ``path``; its parents are read, to tell which zeros are needed.

    ``progress`` gets numbers of bytes examined, of those that the disk's own files hold. Raises UnsupportedError
    for subformats that we do not write, and what opening for writing raises; the disk reads as before then.
    """
    with files.open_disk(path, writable=True) as opened:
        for extent in opened.extent_files:
            if not isinstance(extent, _KNOWN):
                raise UnsupportedError(f"a {extent.kind} extent is not compacted", path=extent.path)
        storages = list({id(extent.storage): extent.storage for extent in opened.extent_files}.values())
        before = sum(storage.size for storage in storages if storage is not None)
        disk, session = quiet(opened)
        session.begin()
        punched = _drop_zeros(disk, progress)
        disk.flush()
        for extent in opened.extent_files:
            if isinstance(extent, HostedExtent):
                close_gaps_hosted(extent.file)
            elif isinstance(extent, CowdExtent):
                close_gaps_cowd(extent.file)
        session.close()
        after = sum(storage.size for storage in storages if storage is not None)
    return Compacted(before, after, punched)


# ── zeros ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _drop_zeros(disk: WritableDisk, progress: Progress) -> int:
    punched, start = 0, 0
    for extent in disk.extent_files:
        if isinstance(extent, TableExtent):
            _drop_grains(disk, extent, start, progress)
        elif isinstance(extent, FlatExtent) and extent.storage is not None and extent.storage.writable:
            punched += _punch(extent.storage, extent.start, extent.length, progress)
        start += extent.length
    return punched


def _drop_grains(disk: WritableDisk, extent: TableExtent, start: int, progress: Progress) -> None:
    """Drop the grains of an extent (at ``start`` of the disk) that hold zeros, and need not."""
    storage, grain, dropped = extent.file, extent.grain, 0
    data = [(at, run) for at, run in _runs(extent) if run.kind is RunKind.DATA]
    for offset, run in data:
        for at, count in ranges.split(offset, run.length, max(_STEP, grain)):
            view = memoryview(storage.pread(count, run.at + at - offset))
            for first, length, _ in ranges.coalesce(_zero_grains(extent, view, at)):
                dropped += _drop(disk, extent, first, length, start)
            progress(count)
        if dropped >= _PUBLISH:
            disk.flush()
            dropped = 0


def _zero_grains(extent: TableExtent, view: memoryview, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, length, 0) of the whole grains of zeros in ``view``, which begins at ``at`` of the extent."""
    grain = extent.grain
    if grain < _BLOCK and not _has_zero_sector(view):
        return
    for offset, length in ranges.split(at, len(view), grain):
        whole = offset % grain == 0 and (length == grain or offset + length == extent.length)
        if whole and is_zero(view[offset - at : offset - at + length]):
            yield offset, length, 0


def _runs(extent: TableExtent) -> Iterator[tuple[int, Run]]:
    offset = 0
    for run in extent.runs(0, extent.length):
        yield offset, run
        offset += run.length


def _has_zero_sector(view: memoryview) -> bool:
    """Tell whether any whole sector of ``view`` is zero: COWD's grains are too small to be tried one by one."""
    whole = np.frombuffer(view[: len(view) - len(view) % SECTOR], dtype=np.uint64).reshape(-1, SECTOR // 8)
    return bool((~whole.any(axis=1)).any()) or bool(len(view) % SECTOR)


def _drop(disk: WritableDisk, extent: TableExtent, offset: int, length: int, start: int) -> int:
    """Drop grains of zeros; over a parent only what is zero there too, or can be marked as zero. Return their bytes."""
    writer, parent, grain = extent.writer, disk.parent, extent.grain
    if writer is None:
        return 0
    dropped = 0
    for at, count in [(offset, length)] if parent is None else ranges.split(offset, length, grain):
        code: int | None = UNALLOCATED
        if parent is not None and not all(run.flags & ExtentFlags.ZERO for run in parent.extents(count, start + at)):
            code = writer.zero_code
        if code is not None:
            writer.free(at // grain, -(-(at + count) // grain), code)
            dropped += count
    return dropped


def _punch(storage: Device, start: int, length: int, progress: Progress) -> int:
    """Turn blocks of zeros of a flat file into holes; return their bytes."""
    punched = 0
    for run in list(storage.extents(length, start)):
        if run.flags & ExtentFlags.HOLE:
            continue
        for at, count in ranges.split(run.offset, run.length, _STEP):
            head = -at % _BLOCK
            whole = (count - head) // _BLOCK * _BLOCK
            progress(count)
            if whole <= 0:
                continue
            blocks = np.frombuffer(storage.pread(whole, at + head), dtype=np.uint64).reshape(-1, _BLOCK // 8)
            for first, last in _joined(np.flatnonzero(~blocks.any(axis=1)).tolist()):
                storage.trim((last - first) * _BLOCK, at + head + first * _BLOCK)
                punched += (last - first) * _BLOCK
    return punched


def _joined(numbers: list[int]) -> list[tuple[int, int]]:
    """Return runs (first, last exclusive) of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


# ── free places ──────────────────────────────────────────────────────────────────────────────────────────────────


def close_gaps_hosted(storage: Device) -> None:
    """Move the last grains of a hosted extent to free places and cut the rest off; the flag is the caller's."""
    header = read_header(storage)
    if not is_canonical(storage, header):
        relayout(storage, header.capacity)
        header = read_header(storage)
    _fill_free(storage, both_copies(storage, header), header.grain_size, header.overhead, [])
    storage.resize(used_end(storage, header))
    storage.flush()


def close_gaps_cowd(storage: Device) -> None:
    """Move the last grains of a COWD extent to free places, then the tables behind them, and cut the rest off."""
    header = cowd_resize.read_cowd(storage)
    tables = cowd_resize.cowd_tables(storage, header)
    start = layout.round_up(header.gd_offset + header.gd_entries * layout.WIDTH, SECTOR)
    held = [(int(at), layout.COWD_TABLE) for at in tables.directory[tables.directory >= 0]]
    end = _fill_free(storage, [tables], header.grain_size, start, held)
    _move_tables(storage, header, end)
    cowd_resize.finish_cowd(storage)


def _fill_free(
    storage: Device, copies: Sequence[GrainTables], grain: int, start: int, held: Sequence[tuple[int, int]]
) -> int:
    """Move the last grains to free places from ``start`` on, around what is ``held``; return where grains end now."""
    tables = copies[-1]
    slots = -(-storage.size // grain) + 1
    if slots > _MOST_SLOTS:
        raise UnsupportedError("it has too many grains to be compacted in place; convert it", path=storage.name)
    used, count = np.zeros(slots, dtype=np.uint8), 0
    for _, codes in present_chunks(tables):
        addresses = codes[codes >= 0]
        count += len(addresses)
        for edge in (addresses // grain, (addresses + grain - 1) // grain):  # one and the same where aligned
            used[edge] = 1
    for at, length in held:
        used[at // grain : -(-(at + length) // grain)] = 2
    first = -(-start // grain)
    limit = _limit(used, first, count)
    free = np.flatnonzero(used[first:limit] == 0) + first
    taken = 0
    for number, codes in present_chunks(tables):
        where = np.flatnonzero(codes >= limit * grain)[: len(free) - taken]
        moves = [
            Move(int(index) + number, int(codes[index]), int(slot) * grain)
            for index, slot in zip(where, free[taken : taken + len(where)], strict=True)
        ]
        taken += len(moves)
        move(storage, copies, moves, grain)
    return limit * grain


def _limit(used: np.ndarray[tuple[int], np.dtype[np.uint8]], first: int, count: int) -> int:
    """Return the slot behind ``count`` grains that lie together from ``first`` on, around what is held."""
    limit = first + count
    while True:
        held = int(np.count_nonzero(used[first:limit] == 2))
        if first + count + held == limit:
            return limit
        limit = first + count + held


def _move_tables(storage: Device, header: CowdHeader, end: int) -> None:
    """Move tables that lie behind ``end`` up to it; each place is free before it is written, and then durable."""
    directory = cowd_resize.cowd_tables(storage, header).directory
    size, target = layout.COWD_TABLE, layout.round_up(end, SECTOR)
    behind = sorted((int(directory[number]), number) for number in np.flatnonzero(directory >= end).tolist())
    while behind:
        room = (behind[0][0] - target) // size
        if room < 1:  # it would overlap itself
            target = behind.pop(0)[0] + size
            continue
        batch, behind = behind[:room], behind[room:]
        for index, (old, _) in enumerate(batch):
            storage.pwrite(storage.pread(size, old), target + index * size)
        storage.flush()
        for index, (_, number) in enumerate(batch):
            place = (target + index * size) // SECTOR
            storage.pwrite(place.to_bytes(layout.WIDTH, "little"), header.gd_offset + number * layout.WIDTH)
        storage.flush()
        target += len(batch) * size
