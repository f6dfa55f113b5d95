# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Parts that are made of grains: KDMV, in place or as a stream, and COWD (format spec 1.7 to 1.9).

::

    KDMV   0 magic  4 version  8 flags  12 capacity  20 grain  28 descriptor, its length  44 entries of a table
           48 redundant directory  56 directory  64 overhead  72 unclean  73 "\\n \\r\\n"  77 algorithm
    COWD   0 magic  4 version  8 flags  12 capacity  16 grain  20 directory  24 its entries  28 first free sector

    directory  4 bytes for each table: its sector, 0 for none
    table      4 bytes for each grain: its sector, 0 for none, 1 (with flag 4) for zeros
    in a stream a grain is: lba 8, length 4, zlib
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import FormatError
from vmdkit.units import SECTOR
from vmdkit.witness.part import Held, Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.witness.part import File

_ABSENT, _ZERO = 0, 1
_ZERO_GRAINS, _COMPRESSED, _MARKERS = 4, 1 << 16, 1 << 17
_AT_END = (1 << 64) - 1
_COWD_ENTRIES = 4096
_MOST_TABLES = 500  # kept at once: 1 MiB of usual ones
_LARGEST_GRAIN = 1 << 20  # bytes; no writer of ours makes larger ones


class _Place(NamedTuple):
    """Where the tables are, and what is behind them; bytes but for counts."""

    directory: int
    tables: int
    entries: int
    grain: int
    low: int  # nothing but overhead lies before
    zeros: bool


