# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a seSparse extent (format spec 1.10, 4.4).

What its regions, directory and tables say is known; what the free bitmap, the map back and the journal mean is known
in part only, so where these differ from the tables it is noted, not called an error.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.check_findings import Finder
from vmdkit.vmdk.check_grains import Occupancy, Seen, Shape, places_of, present_runs, read_tables
from vmdkit.vmdk.structs import SeSparseHeader, SeSparseVolatile

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_grains import Mask
    from vmdkit.vmdk.structs import Codes

_GRAIN = SeSparseHeader.grain_size
_TABLE = SeSparseHeader.table_size
_ENTRIES = 4096
_MOST_TABLES = 1 << 23
_REGIONS = ("volatile", "journal_header", "journal", "gd", "tables", "bitmap", "backmap", "grains")
_TEXTS = {
    "gte-invalid": "{} entries of the grain tables are of no known kind; reading there fails",
    "gte-beyond-eof": "{} entries of the grain tables lead behind the region of grains; reading there fails",
    "gte-shared": "{} entries share a grain with another entry",
    "sesparse-bitmap": "{} grains in use are free in the bitmap",
    "sesparse-backmap": "{} grains in use have another owner in the map back",
}
_ERRORS = ("gte-invalid", "gte-beyond-eof", "gte-shared")


