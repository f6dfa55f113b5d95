# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write a streamOptimized disk from its first byte to its last, without ever seeking (format spec 1.8, layout A).

::

    header │ descriptor, padded │ ≤ 512 grains │ marker, GT │ grains │ marker, GT │ ... │ marker, GD │ marker, footer │
    version 3, flags 0x30001, gdOffset 2^64-1, no redundant directory              end of stream │    true gdOffset

Grains of zeros are left out, and tables without grains. Each grain is deflated whole: the last one is filled up with
zeros, as VMware does. Nothing depends on what comes later, so the output may be a pipe or a member of an archive;
nothing depends on the time or the machine either, and with a given content ID not on chance: the same disk gives
the same bytes.

A ``StreamWriter`` is a Sink (``ops/sink.py``): ``pack`` deflates in any number of threads, the rest is called in order.
Until ``finish`` has returned, what was written has no footer, and every reader takes it for cut off.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from vmdkit import kernels
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ranges import split
from vmdkit.units import KIB, MIB, SECTOR, TIB, format_size
from vmdkit.vmdk import layout, structs
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.descriptor_edit import new_content_id
from vmdkit.vmdk.descriptor_text import NewLine, new_long_id, render
from vmdkit.vmdk.hardware import check_hardware, hardware_lines
from vmdkit.vmdk.structs import GrainMarker, HostedHeader, Marker, encode_sectors

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_FILE = 2 * TIB  # bytes: the entries of the tables count sectors in 32 bits
_MOST_TABLES = 4 * MIB  # entries of the directory; no reader takes more (vmdk/hosted.py)
_CID = re.compile(r"[0-9a-f]{1,8}", re.IGNORECASE)
_RESERVED_CIDS = (0xFFFFFFFF, 0xFFFFFFFE, 0)  # "none", "never written" (format spec 1.3), and what VDDK leaves


class Output(Protocol):
    """Where bytes are appended, each time all that are given."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of ``data``, or raise OSError."""


@dataclass(frozen=True, slots=True)
class StreamRecipe:
    """What the stream shall be like.

    ``grain`` in bytes, a power of two from 4 KiB to 1 MiB; VMware's own programs read up to the usual 64 KiB.
    ``level`` is one of ``kernels.LEVELS``, FAST or STORED. ``area`` (bytes, whole sectors) is reserved for the
    descriptor. ``cid`` (hexadecimal) fixes the content ID, else it is random; the long content ID follows it.
    ``uuid`` is sixteen bytes in hexadecimal; without it there is none, as in the streams of ESX.
    """

    adapter: str = "lsilogic"
    hwversion: str = "10"
    grain: int = layout.HOSTED_GRAIN
    level: int = kernels.LEVEL
    area: int = layout.DESCRIPTOR_AREA
    cid: str | None = None
    uuid: str | None = None

    def check(self, size: int) -> None:
        """Raise UsageError for what the format does not allow, for a disk of ``size`` bytes."""
        check_hardware(self.adapter, self.hwversion)
        layout.check_grain(self.grain, 4 * KIB)
        if self.level not in (kernels.FAST, kernels.STORED, *kernels.LEVELS):
            raise UsageError(f"level {self.level}; {kernels.LEVELS[0]} (fast) to {kernels.LEVELS[-1]} (small) are due")
        if self.area < SECTOR or self.area % SECTOR or self.area > MIB:
            raise UsageError(f"{self.area} bytes for the descriptor; whole sectors up to 1 MiB are due")
        if size < 1:
            raise UsageError("a disk needs at least one byte")
        most = _MOST_TABLES * layout.HOSTED_ENTRIES * self.grain
        if size > most:
            raise UsageError(f"a stream with grains of {format_size(self.grain)} holds at most {format_size(most)}")

    def text(self, size: int, name: str) -> bytes:
        """Return the descriptor of a disk of ``size`` bytes in a file called ``name``; raises UsageError."""
        cid = new_content_id(NO_CID) if self.cid is None else _checked_cid(self.cid)
        ddb = hardware_lines(size, self.adapter, self.hwversion)
        ddb["longContentID"] = new_long_id(cid) if self.cid is None else _long_id(cid)
        if self.uuid is not None:
            ddb["uuid"] = _checked_uuid(self.uuid)
        line = NewLine(size, "SPARSE", name, access="RDONLY")
        text = render("streamOptimized", [line], ddb, cid=cid)
        if len(text) > self.area:
            raise UsageError(f"the descriptor has {len(text)} bytes; {self.area} are reserved for it")
        return text


