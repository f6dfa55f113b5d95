# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The model disk: what must be read at any place, without storing a byte that can be computed."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from layout import HOLE, ZERO, Segment, fill, grains, parse

STORED = "="  # a piece whose bytes were written as such


class _Piece(NamedTuple):
    start: int
    end: int
    what: str  # a letter, "0", "-" or STORED
    data: bytes = b""


class Model:
    """A disk of ``size`` bytes over a ``parent`` (or over zeros); made from a layout or from a size."""

    def __init__(self, what: str | int, parent: Model | None = None) -> None:
        segments = [Segment(0, what, HOLE)] if isinstance(what, int) else parse(what)
        self._pieces = [_Piece(offset, offset + length, kind) for offset, length, kind in segments if length]
        self.size = self._pieces[-1].end if self._pieces else 0
        self.parent = parent

    def pread(self, count: int, offset: int) -> bytes:
        """Return the bytes a reader must get (argument order as Device.pread)."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise ValueError(f"{count} bytes at {offset} of {self.size}")
        return b"".join(self._bytes_of(piece) for piece in self._cut(offset, offset + count))

    def write(self, data: bytes, offset: int) -> None:
        """Put ``data`` at ``offset``."""
        if data:
            self._replace(_Piece(offset, offset + len(data), STORED, bytes(data)))

    def put(self, what: str, count: int, offset: int) -> None:
        """Put a letter, zeros (``0``) or nothing (``-``) at ``offset``."""
        if count:
            self._replace(_Piece(offset, offset + count, what))

    def segments(self, count: int | None = None, offset: int = 0) -> list[Segment]:
        """Return what this layer holds in a range; offsets count from the begin of the range."""
        end = self.size if count is None else offset + count
        return [Segment(p.start - offset, p.end - p.start, p.what) for p in self._cut(offset, end)]

    def grains(self, grain: int, count: int | None = None, offset: int = 0) -> list[Segment]:
        """Return the runs of grains in a range, see ``layout.grains``."""
        count = self.size - offset if count is None else count
        return grains(self.segments(count, offset), grain, count, child=self.parent is not None)

    def is_zero(self, count: int, offset: int) -> bool:
        """Tell whether a range reads as zeros."""
        return not any(self.pread(count, offset))

    def copy(self) -> Model:
        """Return a model that can be changed without changing this one."""
        other = Model(0, self.parent)
        other._pieces, other.size = list(self._pieces), self.size
        return other

    def _cut(self, start: int, end: int) -> list[_Piece]:
        """Return the pieces of a range, cut to it."""
        out = []
        index = bisect_right(self._pieces, start, key=lambda piece: piece.end)
        while index < len(self._pieces) and self._pieces[index].start < end:
            out.append(_clip(self._pieces[index], start, end))
            index += 1
        return out

    def _replace(self, new: _Piece) -> None:
        if new.start < 0 or new.end > self.size:
            raise ValueError(f"{new.start}..{new.end} of {self.size}")
        self._pieces = [*self._cut(0, new.start), new, *self._cut(new.end, self.size)]

    def _bytes_of(self, piece: _Piece) -> bytes:
        count = piece.end - piece.start
        if piece.what == STORED:
            return piece.data
        if piece.what == HOLE and self.parent is not None:
            inside = max(0, min(count, self.parent.size - piece.start))
            return self.parent.pread(inside, piece.start).ljust(count, b"\0") if inside else bytes(count)
        return fill(piece.what, count, piece.start)


def _clip(piece: _Piece, start: int, end: int) -> _Piece:
    low, high = max(piece.start, start), min(piece.end, end)
    data = piece.data[low - piece.start : high - piece.start] if piece.what == STORED else b""
    return _Piece(low, high, piece.what, data)


__all__ = ["STORED", "ZERO", "Model"]
