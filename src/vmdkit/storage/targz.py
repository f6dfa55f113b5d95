# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A disk as the one member of a gzip'd tar in the oldgnu form, holes left out: what Google Cloud imports.

It is what ``tar --format=oldgnu -Sczf`` makes of a sparse ``disk.raw``, in one pass and on all cores::

    gzip head │ header: disk.raw, type S, where the data are │ more of that │ data, run by run │ padding │ gzip tail
              └──────────────────────── one deflate stream, flushed after each piece ────────────┘

Facts: gzip is RFC 1952, deflate RFC 1951; the header is GNU tar's "old GNU format" (its manual, "Basic Tar Format" and
"Storing Sparse Files"). Pieces are deflated apart from each other, and their checksums joined by the arithmetic of
their polynomial, as zlib does it.
"""

from __future__ import annotations

import tarfile
from array import array
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from isal import isal_zlib

from vmdkit.errors import UsageError, VmdkitError
from vmdkit.units import MIB, SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LEVEL: Final = 2  # ISA-L's; as small as zlib's first, and several times as fast
_GZIP_HEAD: Final = bytes.fromhex("1f8b 08 00 00000000 00 ff")  # deflate, no name, no time, system unknown
_LAST_BLOCK: Final = b"\x03\x00"  # an empty block that says that it is the last
_BLOCK: Final = SECTOR  # bytes of a tar block; a coincidence of numbers
_RECORD: Final = 20 * _BLOCK
_SPARSE_AT, _IN_HEADER, _IN_BLOCK, _EXTENDED_AT, _REAL_SIZE_AT = 386, 4, 21, 482, 483
_NUMBER = 12  # bytes of a number
_POLYNOMIAL: Final = 0xEDB88320  # of CRC-32, bits reversed (RFC 1952, section 8)
GRANULARITY: Final = MIB  # bytes; shorter holes are data: that keeps the list of runs short


class Output(Protocol):
    """Where bytes are appended, each time all that are given."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of ``data``, or raise OSError."""


class Piece(NamedTuple):
    """A deflated piece: where it is on the disk, how many bytes it was, and their checksum."""

    offset: int
    length: int
    checksum: int
    packed: bytes


class TarGzWriter:
    """A Sink: writes a disk of ``size`` bytes whose ``data`` are these runs ``(offset, length)``, and nothing else.

    Runs ascend, and begin and end at multiples of GRANULARITY, but where the source ends.
    """

    granularity = GRANULARITY

    def __init__(self, output: Output, size: int, data: Iterable[tuple[int, int]], *, name: str = "disk.raw") -> None:
        self._output = output
        self._size = size
        self._runs = array("Q")
        for offset, length in data:
            self._runs.extend((offset, length))
        self._next = 0  # index of the run that is being written
        self._at = self._runs[0] if self._runs else size
        self._checksum = 0
        self._length = 0  # of what is deflated, modulo nothing
        self._output.write(_GZIP_HEAD)
        for block in self._head(name):
            self._put(self._pack(0, block))

    def pack(self, offset: int, view: memoryview, /) -> Piece:
        """Deflate a piece; any number of threads may do so at once."""
        return self._pack(offset, view)

    def put(self, packed: Piece, /) -> None:
        """Append a piece; raises VmdkitError where another was due: the runs have changed since they were listed."""
        if packed.offset != self._at or packed.length > self._left():
            raise self._changed()
        self._put(packed)
        self._at += packed.length
        if not self._left():
            self._next += 2
            self._at = self._runs[self._next] if self._next < len(self._runs) else self._size

    def zeros(self, offset: int, length: int, /) -> None:
        """Leave a hole out; raises VmdkitError where data were due."""
        if self._at < offset + length and self._next < len(self._runs):
            raise self._changed()

    def finish(self) -> None:
        """Write the end of the archive and of the compression."""
        if self._next < len(self._runs):
            raise self._changed()
        data = sum(self._runs[1::2])
        end = -data % _BLOCK + 2 * _BLOCK
        end += -(self._length + end) % _RECORD
        self._put(self._pack(0, bytes(end)))
        tail = self._checksum.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little")
        self._output.write(_LAST_BLOCK + tail)

    # ── gzip ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _pack(self, offset: int, data: bytes | memoryview) -> Piece:
        packer = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush(isal_zlib.Z_FULL_FLUSH)
        return Piece(offset, len(data), isal_zlib.crc32(data), packed)

    def _put(self, piece: Piece) -> None:
        self._output.write(piece.packed)
        self._checksum = joined(self._checksum, piece.checksum, piece.length)
        self._length += piece.length

    # ── tar ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _head(self, name: str) -> Iterator[bytes]:
        """Yield the header, and the blocks that go on with its list of runs."""
        info = tarfile.TarInfo(name)
        info.size = sum(self._runs[1::2])
        info.mode = 0o644
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        if info.size == self._size:
            yield bytes(header)
            return
        runs = self._runs[:]
        if not runs or runs[-2] + runs[-1] < self._size:
            runs.extend((self._size, 0))
        count = len(runs) // 2
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[_SPARSE_AT:_EXTENDED_AT] = _listed(runs, 0, _IN_HEADER)
        header[_EXTENDED_AT] = count > _IN_HEADER
        header[_REAL_SIZE_AT : _REAL_SIZE_AT + _NUMBER] = _number(self._size)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        yield bytes(header)
        blocks = bytearray()
        for first in range(_IN_HEADER, count, _IN_BLOCK):
            blocks += _listed(runs, first, _IN_BLOCK) + bytes((first + _IN_BLOCK < count,))
            blocks += bytes(-len(blocks) % _BLOCK)
            if len(blocks) >= MIB:
                yield bytes(blocks)
                blocks.clear()
        if blocks:
            yield bytes(blocks)

    def _left(self) -> int:
        """Return how many bytes of the run that is being written are still due."""
        if self._next >= len(self._runs):
            return 0
        return self._runs[self._next] + self._runs[self._next + 1] - self._at

    def _changed(self) -> VmdkitError:
        return VmdkitError("the holes of the source are not where they were: it changes while it is read")


def _listed(runs: array[int], first: int, places: int) -> bytes:
    """Return the runs from number ``first`` on as they stand in a block that has room for ``places``."""
    numbers = runs[2 * first : 2 * (first + places)]
    return b"".join(map(_number, numbers)).ljust(places * 2 * _NUMBER, b"\0")


def _number(value: int) -> bytes:
    """Return a number as GNU tar writes it: eleven octal digits, or binary behind a set bit."""
    if value < 8**11:
        return b"%011o\0" % value
    if value >= 1 << 64:
        raise UsageError(f"{value} is no size")
    return b"\x80" + value.to_bytes(_NUMBER - 1, "big")


# ── checksums ────────────────────────────────────────────────────────────────────────────────────────────────────


def joined(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of two texts, one after the other, from that of each and the length (bytes) of the second."""
    return _times(_power(length), first) ^ second


def _times(one: int, two: int) -> int:
    """Multiply two polynomials modulo that of CRC-32, bits reversed."""
    product, bit = 0, 1 << 31
    while one:
        if one & bit:
            product ^= two
            one ^= bit
        bit >>= 1
        two = (two >> 1) ^ (_POLYNOMIAL if two & 1 else 0)
    return product


@cache
def _power(length: int) -> int:
    """Return x to the power of as many bits as ``length`` bytes have."""
    result, square = 1 << 31, 1 << 23  # x^0, x^8
    while length:
        if length & 1:
            result = _times(square, result)
        square = _times(square, square)
        length >>= 1
    return result
