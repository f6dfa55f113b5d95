# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Look for what is wrong in metadata that can be read: both copies of the tables, every pointer (format spec 4.4).

Works on a bounded number of tables at a time; only the search for grains used twice keeps one byte for each grain of
the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.errors import VmdkitError
from vmdkit.units import SECTOR
from vmdkit.vmdk.extent_file import Doubt
from vmdkit.vmdk.hosted import read_tables
from vmdkit.vmdk.structs import CORRUPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.structs import Codes, HostedHeader
    from vmdkit.vmdk.tables import GrainTables

_OUTSIDE = "{} entries of the grain tables point outside the grains of the file; reading there fails"
_AT_ONCE = 256  # tables examined together: 1 MiB of decoded entries
_ADDRESSED = (1 << 32) * SECTOR  # bytes that a pointer of 32 bits can reach
_MOST_GRAINS = (32 << 20) + 1  # places for grains: all of the largest file of 64 KiB grains; smaller ones are rare


def examine_hosted(
    storage: Device, header: HostedHeader, tables: GrainTables, other_directory: int | None
) -> Iterator[Doubt]:
    """Yield doubts about a hosted extent; ``other_directory`` is where the copy not followed has its directory."""
    other = None
    if other_directory is not None:
        try:
            other = read_tables(storage, header, other_directory)
        except VmdkitError as error:
            yield Doubt(f"the other copy of the grain tables cannot be read: {error.message}", storage.name)
    seen = _Seen(storage, header.grain_size)
    first, count = 0, len(tables)
    grains = -(-header.capacity // header.grain_size)  # the last table may have more entries, which mean nothing
    while first < count:
        # Tables that neither copy has hold nothing to look at, and a fresh disk is made of them.
        first = min(copy.next_present(first) for copy in (tables, other) if copy is not None)
        last = min(first + _AT_ONCE, count)
        if first >= last:
            break
        at = first * tables.entries
        code, stop = tables.stretch(first)
        if code == CORRUPT:
            seen.count(_OUTSIDE, min(stop * tables.entries, grains) - at, at)
            first = stop
            continue
        codes = tables.bulk(first, last)[: grains - at]
        seen.look(codes, at)
        if other is not None:
            seen.compare(codes, other.bulk(first, last)[: grains - at], at)
        first = last
    yield from seen.doubts()


class _Seen:
    """What was seen of the pointers of one extent: counts, and the first place of each kind."""

    def __init__(self, storage: Device, grain: int) -> None:
        self._storage = storage
        self._grain = grain
        places = min(storage.size, _ADDRESSED) // grain + 1
        self._used = np.zeros(places, dtype=np.uint8) if places <= _MOST_GRAINS else None
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, int] = {}

    def look(self, codes: Codes, first: int) -> None:
        """Take in entries from number ``first`` on."""
        self._note(_OUTSIDE, codes == CORRUPT, first)
        present = codes >= 0
        self._note("{} grains do not begin at a multiple of the grain", present & (codes % self._grain != 0), first)
        self._note(
            "{} grains are cut off by the end of the file; what is missing reads as zero",
            present & (codes + self._grain > self._storage.size), first,
        )  # fmt: skip
        self._find_shared(codes, present, first)

    def _find_shared(self, codes: Codes, present: np.ndarray[tuple[int], np.dtype[np.bool_]], first: int) -> None:
        if self._used is None:
            return
        where = np.flatnonzero(present)
        slots = codes[where] // self._grain
        _, firsts = np.unique(slots, return_index=True)
        repeated = self._used[slots] > 0
        again = np.ones(len(slots), dtype=bool)
        again[firsts] = False
        shared = np.zeros(len(codes), dtype=bool)
        shared[where[repeated | again]] = True
        self._note("{} entries share a grain with another entry", shared, first)
        self._used[slots] = 1

    def compare(self, codes: Codes, others: Codes, first: int) -> None:
        """Take in entries of both copies."""
        self._note(
            "{} entries differ between the two copies of the grain tables; tools disagree about what they hold",
            codes != others, first,
        )  # fmt: skip

    def _note(self, what: str, wrong: np.ndarray[tuple[int], np.dtype[np.bool_]], first: int) -> None:
        count = int(np.count_nonzero(wrong))
        if count:
            self.count(what, count, first + int(np.argmax(wrong)))

    def count(self, what: str, count: int, first: int) -> None:
        """Take in ``count`` entries of one kind, the first of them entry number ``first``."""
        self._counts[what] = self._counts.get(what, 0) + count
        self._firsts.setdefault(what, first * self._grain)

    def doubts(self) -> Iterator[Doubt]:
        """Yield one doubt for each kind of thing seen."""
        for what, count in self._counts.items():
            yield Doubt(f"{what.format(count)}; the first concerns {self._firsts[what]:#x}", self._storage.name)
        if self._used is None:
            yield Doubt("the file has too many places for grains to look for grains used twice", self._storage.name)
