# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""streamOptimized extents: compressed grains, written once from front to back (format spec 1.8).

::

    layout A   header │ descriptor │ grain grain ... │ GT │ ... │ GD │ footer │ end of stream      (ESX, VirtualBox)
    layout B   header │ descriptor │ GD │ GTs │ grain grain ... │ end of stream     (VDDK, open-vmdk; qemu: no end)

Grains are read and inflated by packed.py; here is where they are.

A directory at 2^64-1 means layout A: the true header is the footer, and wins. Without a footer the transfer was cut
off; what is there can be salvaged by walking the grains, since each says where it belongs.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.device import ExtentFlags
from vmdkit.errors import CorruptError, FormatError, UnsupportedError
from vmdkit.kernels import is_zero
from vmdkit.ranges import split
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.extent_file import Doubt, RunKind
from vmdkit.vmdk.hosted import directory_count, has_redundant, read_header, read_tables
from vmdkit.vmdk.packed import PackedGrains
from vmdkit.vmdk.structs import GrainMarker, HostedHeader, Marker
from vmdkit.vmdk.tables import FoundTables, TableExtent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.tables import GrainTables

_CACHE_BYTES = 4 * MIB  # inflated grains kept; 64 of the usual 64 KiB
_FOOTER_SEARCH = 64 * 1024  # bytes before the end of the file in which a footer is looked for


