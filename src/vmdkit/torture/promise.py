# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a client was promised, sector by sector: the law that a state after a power cut is judged by.

A request is *promised* once a flush that was sent after its reply has itself been answered, or its own reply if it
was sent with FUA. At a cut, a sector may hold

* what the last promised request left there, or any request that was not over before that one began;
* nothing older: that would be lost;
* nothing else: that would be damage.

Without any promised request it may also hold what was there before. A trimmed sector may hold zeros or whatever it
held at any time before the trim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.filters.record_writes import FOREVER
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

_WORDS = SECTOR // 8
_ZERO = bytes(SECTOR)


@dataclass(slots=True)
class Request:
    """One request of the client; ``sectors`` maps each sector it touches to what it left there.

    ``sent`` and ``done`` are moments of the recording's clock; ``failed`` requests may have happened in part.
    """

    verb: str
    offset: int = 0
    length: int = 0
    fua: bool = False
    sent: int = 0
    done: int = FOREVER
    failed: bool = False
    sectors: dict[int, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.verb == "flush":
            return "flush"
        return (
            f"{self.verb} {self.length} at {self.offset}{' fua' if self.fua else ''}{' failed' if self.failed else ''}"
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What may stand where: one value for each sector, and further ones for those in ``loose``."""

    sure: NDArray[np.uint64]
    loose: dict[int, frozenset[bytes]]
    promised: frozenset[int]  # sectors that have a promised request
    touched: frozenset[int]  # sectors that any request has been sent for


@dataclass(frozen=True, slots=True)
class Wrong:
    """A sector that holds what it must not."""

    kind: str
    sector: int
    found: bytes


LOST = "lost flushed data"
CHANGED = "untouched data changed"
MIXED = "neither old nor new"


class Promises:
    """The requests of one client over a disk that held ``initial``."""

    def __init__(self, initial: bytes | bytearray, requests: Iterable[Request]) -> None:
        self.initial = np.frombuffer(bytes(initial), dtype=np.uint64).reshape(-1, _WORDS)
        self.requests: list[Request] = list(requests)
        self._history: dict[int, list[Request]] = {}
        for request in self.requests:
            for sector in request.sectors:
                self._history.setdefault(sector, []).append(request)

    def at(self, cut: int) -> Expected:
        """Return what may be found after a cut at this moment."""
        flushed = max(
            (one.sent for one in self.requests if one.verb == "flush" and one.done < cut and not one.failed), default=0
        )
        sure = self.initial.copy()
        loose: dict[int, frozenset[bytes]] = {}
        promised: set[int] = set()
        touched: set[int] = set()
        for sector, history in self._history.items():
            sent = [one for one in history if one.sent < cut]
            if not sent:
                continue
            touched.add(sector)
            kept = [one for one in sent if not one.failed and (one.done < flushed or (one.fua and one.done < cut))]
            if kept:
                promised.add(sector)
            values = self._values(sector, sent, kept)
            first = next(iter(values))
            sure[sector] = np.frombuffer(first, dtype=np.uint64)
            if len(values) > 1:
                loose[sector] = frozenset(values)
        return Expected(sure, loose, frozenset(promised), frozenset(touched))

    def _values(self, sector: int, sent: Sequence[Request], kept: Sequence[Request]) -> dict[bytes, None]:
        """Return the values that a sector may hold, as the keys of a dict: in a fixed order."""
        values: dict[bytes, None] = {}
        earlier: dict[bytes, None] = {self.initial[sector].tobytes(): None}
        if not kept:
            values |= earlier
        last = max((one.sent for one in kept), default=0)
        for one in sent:
            if not one.done < last:
                values[one.sectors[sector]] = None
                if one.verb == "trim":
                    values[_ZERO] = None
                    values |= earlier
            earlier[one.sectors[sector]] = None
        return values


def compare(expected: Expected, content: bytes | bytearray | memoryview) -> list[Wrong]:
    """Return every sector of ``content`` that holds what it must not."""
    found = np.frombuffer(content, dtype=np.uint64).reshape(-1, _WORDS)
    if found.shape != expected.sure.shape:
        return [Wrong(CHANGED, min(len(found), len(expected.sure)), b"")]
    wrong = []
    for sector in np.flatnonzero((found != expected.sure).any(axis=1)).tolist():
        value = found[sector].tobytes()
        if value in expected.loose.get(sector, ()):
            continue
        if sector in expected.promised:
            kind = LOST
        elif sector in expected.touched:
            kind = MIXED
        else:
            kind = CHANGED
        wrong.append(Wrong(kind, sector, value))
    return wrong
