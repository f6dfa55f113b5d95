# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where new grains go: to places that were freed, else to the end of the file; and how freed places are given back.

::

    freed in memory ─▶ retired   tables that drop it are durable      (epoch N)
                    ─▶ released  no operation of before runs any more (epoch N + 2)
                    ─▶ punched, and free for other data

The file grows in steps, whose space is reserved where the file system can do that: one system call for many grains,
and they lie together. What is beyond the last grain when the disk is closed is cut off; after a crash it stays, as
space that nothing points at. What the file has grown by reads as zero, which is why a fresh grain need not be written
whole (allocate.py).
"""

from __future__ import annotations

import logging
from collections import deque
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmdkit.errors import VmdkitError
from vmdkit.units import MIB, SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmdkit.device import Device
    from vmdkit.vmdk.epochs import Epochs
    from vmdkit.vmdk.structs import Codes

    Range = tuple[int, int]  # byte addresses: first, behind the last

_log = logging.getLogger(__name__)

HIGHEST: Final = (1 << 32) * SECTOR  # bytes; a pointer has 32 bits of sectors
MOST_RANGES: Final = 1 << 18  # freed ranges remembered, 30 MiB; of what is more the space goes back, not the addresses
_MOST_AHEAD = 64 * MIB  # bytes a file is grown by before they are needed; half of what the session has taken


class Space:
    """The space of one extent file. Not thread-safe: the writer's lock is held, except for ``punch``."""

    def __init__(self, storage: Device, grain: int, end: int, epochs: Epochs) -> None:
        """Take over a file in which nothing from ``end`` (bytes, of whole grains) on is in use."""
        self.end = end
        self._storage = storage
        self._grain = grain
        self._began = end
        self._epochs = epochs
        self._free: list[Range] = []  # a heap: the lowest goes first, so that files stay short
        self._quarantine: deque[tuple[int, Range]] = deque()  # epoch of durable freeing

    def take(self, count: int) -> tuple[int, int, bool]:
        """Return an address, for how many of ``count`` grains it has room, and whether that reads as zero.

        Raises VmdkitError at the end of what pointers can say, OSError where the file cannot grow.
        """
        if self._quarantine:
            self.give_back(self.released())
        if self._free:
            start, end = self._free[0]
            stop = min(end, start + count * self._grain)
            if stop == end:
                heappop(self._free)
            else:
                heapreplace(self._free, (stop, end))
            return start, (stop - start) // self._grain, False
        return self.take_end(count * self._grain), count, True

    def take_end(self, count: int) -> int:
        """Return the address of ``count`` bytes, whole grains, at the end; they read as zero. Raises as ``take``."""
        address, end = self.end, self.end + count
        if end > HIGHEST:
            raise VmdkitError("the extent file has reached the 2 TiB that pointers can say", path=self._storage.name)
        if end > self._storage.size:
            self._grow(end)
        self.end = end
        return address

    def _grow(self, end: int) -> None:
        ahead = min(_MOST_AHEAD, (end - self._began) // 2)
        generous = min(end + ahead - ahead % self._grain, HIGHEST)
        if generous > end:
            try:
                self._storage.resize(generous, reserve=True)
            except OSError:  # perhaps for want of space: then only what is needed
                pass
            else:
                return
        self._storage.resize(end, reserve=True)

    def complete(self) -> None:
        """Make the file end where its last grain does: a cut grain would be overlaid by what is written next."""
        if self._storage.size < self.end:
            self._storage.resize(self.end)

    def cut(self) -> None:
        """Cut off what was grown and not used; where that fails it stays, as after a crash."""
        if self._storage.size > self.end:
            try:
                self._storage.resize(self.end)
            except OSError as error:
                _log.warning("%s: the end cannot be cut off: %s", self._storage.name, error)

    # ── freeing ──────────────────────────────────────────────────────────────────────────────────────────────

    def retire(self, ranges: Iterable[Range]) -> None:
        """Take ranges whose freeing is durable."""
        epoch = self._epochs.advance()
        self._quarantine.extend((epoch, each) for each in ranges)
        while len(self._quarantine) > 2 * MOST_RANGES:
            self._quarantine.popleft()

    def released(self) -> list[Range]:
        """Return ranges that nobody can be using any more; they are the caller's, to be given back."""
        if not self._quarantine:
            return []
        # Each step needs the epoch before to have run empty; where nothing runs, one call takes all of them.
        now = max(self._epochs.advance() for _ in range(3))
        out: list[Range] = []
        while self._quarantine and self._quarantine[0][0] + 2 <= now:
            out.append(self._quarantine.popleft()[1])
        return out

    def give_back(self, ranges: Sequence[Range]) -> None:
        """Take ranges that nobody uses, to be given away again."""
        room = MOST_RANGES - len(self._free)
        if ranges and room > 0:
            self._free.extend(ranges[:room])
            heapify(self._free)

    def punch(self, ranges: Iterable[Range]) -> None:
        """Give the space of ranges, which are the caller's, back to the file system; without the lock.

        That is a favour, not a duty: where it fails, the place can be used again all the same.
        """
        for start, end in ranges:
            try:
                self._storage.trim(end - start, start)
            except OSError as error:
                _log.warning("%s: space cannot be given back: %s", self._storage.name, error)
                return


def joined(addresses: Codes, grain: int) -> list[tuple[int, int]]:
    """Return the ranges that grains at ``addresses`` make up, ascending."""
    if not len(addresses):
        return []
    ordered = np.sort(addresses)
    breaks = np.flatnonzero(np.diff(ordered) != grain) + 1
    firsts = ordered[np.concatenate([[0], breaks])]
    lasts = ordered[np.concatenate([breaks - 1, [len(ordered) - 1]])] + grain
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