class Grains(Part):
    """A part with grain tables."""

    _side_by_side = True  # whether grains that follow each other in the file can be read at once

    def __init__(self, length: int, file: File, place: _Place) -> None:
        super().__init__(length)
        if not SECTOR <= place.grain <= _LARGEST_GRAIN or place.grain & (place.grain - 1):
            raise FormatError(f"a grain of {place.grain} bytes", path=file.path)
        if place.tables * place.entries * place.grain < length:
            raise FormatError(f"{place.tables} tables cannot hold {length} bytes", path=file.path)
        self._file = file
        self._place = place
        self._span = place.entries * place.grain
        self._directory = _numbers(file.read(4 * place.tables, place.directory))
        self._kept: dict[int, tuple[int, ...]] = {}

    def read(self, view: memoryview, offset: int) -> None:
        """Read grain by grain, or those that lie side by side at once."""
        done = 0
        while done < len(view):
            at = offset + done
            step, sector = self._run(at, len(view) - done)
            piece = view[done : done + step]
            if sector == _ZERO and self._place.zeros:
                piece[:] = bytes(step)
            else:
                self._read_grains(piece, at, sector * SECTOR)
            done += step

    def _run(self, offset: int, most: int) -> tuple[int, int]:
        """Return how many bytes from ``offset`` on lie side by side in the file, and the sector of their grain."""
        grain = self._place.grain
        length, sector = grain - offset % grain, self._entry(offset)
        if sector == _ZERO and self._place.zeros:
            return min(length, most), sector
        following = sector + grain // SECTOR
        while self._side_by_side and length < most and self._entry(offset + length) == following:
            length, following = length + grain, following + grain // SECTOR
        return min(length, most), sector

    def _entry(self, offset: int) -> int:
        return self._table(offset // self._span)[offset % self._span // self._place.grain]

    def held(self, count: int, offset: int) -> Iterator[Held]:
        """Walk the tables; what they say is joined while it is the same."""
        begin, last, end = offset, -1, offset + count
        for at, entry in self._entries(offset, end):
            state = _ABSENT if not entry else _ZERO if entry == _ZERO and self._place.zeros else 2
            if state != last and at > begin:
                yield Held(begin, at - begin, last == _ZERO, last == _ABSENT)
                begin = at
            last = state
        yield Held(begin, end - begin, last == _ZERO, last == _ABSENT)

    def _entries(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, entry)`` of each grain in a range; of a table that is missing, or all 0, only the first."""
        while offset < end:
            number = offset // self._span
            stop = min(end, (number + 1) * self._span)
            table = self._table(number) if self._directory[number] else ()
            if not any(table):
                yield offset, _ABSENT
            else:
                at = offset
                while at < stop:
                    yield at, table[at % self._span // self._place.grain]
                    at += self._place.grain - at % self._place.grain
            offset = stop

    def _table(self, number: int) -> tuple[int, ...]:
        table = self._kept.get(number)
        if table is None:
            sector = self._directory[number]
            if not sector:
                return (_ABSENT,) * self._place.entries
            table = _numbers(self._file.read(4 * self._place.entries, sector * SECTOR))
            if len(self._kept) >= _MOST_TABLES:
                self._kept.clear()
            self._kept[number] = table
        return table

    def _read_grains(self, view: memoryview, offset: int, at: int) -> None:
        """Fill ``view`` from grains that begin at ``at`` of the file; the first one holds ``offset``."""
        grain, inside = self._place.grain, offset % self._place.grain
        if at < self._place.low or at + -(-(inside + len(view)) // grain) * grain > self._file.size:
            raise FormatError(
                f"the grain at {offset:#x} of this extent cannot be here; the file has {self._file.size} bytes",
                path=self._file.path, offset=at,
            )  # fmt: skip
        self._file.read_into(view, at + inside)


class Stream(Grains):
    """A part whose grains are compressed; each says where it belongs."""

    _side_by_side = False

    def _read_grains(self, view: memoryview, offset: int, at: int) -> None:
        grain = self._place.grain
        first = offset - offset % grain
        lba, length = struct.unpack("<QI", self._file.read(12, at))
        if lba * SECTOR != first or not 0 < length <= 2 * grain + SECTOR:
            raise FormatError(
                f"the marker of the grain at {first:#x} names {lba * SECTOR:#x} and a length of {length}",
                path=self._file.path, offset=at,
            )  # fmt: skip
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(self._file.read(length, at + 12), grain + 1)
        except zlib.error as error:
            raise FormatError(f"the grain cannot be inflated: {error}", path=self._file.path, offset=at) from error
        due = min(grain, self.length - first)
        if not inflater.eof or not due <= len(data) <= grain:
            raise FormatError(f"the grain has {len(data)} bytes, not {due}", path=self._file.path, offset=at)
        view[:] = data[offset - first : offset - first + len(view)]


def grains(length: int, file: File) -> Part:
    """Return the part that a file with tables is; raises FormatError for what is none, or not as we write it."""
    magic = file.read(4, 0)
    if magic == b"KDMV":
        return _hosted(length, file)
    if magic == b"COWD":
        return _cowd(length, file)
    raise FormatError(f"it begins with {magic!r}, which is no magic of an extent", path=file.path)


def _hosted(length: int, file: File) -> Part:
    head = file.read(SECTOR, 0)
    version, flags, capacity, grain = struct.unpack_from("<IIQQ", head, 4)
    stream = bool(flags & _COMPRESSED)
    if stream and struct.unpack_from("<Q", head, 56)[0] == _AT_END:
        head = _footer(head, file)
    entries, _, directory, overhead = struct.unpack_from("<IQQQ", head, 44)
    newlines, algorithm = head[73:77], struct.unpack_from("<H", head, 77)[0]
    sound = version in ((3,) if stream else (1, 2)) and newlines == b"\n \r\n" and algorithm == int(stream)
    if not sound or capacity * SECTOR < length or not 1 <= entries <= _COWD_ENTRIES or not grain:
        raise FormatError("the header is not one that we write", path=file.path, offset=0)
    if bool(flags & _MARKERS) != stream or head[72]:
        raise FormatError("its flags are not those of a disk that was closed", path=file.path, offset=0)
    place = _Place(
        directory * SECTOR,
        -(-capacity // (grain * entries)),
        entries,
        grain * SECTOR,
        overhead * SECTOR,
        bool(flags & _ZERO_GRAINS),
    )
    return Stream(length, file, place) if stream else Grains(length, file, place)


def _footer(head: bytes, file: File) -> bytes:
    """Return the header at the end of a stream; it must agree with the one at the beginning."""
    foot = file.read(SECTOR, file.size - 2 * SECTOR)
    if foot[:56] != head[:56] or any(file.read(SECTOR, file.size - SECTOR)):
        raise FormatError("it ends without a footer and an end of stream", path=file.path, offset=file.size)
    if file.read(16, file.size - 3 * SECTOR) != struct.pack("<QII", 1, 0, 3):
        raise FormatError("the marker of the footer is missing", path=file.path, offset=file.size - 3 * SECTOR)
    return foot


def _cowd(length: int, file: File) -> Part:
    version, _, capacity, grain, directory, count, free = struct.unpack("<7I", file.read(28, 4))
    if free * SECTOR > file.size:
        raise FormatError(f"the file ends before sector {free}, its first free one", path=file.path, offset=file.size)
    if version != 1 or capacity * SECTOR < length:
        raise FormatError("the header is not one that we write", path=file.path, offset=0)
    place = _Place(directory * SECTOR, count, _COWD_ENTRIES, grain * SECTOR, (directory + 1) * SECTOR, zeros=False)
    return Grains(length, file, place)


def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)
