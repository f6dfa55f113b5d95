# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say in one line what a disk holds, and compute what must be read from it.

A layout is a list of ``LENGTH:WHAT`` separated by blanks, e.g. ``"64k:A 64k:0 512:- 1M:b"``. WHAT is one of

* ``A`` .. ``Z``: data, compressible; ``a`` .. ``z``: data that deflate cannot shrink
* ``0``: zeros that were written, ``-``: nothing was ever written (the parent shows through, or zeros)

Data depends on its place: every 512 bytes carry their own number, so that swapped or shifted sectors are seen.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SECTOR: Final = 512
HOLE, ZERO, DATA = "-", "0", "A"  # states of a grain
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Segment(NamedTuple):
    """A run of bytes, and what stands there: a letter, ``0`` or ``-``."""

    offset: int
    length: int
    what: str


def parse_length(text: str) -> int:
    """Return the bytes in ``64k``, ``1M``, ``512``; whole sectors only."""
    digits = text.rstrip("kMGT")
    length = int(digits) * _UNITS[text[len(digits) :]]
    if length <= 0 or length % SECTOR:
        raise ValueError(f"{text}: whole sectors are due")
    return length


def parse(text: str) -> list[Segment]:
    """Return the segments of a layout."""
    segments, offset = [], 0
    for word in text.split():
        length, what = word.split(":")
        if len(what) != 1 or not ((what.isascii() and what.isalpha()) or what in "0-"):
            raise ValueError(f"{word}: a letter, 0 or - is due")
        segments.append(Segment(offset, parse_length(length), what))
        offset += segments[-1].length
    return segments


def size_of(text: str) -> int:
    """Return the bytes a layout covers."""
    return sum(segment.length for segment in parse(text))


def sector(letter: str, number: int) -> bytes:
    """Return the 512 bytes that ``letter`` has at sector ``number`` of the disk."""
    if letter.islower():
        return hashlib.shake_128(f"{letter}{number}".encode()).digest(SECTOR)
    return f"{letter}{number:015x}".encode() * (SECTOR // 16)


def fill(letter: str, count: int, offset: int) -> bytes:
    """Return ``count`` bytes of ``letter`` at ``offset`` of the disk; ``0`` and ``-`` are zeros."""
    if letter in "0-":
        return bytes(count)
    first, last = offset // SECTOR, -(-(offset + count) // SECTOR)
    data = b"".join(sector(letter, number) for number in range(first, last))
    skip = offset - first * SECTOR
    return data[skip : skip + count]


def expected_bytes(text: str, parent: bytes | None = None) -> bytes:
    """Return all bytes of a layout, where ``-`` shows ``parent`` (or zeros)."""
    out = bytearray()
    for offset, length, what in parse(text):
        if what == HOLE and parent is not None:
            out += parent[offset : offset + length].ljust(length, b"\0")
        else:
            out += fill(what, length, offset)
    return bytes(out)


def grains(segments: Iterable[Segment], grain: int, size: int, *, child: bool = False) -> list[Segment]:
    """Return the runs of whole grains in state HOLE, ZERO or DATA; the last run ends at ``size``.

    A grain is as its most solid part; but where zeros stand beside a parent's bytes it must be DATA.
    """
    runs: list[Segment] = []

    def push(start: int, end: int, what: str) -> None:
        if runs and runs[-1].what == what:
            start = runs.pop().offset
        runs.append(Segment(start, end - start, what))

    for offset, length, what in segments:
        state = what if what in "0-" else DATA
        start, end = offset // grain * grain, -(-(offset + length) // grain) * grain
        if runs and runs[-1].offset + runs[-1].length > start:  # they share the grain at start
            before = runs.pop()
            if before.offset < start:
                push(before.offset, start, before.what)
            push(start, start + grain, _merge(before.what, state, child=child))
            start += grain
        if start < end:
            push(start, end, state)
    if runs:
        last = runs.pop()
        push(last.offset, size, last.what)
    return runs


def _merge(one: str, other: str, *, child: bool) -> str:
    if one == other:
        return one
    return DATA if child or DATA in (one, other) else ZERO


def expected_extents(text: str, grain: int = SECTOR, *, zeros: str = ZERO) -> list[tuple[int, int, int]]:
    """Return ``(offset, length, flags)`` of a disk without parent, joined; flags are NBD's, HOLE=1 and ZERO=2.

    ``zeros`` says what a subformat makes of a written grain of zeros: DATA (stored), ZERO (a mark) or HOLE (left out);
    a mark takes no space, so it is a hole that reads as zeros, as what is left out.
    """
    flags = {DATA: 0, ZERO: 0 if zeros == DATA else 3, HOLE: 3}
    out: list[tuple[int, int, int]] = []
    for offset, length, what in grains(parse(text), grain, size_of(text)):
        if out and out[-1][2] == flags[what]:
            offset, length = out[-1][0], out[-1][1] + length
            out.pop()
        out.append((offset, length, flags[what]))
    return out