class Grains(NamedTuple):
    """Packed grains of one table: their numbers in it, and where each begins in ``data``, whole sectors."""

    table: int
    entries: Sequence[int]
    places: Sequence[int]
    data: bytes


class StreamWriter:
    """Writes a disk of ``size`` bytes to ``output``; a size that is no whole number of sectors is rounded up.

    ``name`` is what the descriptor says the file is called: some readers refuse another (format spec 1.5).
    ``written`` counts the bytes, ``grains`` those that are stored. Raises UsageError for what the recipe cannot be.
    """

    def __init__(
        self, output: Output, size: int, recipe: StreamRecipe = StreamRecipe(), *, name: str = "stream.vmdk"
    ) -> None:
        recipe.check(size)
        capacity = layout.round_up(size, SECTOR)
        self.header = HostedHeader(
            version=3,  # older ones are "too old" for ESX (format spec 1.8)
            flags=structs.FLAG_NEWLINES | structs.FLAG_COMPRESSED | structs.FLAG_MARKERS,
            capacity=capacity,
            grain_size=recipe.grain,
            descriptor_offset=SECTOR,
            descriptor_size=recipe.area,
            gd_offset=structs.GD_AT_END,
            overhead=layout.round_up(SECTOR + recipe.area, recipe.grain),
            compression=structs.DEFLATE_ALGORITHM,
        )
        self.written = 0
        self.grains = 0
        self._text = recipe.text(capacity, name)
        self._output = output
        self._level = recipe.level
        self._grain = recipe.grain
        self._coverage = recipe.grain * layout.HOSTED_ENTRIES  # bytes of the disk that one table describes
        self._directory = np.full(layout.table_count(self.header), structs.UNALLOCATED, dtype=np.int64)
        self._table = np.full(layout.HOSTED_ENTRIES, structs.UNALLOCATED, dtype=np.int64)
        self._number = 0  # of the table whose grains are being written

    @property
    def granularity(self) -> int:
        """Return the bytes of a grain."""
        return self._grain

    def pack(self, offset: int, view: memoryview, /) -> list[Grains]:
        """Deflate the grains of ``view`` that are not zero; any number of threads may do so at once."""
        if offset % self._grain:
            raise UsageError(f"{offset:#x} is not where a grain of {self._grain} bytes begins")
        if offset + len(view) > self.header.capacity:
            raise UsageError(f"{len(view)} bytes at {offset} leave the disk, which has {self.header.capacity}")
        packed = (
            self._pack_grains(start, view[start - offset : start - offset + length])
            for start, length in split(offset, len(view), self._coverage)
        )
        return [grains for grains in packed if grains.entries]

    def _pack_grains(self, offset: int, view: memoryview) -> Grains:
        grain = self._grain
        number, first = divmod(offset, self._coverage)
        entries: list[int] = []
        places: list[int] = []
        pieces: list[bytes | bytearray] = []
        at = 0
        for begin in range(0, len(view), grain):
            data = view[begin : begin + grain]
            if kernels.is_zero(data):
                continue
            packed = kernels.compress(data if len(data) == grain else bytes(data).ljust(grain, b"\0"), self._level)
            head = GrainMarker(lba=offset + begin, length=len(packed)).pack()
            length = len(head) + len(packed)
            entries.append((first + begin) // grain)
            places.append(at)
            pieces += head, packed, kernels.ZEROS[: -length % SECTOR]
            at += length + -length % SECTOR
        return Grains(number, entries, places, b"".join(pieces))

    def put(self, packed: list[Grains], /) -> None:
        """Append what ``pack`` has made; in the order of the disk.

        Raises UnsupportedError where the tables could no longer point to it, UsageError where the order is another,
        and what the output raises.
        """
        for grains in packed:
            if grains.table != self._number:
                self._end_table(grains.table)
            if not self.written:
                self._begin()
            self._check_end(self.written + len(grains.data))
            entries = np.asarray(grains.entries)
            if entries[0] <= self._last_entry():
                raise UsageError("grains must be written in the order of the disk, each once")
            self._table[entries] = self.written + np.asarray(grains.places, dtype=np.int64)
            self.grains += len(grains.entries)
            self._write(grains.data)

    def zeros(self, offset: int, length: int, /) -> None:
        """Leave a run out; what is not there reads as zero."""

    def finish(self) -> None:
        """Write the last table, the directory, the footer and the end of the stream."""
        if not self.written:
            self._begin()
        self._end_table(len(self._directory))
        directory = encode_sectors(self._directory)
        directory += bytes(-len(directory) % SECTOR)
        self._write(Marker(following=len(directory), type=structs.MARKER_GD).pack())
        self.header.gd_offset = self.written
        self._write(directory)
        footer = Marker(following=self.header.size_of(), type=structs.MARKER_FOOTER).pack() + self.header.pack()
        self._write(footer + Marker(type=structs.MARKER_EOS).pack())

    def _begin(self) -> None:
        """Write header and descriptor; the room up to the first grain is zeros."""
        head = self.header.pack() + self._text
        self._write(head.ljust(self.header.overhead, b"\0"))

    def _last_entry(self) -> int:
        """Return the number of the newest grain in the table being written, -1 where there is none."""
        taken = np.flatnonzero(self._table >= 0)
        return int(taken[-1]) if len(taken) else -1

    def _end_table(self, following: int) -> None:
        """Write the table whose grains were written, if there are any, and go on to another."""
        if following < self._number:
            raise UsageError("grains must be written in the order of the disk, each once")
        if self._last_entry() >= 0:
            table = encode_sectors(self._table)
            self._write(Marker(following=len(table), type=structs.MARKER_GT).pack())
            self._check_end(self.written + len(table))
            self._directory[self._number] = self.written
            self._write(table)
            self._table[:] = structs.UNALLOCATED
        self._number = following

    def _write(self, data: bytes) -> None:
        self._output.write(data)
        self.written += len(data)

    def _check_end(self, end: int) -> None:
        if end > _MOST_FILE:
            raise UnsupportedError(
                "the stream would be longer than 2 TiB, further than its tables can point; "
                "a smaller --level, or a flat or split format, may hold this disk"
            )


def _checked_cid(text: str) -> int:
    if not _CID.fullmatch(text) or int(text, 16) in _RESERVED_CIDS:
        raise UsageError(f"content ID {text!r}; up to eight hexadecimal digits are due, not all 0 or F, nor fffffffe")
    return int(text, 16)


def _long_id(cid: int) -> str:
    """Return a long content ID that depends on the short one only, which is its end (format spec 1.3)."""
    return hashlib.sha256(b"vmdkit %08x" % cid).hexdigest()[:24] + f"{cid:08x}"


def _checked_uuid(text: str) -> str:
    """Return sixteen bytes as VMware writes them: by blanks, with a dash in the middle (format spec 1.6)."""
    try:
        raw = bytes.fromhex(re.sub(r"[\s{}-]", "", text))
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise UsageError(f"UUID {text!r}; sixteen bytes in hexadecimal are due")
    return f"{raw[:8].hex(' ')}-{raw[8:].hex(' ')}"
