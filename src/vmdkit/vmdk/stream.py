# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""streamOptimized extents: compressed grains, written once from front to back (format spec 1.8).

::

    layout A   header │ descriptor │ grain grain ... │ GT │ ... │ GD │ footer │ end of stream      (ESX, VirtualBox)
    layout B   header │ descriptor │ GD │ GTs │ grain grain ... │ end of stream     (VDDK, open-vmdk; qemu: no end)

    grain      lba u64 │ length u32 │ zlib data │ zeros up to a sector      lba is missing where markers are off

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
from vmdkit.kernels import inflate, is_zero
from vmdkit.ranges import split
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.extent_file import Doubt
from vmdkit.vmdk.hosted import directory_count, has_redundant, read_header, read_tables
from vmdkit.vmdk.structs import GrainMarker, HostedHeader, Marker
from vmdkit.vmdk.tables import FoundTables, TableExtent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.session import Session
    from vmdkit.vmdk.tables import GrainTables

_CACHE_BYTES = 4 * MIB  # inflated grains kept; 64 of the usual 64 KiB
_FOOTER_SEARCH = 64 * 1024  # bytes before the end of the file in which a footer is looked for
_LENGTH_ONLY = 4  # bytes before the data where markers are off


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
        self._has_lba = bool(header.flags & structs.FLAG_MARKERS)
        self._longest = 2 * header.grain_size + SECTOR  # incompressible data grow a little; no more is sane
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
        """Fill ``view`` from the grains at ``offset``; whole grains bypass the cache."""
        done = 0
        while done < len(view):
            start = offset + done
            skip = start % self.grain
            length = min(self.grain - skip, len(view) - done)
            grain = self._grain(start - skip, keep=length < self.grain)
            piece = grain[skip : skip + length] if skip or len(grain) > length else grain
            view[done : done + len(piece)] = piece
            if len(piece) < length:  # the last grain may be packed short
                view[done + len(piece) : done + length] = bytes(length - len(piece))
            done += length

    def _grain(self, start: int, *, keep: bool) -> bytearray:
        grain = self._cache.get(start)
        if grain is not None:
            return grain
        number, within = divmod(start, self._coverage)
        table = self.tables.table(number)
        address: int = table[within // self.grain] if not isinstance(table, int) else table
        grain = self._inflate(address, start)
        if keep:
            with self._lock:
                self._cache[start] = grain
                if len(self._cache) > self._most:
                    self._cache.popitem(last=False)
        return grain

    def _inflate(self, address: int, start: int) -> bytearray:
        """Read, check and inflate the grain whose marker is at ``address`` and which belongs at ``start``."""
        data, lba = self._packed(address)
        if lba is not None and lba != start:
            raise self._wrong(f"the marker says the grain belongs at {lba:#x}, the table says {start:#x}", address)
        grain = inflate(data, self.grain)
        if grain is None:
            raise self._wrong(f"the {len(data)} bytes do not inflate to a grain of {self.grain}", address)
        return grain

    def _packed(self, address: int) -> tuple[memoryview, int | None]:
        """Return the zlib data of a grain and its own idea of where it belongs."""
        head_size = GrainMarker.size_of() if self._has_lba else _LENGTH_ONLY
        guess = min(head_size + self.grain // 2, self._file.size - address)
        raw = memoryview(self._file.pread(guess, address))
        if guess < head_size:
            raise self._wrong("the file ends inside the marker", address)
        lba = None
        if self._has_lba:
            marker = GrainMarker.unpack(raw)
            lba, length = marker.lba, marker.length
        else:
            length = int.from_bytes(raw[:_LENGTH_ONLY], "little")
        if not 0 < length <= self._longest or address + head_size + length > self._file.size:
            raise self._wrong(f"{length} bytes of compressed data are not possible here", address)
        if head_size + length > guess:
            raw = memoryview(self._file.pread(head_size + length, address))
        return raw[head_size : head_size + length], lba

    def _wrong(self, text: str, address: int) -> CorruptError:
        return CorruptError(text, structure="compressed grain", path=self.path, offset=address)


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