class SeSparseCheck(Finder):
    """One look at a seSparse extent."""

    def __init__(self, storage: Device) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self.header: SeSparseHeader | None = None
        self.grains = 0
        self.leaked = 0
        self._seen = Seen()

    def run(self) -> SeSparseCheck:
        """Look at everything; findings are in ``findings`` afterwards."""
        header = self._check_header()
        if header is None:
            return self
        self.header = header
        self._check_volatile(header)
        directory = self._directory(header)
        if directory is not None:
            self._check_entries(header, directory)
        return self

    def _check_header(self) -> SeSparseHeader | None:
        storage = self.storage
        if storage.size < SeSparseHeader.size_of():
            self.error("header-short", f"the file has {storage.size} bytes, less than a header")
            return None
        header = SeSparseHeader.unpack(storage.pread(SeSparseHeader.size_of(), 0), path=storage.name)

        def wrong(field: str, code: str, text: str) -> None:
            self.error(code, text, structure="SeSparseHeader", offset=header.offset_of(field))

        if header.magic != structs.SESPARSE_MAGIC:
            wrong("magic", "header-magic", f"{header.magic:#x} where {structs.SESPARSE_MAGIC:#x} is due")
            return None
        if header.version != structs.SESPARSE_VERSION or header.flags:
            self.unsupported(f"version {header.version:#x} with flags {header.flags:#x}; only 2.1 without is known")
            return None
        if header.grain_size != _GRAIN:
            wrong("grain_size", "header-grain", f"a grain of {header.grain_size} bytes; {_GRAIN} are due")
        if header.table_size != _TABLE:
            wrong("table_size", "header-entries", f"a grain table of {header.table_size} bytes; {_TABLE} are due")
        self._check_regions(header)
        return header if self.is_sound() else None

    def _check_regions(self, header: SeSparseHeader) -> None:
        regions = [(name, *_region(header, name)) for name in _REGIONS]
        for name, start, length in regions:
            # Of the grains, only those in use have to be there: thin files may end early.
            if start > self.storage.size or (name != "grains" and start + length > self.storage.size):
                self.error(
                    "sesparse-region", f"the region {name}, {length} bytes at {start:#x}, leaves the file of "
                    f"{self.storage.size}", structure="SeSparseHeader", offset=header.offset_of(f"{name}_offset"),
                )  # fmt: skip
        ordered = sorted((start, start + length, name) for name, start, length in regions if length)
        for (_, end, name), (start, _, other) in pairwise(ordered):
            if start < end:
                self.error(
                    "metadata-overlap", f"the regions {name} and {other} overlap", structure="SeSparseHeader",
                    offset=header.offset_of(f"{other}_offset"),
                )  # fmt: skip

    def _check_volatile(self, header: SeSparseHeader) -> None:
        at = header.volatile_offset
        volatile = SeSparseVolatile.unpack(self.storage.pread(SeSparseVolatile.size_of(), at), path=self.path)
        if volatile.magic != structs.SESPARSE_VOLATILE_MAGIC:
            self.error(
                "sesparse-volatile", f"{volatile.magic:#x} where {structs.SESPARSE_VOLATILE_MAGIC:#x} is due",
                structure="SeSparseVolatile", offset=at,
            )  # fmt: skip
        elif volatile.replay_journal:
            self.error(
                "sesparse-journal", "its journal has not been replayed, so its tables are not current",
                structure="SeSparseVolatile", offset=at + SeSparseVolatile.offset_of("replay_journal"),
                remedy="open and close it on its ESX host",
            )  # fmt: skip

    def _directory(self, header: SeSparseHeader) -> Codes | None:
        count = -(-header.capacity // (_ENTRIES * _GRAIN))
        if count > _MOST_TABLES or count * 8 > header.gd_size:
            self.error(
                "header-capacity", f"{header.capacity} bytes need {count} directory entries; the region has "
                f"{header.gd_size} bytes", structure="SeSparseHeader", offset=header.offset_of("capacity"),
            )  # fmt: skip
            return None
        raw = self.storage.pread(count * 8, header.gd_offset)
        codes = structs.decode_sesparse_directory(
            raw, tables_offset=header.tables_offset, table_size=_TABLE,
            high=min(self.storage.size, header.tables_offset + header.tables_size),
        )  # fmt: skip
        bad = codes == structs.CORRUPT
        if bad.any():
            self.error(
                "gde-invalid", f"{int(np.count_nonzero(bad))} directory entries lead to no table",
                structure="grain directory", offset=header.gd_offset + 8 * int(np.argmax(bad)),
            )  # fmt: skip
        present = codes[codes >= 0]
        if len(np.unique(present)) != len(present):
            self.error(
                "gde-shared", "directory entries share a table", structure="grain directory", offset=header.gd_offset
            )
        return np.maximum(codes, 0)

    def _check_entries(self, header: SeSparseHeader, directory: Codes) -> None:
        shape, first = _shape(self.storage, header), 0
        span = min(header.grains_size, max(self.storage.size - header.grains_offset, 0))
        while True:
            taken = Occupancy(span, _GRAIN, first=first)
            for low, high in present_runs(self.storage, shape, directory):
                self._look(header, directory[low:high], low, taken, is_first=first == 0)
            if taken.is_last:
                break
            first += taken.count
        for code, count in self._seen.counts.items():
            place, guest = self._seen.firsts[code]
            text = f"{_TEXTS[code].format(count)}; the first concerns {guest:#x}"
            (self.error if code in _ERRORS else self.note)(code, text, structure="grain table", offset=place)

    def _look(self, header: SeSparseHeader, addresses: Codes, low: int, taken: Occupancy, *, is_first: bool) -> None:
        shape = _shape(self.storage, header)
        entries = np.frombuffer(read_tables(self.storage, shape, addresses), dtype="<u8")
        entries = entries[: shape.grains - low * _ENTRIES]
        where = np.flatnonzero(entries)
        values = entries[where]
        places, guests = places_of(addresses, shape, where), (where + low * _ENTRIES) * _GRAIN
        kind = values >> np.uint64(60)
        mapped = np.flatnonzero(kind == 3)
        wide = values[mapped]
        low12 = (wide >> np.uint64(48)) & np.uint64(0xFFF)
        above = wide & np.uint64(0xFFFFFFFFFFFF)
        far = above >= np.uint64(1 << 40)
        index = (low12 | (np.where(far, np.uint64(0), above) << np.uint64(12))).astype(np.int64)
        inside = (
            ~far & (index * _GRAIN < header.grains_size) & (index * _GRAIN + header.grains_offset < self.storage.size)
        )
        if is_first:
            self.grains += len(mapped)
            self._seen.note("gte-invalid", np.flatnonzero((kind == 0) | (kind > 3)), places, guests)
            self._seen.note("gte-beyond-eof", mapped[~inside], places, guests)
            owner = (addresses[where // _ENTRIES] - header.tables_offset) // _TABLE * _ENTRIES + where % _ENTRIES
            good = mapped[inside]
            self._compare(header, good, index[inside], owner[good], (places, guests))
        shared = taken.take(index[inside] * _GRAIN, _GRAIN)
        self._seen.note("gte-shared", mapped[inside][shared], places, guests)

    def _compare(
        self, header: SeSparseHeader, where: Codes, index: Codes, owner: Codes, at: tuple[Codes, Codes]
    ) -> None:
        """Compare the free bitmap and the map back with the entries, as far as both are there."""
        if not len(index):
            return
        first, last = int(index.min()), int(index.max()) + 1
        if last > 8 * header.bitmap_size or last * 8 > header.backmap_size or last - first > 8 * len(index) + SECTOR:
            return  # strewn: reading what lies between would cost more than it tells
        bits = np.frombuffer(
            self.storage.pread(last // 8 - first // 8 + 1, header.bitmap_offset + first // 8), np.uint8
        )
        is_free: Mask = (bits[index // 8 - first // 8] >> (index % 8).astype(np.uint8)) & 1 == 0
        self._seen.note("sesparse-bitmap", where[is_free], *at)
        owners = np.frombuffer(self.storage.pread((last - first) * 8, header.backmap_offset + first * 8), "<u8")
        other = owners[index - first].astype(np.int64) != owner
        self._seen.note("sesparse-backmap", where[other], *at)


def _region(header: SeSparseHeader, name: str) -> tuple[int, int]:
    return getattr(header, f"{name}_offset"), getattr(header, f"{name}_size")


def _shape(storage: Device, header: SeSparseHeader) -> Shape:
    return Shape(_GRAIN, _ENTRIES, storage.size, -(-header.capacity // _GRAIN), width=8)