class StreamExtent(TableExtent):
    """A compressed extent."""

    def __init__(
        self, storage: Device, header: HostedHeader, *, kind: str, salvage: bool = False, redundant: bool = False
    ) -> None:
        doubts: list[Doubt] = []
        tables: GrainTables
        if salvage:
            tables = _salvage(storage, header, doubts)
        else:
            if header.gd_offset == structs.GD_AT_END:
                header = _read_footer(storage, header, doubts)
            if redundant and not has_redundant(header):
                raise UnsupportedError("there is no redundant grain directory to follow", path=storage.name)
            tables = read_tables(storage, header, header.rgd_offset if redundant else header.gd_offset)
        super().__init__(header.capacity, storage, tables, grain=header.grain_size, kind=kind, compressed=True)
        self.header = header
        self.doubts += doubts
        self._packed = PackedGrains(storage, header.grain_size, has_lba=bool(header.flags & structs.FLAG_MARKERS))
        self._cache: OrderedDict[int, bytearray] = OrderedDict()
        self._most = max(1, _CACHE_BYTES // header.grain_size)
        self._lock = threading.Lock()

    def open_for_writing(self, session: Session) -> None:
        """Refuse."""
        raise UnsupportedError(
            "a stream is written once, from front to back; convert it to a sparse or flat disk to change it",
            path=self.path,
        )

    def facts(self) -> dict[str, object]:
        """Add what the header says."""
        header = self.header
        return {
            **super().facts(),
            "version": header.version,
            "grain": header.grain_size,
            "flags": f"{header.flags:#x}",
            "compressed": True,
        }

    def allocated(self) -> int:
        """Return the bytes of the file: compressed grains have no other size that means something."""
        return self._file.size

    def inflate_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from the grains at ``offset``: many whole ones at once, parts of one through the cache."""
        grain, done, count = self.grain, 0, len(view)
        while done < count:
            at = offset + done
            skip = at % grain
            whole = 0 if skip else (count - done) // grain
            if whole > 1:
                done += self._many(view[done:], at, whole)
                continue
            length = min(grain - skip, count - done)
            _place(self._one(at - skip, keep=length < grain), skip, view[done : done + length])
            done += length

    def _many(self, view: memoryview, start: int, count: int) -> int:
        """Inflate up to ``count`` grains at ``start``; returns how many bytes, which end with the table at the latest.

        They bypass the cache: whoever reads so much reads it once.
        """
        addresses, following = self._addresses(start, count)
        done = 0
        for grain in self._packed.grains(addresses, start, following):
            _place(grain, 0, view[done : done + self.grain])
            done += self.grain
        return done

    def _one(self, start: int, *, keep: bool) -> bytearray:
        """Return the grain that belongs at ``start``; ``keep`` it where more of it may be wanted soon."""
        cache = self._cache
        with self._lock:
            grain = cache.get(start)
            if grain is not None:
                cache.move_to_end(start)
                return grain
        addresses, following = self._addresses(start, 1)
        grain = next(self._packed.grains(addresses, start, following))
        if keep:
            with self._lock:
                cache[start] = grain
                if len(cache) > self._most:
                    cache.popitem(last=False)
        return grain

    def _addresses(self, start: int, count: int) -> tuple[list[int], int]:
        """Return where up to ``count`` grains from ``start`` on are, as far as their table goes, and the one after."""
        number, within = divmod(start, self._coverage)
        table = self.tables.table(number)
        if isinstance(table, int):
            raise self.refusal(start, RunKind.CORRUPT)
        first = within // self.grain
        found: list[int] = table[first : first + count + 1].tolist()
        return (found[:count], found[count]) if len(found) > count else (found, -1)


def _place(grain: bytearray, skip: int, view: memoryview) -> None:
    """Copy a grain from ``skip`` on into ``view``; what it lacks, as the last grain may, is zero."""
    length = len(view)
    piece = grain[skip : skip + length] if skip or len(grain) > length else grain
    view[: len(piece)] = piece
    if len(piece) < length:
        view[len(piece) :] = bytes(length - len(piece))


def _read_footer(storage: Device, header: HostedHeader, doubts: list[Doubt]) -> HostedHeader:
    """Find the footer at the end of the file and check that it belongs to the header (users spec, A10)."""
    at = find_footer(storage)
    if at is None:
        raise FormatError(
            "the stream has no footer: the file was probably cut off on its way; "
            "copy it again, or read what is there with --salvage",
            path=storage.name,
            offset=storage.size,
        )
    footer = read_header(storage, at)
    for field in ("version", "capacity", "grain_size", "table_entries", "flags"):
        ours, theirs = getattr(header, field), getattr(footer, field)
        if ours != theirs:
            raise CorruptError(
                f"{field} is {theirs} in the footer and {ours} in the header",
                structure="footer",
                path=storage.name,
                offset=at + footer.offset_of(field),
            )
    if footer.gd_offset == structs.GD_AT_END:
        raise CorruptError(
            "the footer does not say where the grain directory is",
            structure="footer", path=storage.name, offset=at + footer.offset_of("gd_offset"),
        )  # fmt: skip
    if at != storage.size - 2 * SECTOR:
        doubts.append(Doubt("the footer is not the last sector but one; something follows it", storage.name, at))
    return footer


def find_footer(storage: Device) -> int | None:
    """Return where the footer's header is: the last sector that holds anything, with its marker before it.

    The end-of-stream marker and any padding are zeros. Nothing else may follow: a stored grain holds sectors of the
    guest, who could plant a footer there and wait for the file to be cut off.
    """
    start = max(0, storage.size - _FOOTER_SEARCH)
    start -= start % SECTOR
    tail = storage.pread(storage.size - start, start)
    at = (len(tail.rstrip(b"\0")) - 1) // SECTOR * SECTOR
    if at < SECTOR or len(tail) - at < SECTOR or not tail.startswith(structs.HOSTED_MAGIC, at):
        return None
    marker = Marker.unpack(tail, at - SECTOR)
    return start + at if marker.type == structs.MARKER_FOOTER and not marker.length else None


def _salvage(storage: Device, header: HostedHeader, doubts: list[Doubt]) -> GrainTables:
    """Put the tables together from the grain markers, as far as the file goes."""
    if not header.flags & structs.FLAG_MARKERS:
        raise FormatError("the stream has no grain markers, so it cannot be salvaged", path=storage.name)
    count, entries, grain = directory_count(header, storage.name), header.table_entries, header.grain_size
    grains, addresses = array("q"), array("q")
    walk = _Walk(storage, header)
    for address, lba in walk:
        grains.append(lba // grain)
        addresses.append(address)
    where, order = np.unique(np.array(grains, dtype=np.int64), return_index=True)
    text = f"salvaged {len(where)} grains; {walk.reason}"
    if walk.zeros:
        text += f"; {walk.zeros} bytes of zeros were stepped over"
    if grains:
        text += f"; nothing after {(int(where[-1]) + 1) * grain:#x} of the disk was found"
    doubts.append(Doubt(f"{text}; what was not found reads as zero", storage.name, walk.at))
    return FoundTables(storage, where, np.array(addresses, dtype=np.int64)[order], count=count, entries=entries)


class _Walk:
    """From marker to marker: yields (address, where it belongs) of each grain; ``reason`` says why it ended."""

    def __init__(self, storage: Device, header: HostedHeader) -> None:
        self._storage = storage
        self._header = header
        text_end = header.descriptor_offset + header.descriptor_size
        self.at = header.overhead if SECTOR <= header.overhead <= storage.size else max(SECTOR, text_end)
        self.zeros = 0  # bytes in which there were no markers, though some came after
        self.reason = ""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while not self.reason:
            lba = self._look()
            if lba is None:
                continue
            if lba % self._header.grain_size or lba >= self._header.capacity:
                self.reason = f"a grain claims to belong at {lba:#x}, where none can be"
                return
            yield self.at, lba
            self.at = _after(self._storage, self.at)

    def _look(self) -> int | None:
        """Look at one marker; where it is a grain's, return where that belongs, else step on or give the reason."""
        storage, at = self._storage, self.at
        head = storage.pread(min(SECTOR, storage.size - at), at) if at < storage.size else bytearray()
        if len(head) < GrainMarker.size_of():
            self.reason = "the file ends here, without an end-of-stream marker"
            return None
        marker = GrainMarker.unpack(head)
        if marker.length:
            if marker.length > 2 * self._header.grain_size + SECTOR:
                self.reason = f"a marker speaks of {marker.length} bytes, so it is none"
            elif at + GrainMarker.size_of() + marker.length > storage.size:
                self.reason = "the file ends inside a grain"
            return None if self.reason else marker.lba
        if is_zero(head):
            self._step_over_zeros()
        elif len(head) < SECTOR:
            self.reason = "the file ends inside a marker"
        else:
            self._step_over(Marker.unpack(head))
        return None

    def _step_over_zeros(self) -> None:
        """Go on where anything stands again: the end-of-stream marker is zeros, and so are sectors that were lost."""
        following = _first_not_zero(self._storage, self.at)
        if following is None:
            self.reason = "the end-of-stream marker was reached"
            return
        self.zeros += following - self.at
        self.at = following

    def _step_over(self, marker: Marker) -> None:
        skip = 0 if marker.type == structs.MARKER_PROGRESS else marker.following
        if marker.type == structs.MARKER_EOS and not skip:
            self.reason = "the end-of-stream marker was reached"
        elif skip > self._storage.size - self.at:
            self.reason = f"a marker of type {marker.type} speaks of {skip} bytes, more than there are"
        self.at += SECTOR + skip if not self.reason else 0


def _first_not_zero(storage: Device, at: int) -> int | None:
    """Return the first sector from ``at`` on that is not empty, None if all are; holes cost nothing."""
    for run in storage.extents(storage.size - at, at):
        if run.flags & ExtentFlags.ZERO:
            continue
        for offset, length in split(run.offset, run.length, MIB):
            data = storage.pread(length, offset)
            if not is_zero(data):
                found = offset + length - len(data.lstrip(b"\0"))
                return found - found % SECTOR
    return None


def _after(storage: Device, at: int) -> int:
    """Return where the next marker is, behind the grain at ``at``."""
    length = GrainMarker.unpack(storage.pread(GrainMarker.size_of(), at)).length
    return at + -(-(GrainMarker.size_of() + length) // SECTOR) * SECTOR
