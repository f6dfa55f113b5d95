# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tree hash: one digest for what a disk holds, to which zeros and holes cost nothing (docs/hash.md).

::

    digest   H(02 "vmdkit tree 1" 00 00, size, block size, top)          numbers: 8 bytes, little-endian
    top      node at the level where one subtree covers the disk; what lies behind the end is zero
    node     H(01, left, right)
    leaf     H(one block)                                                the last one filled up with zeros

What is digested tells itself apart: nodes and the root begin with 1 and 2 and have 65 and 64 bytes, leaves have exactly
one block, which is 4 KiB or more. So a leaf is the plain digest of its block, which other programs can make too.

A subtree of zeros has the same digest wherever it is, so runs of zeros are put in whole, a subtree at a time. Every
aligned run of 2**n blocks is a subtree: a store of larger chunks can keep the digests of its chunks, and join them.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.kernels import is_zero
from vmdkit.units import KIB, MIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

ALGORITHMS: Final = ("sha256", "blake3")
BLOCK: Final = 64 * KIB  # the usual grain, so a grain is a leaf; larger blocks gain 6 to 12 % with sha256
SMALLEST, LARGEST = 4 * KIB, 16 * MIB
_NODE, _ROOT = b"\1", b"\2vmdkit tree 1\0\0"
_TEXT: Final = re.compile(r"tree-([a-z0-9]+)-(\d+[kM]):([0-9a-f]{64})")
_LEVELS = 64  # no disk has more: sizes fit 8 bytes
MOST_SPANS: Final = 1024  # digests kept to tell where two disks differ: 32 KiB, and what a report may hold


class Digest(Protocol):
    """What hashlib and blake3 share."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Take more bytes."""

    def digest(self) -> bytes:
        """Return the digest of all bytes so far."""

    def hexdigest(self) -> str:
        """Return it in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tree is made: the algorithm, and the block size in bytes, a power of two from 4 KiB to 16 MiB.

    Raises UsageError for others, UnsupportedError for blake3 where it is not installed.
    """

    algorithm: str = ALGORITHMS[0]
    block: int = BLOCK

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"a tree is made of {' or '.join(ALGORITHMS)}, not {self.algorithm!r}")
        if not SMALLEST <= self.block <= LARGEST or self.block & (self.block - 1):
            raise UsageError(
                f"a block of {self.block} bytes; a power of two from {format_size(SMALLEST)} to {format_size(LARGEST)} "
                "is due"
            )
        hash_function(self.algorithm)

    def __str__(self) -> str:
        size = f"{self.block // MIB}M" if self.block >= MIB else f"{self.block // KIB}k"
        return f"tree-{self.algorithm}-{size}"

    def height(self, size: int) -> int:
        """Return the level whose one subtree covers ``size`` bytes; leaves are level 0."""
        return (max(-(-size // self.block), 1) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class TreeDigest:
    """The digest of a disk of ``size`` bytes, and those of its spans.

    A span is a subtree of ``level``; spans that are zero are not in ``spans``, which has at most MOST_SPANS entries.
    """

    shape: Shape
    size: int
    digest: bytes
    level: int
    spans: dict[int, bytes]

    def __str__(self) -> str:
        return f"{self.shape}:{self.digest.hex()}"

    @property
    def span(self) -> int:
        """Bytes of a span."""
        return self.shape.block << self.level

    def grown(self, size: int) -> TreeDigest:
        """Return the digest that the disk would have with zeros up to ``size`` bytes behind it."""
        return self if size == self.size else join_spans(self.shape, size, self.level, self.spans)

    def first_difference(self, other: TreeDigest) -> tuple[int, int] | None:
        """Return ``(offset, length)`` of the first span that differs; None where none does.

        Both must have one shape, and spans of one level, as disks of one size have.
        """
        if (self.shape, self.level) != (other.shape, other.level):
            raise UsageError(f"spans of {self.span} and {other.span} bytes cannot be compared")
        for index in sorted(self.spans.keys() | other.spans.keys()):
            if self.spans.get(index) != other.spans.get(index):
                offset = index * self.span
                return offset, min(self.span, max(self.size, other.size) - offset)
        return None


def join_spans(shape: Shape, size: int, level: int, spans: dict[int, bytes]) -> TreeDigest:
    """Return the digest of a disk of ``size`` bytes whose subtrees of ``level`` are ``spans``; others are zero.

    Raises UsageError for spans behind its end.
    """
    hasher = Hasher(shape)
    tree = Tree(hasher, size)
    for below in range(level, tree.level):
        zero = hasher.zero(below)
        spans = {
            index: hasher.node(spans.get(2 * index, zero), spans.get(2 * index + 1, zero))
            for index in {index >> 1 for index in spans}
        }
    for index in sorted(spans):
        tree.zeros((index << max(level, tree.level)) - tree.position)
        tree.push(spans[index], max(level, tree.level))
    return tree.finish()


def parse_digest(text: str) -> tuple[Shape, bytes]:
    """Return the shape and the digest that ``str(TreeDigest)`` names. Raises UsageError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no tree digest; tree-sha256-64k: and 64 hexadecimal digits are due")
    return Shape(match[1], parse_size(match[2])), bytes.fromhex(match[3])


def hash_function(algorithm: str) -> Callable[[bytes | memoryview], Digest]:
    """Return the constructor of a digest of 32 bytes. Raises UnsupportedError where it is not installed."""
    if algorithm == "sha256":
        return hashlib.sha256
    try:
        made: Callable[[bytes | memoryview], Digest] = import_module("blake3").blake3
    except ImportError as error:
        raise UnsupportedError("blake3 is not installed; python3 -m pip install 'vmdkit[hash]' adds it") from error
    return made


class Hasher:
    """Digest leaves and nodes of one shape; what is zero from a table. Threads may share it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._new = hash_function(shape.algorithm)
        self._lock = threading.Lock()
        self._zeros = [self._new(bytes(shape.block)).digest()]

    def zero(self, level: int) -> bytes:
        """Return the digest of a subtree of zeros."""
        while len(self._zeros) <= level:
            with self._lock:
                last = self._zeros[-1]
                self._zeros.append(self._new(_NODE + last + last).digest())
        return self._zeros[level]

    def leaf(self, block: memoryview) -> bytes:
        """Return the digest of one whole block."""
        return self._zeros[0] if is_zero(block) else self._new(block).digest()

    def node(self, left: bytes, right: bytes) -> bytes:
        """Return the digest of two subtrees side by side."""
        return self._new(_NODE + left + right).digest()

    def leaves(self, view: memoryview) -> list[bytes]:
        """Return the digests of the blocks of ``view``, which is whole blocks long."""
        block = self.shape.block
        return [self.leaf(view[at : at + block]) for at in range(0, len(view), block)]

    def fold(self, digests: list[bytes], levels: int) -> list[bytes]:
        """Join neighbours ``levels`` times; the count is a multiple of ``2**levels``."""
        for _ in range(levels):
            digests = [self.node(left, right) for left, right in zip(digests[::2], digests[1::2], strict=True)]
        return digests

    def root(self, size: int, top: bytes) -> bytes:
        """Return the digest of a disk of ``size`` bytes whose subtrees end in ``top``."""
        numbers = size.to_bytes(8, "little") + self.shape.block.to_bytes(8, "little")
        return self._new(_ROOT + numbers + top).digest()


class Tree:
    """Take the subtrees of a disk from left to right, in a few hundred bytes of memory."""

    def __init__(self, hasher: Hasher, size: int) -> None:
        self.hasher = hasher
        self.size = size
        self.height = hasher.shape.height(size)
        self.level = max(0, self.height - (MOST_SPANS.bit_length() - 1))
        self.position = 0  # blocks taken
        self._spans: dict[int, bytes] = {}
        self._stack: list[tuple[int, bytes]] = []  # subtrees that wait for their right neighbour, largest first

    def push(self, digest: bytes, level: int) -> None:
        """Take a subtree of ``2**level`` blocks, which begins where the last one ended, at a multiple of its length.

        One of a higher level than spans have must be zero: what it is made of is not known. Raises UsageError.
        """
        fits = self.position % (1 << level) == 0 and self.position + (1 << level) <= 1 << self.height
        if not fits or (level > self.level and digest != self.hasher.zero(level)):
            raise UsageError(f"no subtree of level {level} may be put at block {self.position} of this tree")
        self.position += 1 << level
        self._keep_span(digest, level)
        while self._stack and self._stack[-1][0] == level:
            digest, level = self._join(self._stack.pop()[1], digest, level), level + 1
            self._keep_span(digest, level)
        self._stack.append((level, digest))

    def zeros(self, count: int) -> None:
        """Take ``count`` blocks of zeros."""
        while count:
            aligned = (self.position & -self.position).bit_length() - 1 if self.position else _LEVELS
            level = min(aligned, count.bit_length() - 1)
            self.push(self.hasher.zero(level), level)
            count -= 1 << level

    def finish(self) -> TreeDigest:
        """Return the digest; what was not taken is zero."""
        self.zeros((1 << self.height) - self.position)
        (_, top) = self._stack[0]
        return TreeDigest(self.hasher.shape, self.size, self.hasher.root(self.size, top), self.level, self._spans)

    def _join(self, left: bytes, right: bytes, level: int) -> bytes:
        zero = self.hasher.zero(level)
        return self.hasher.zero(level + 1) if left == zero == right else self.hasher.node(left, right)

    def _keep_span(self, digest: bytes, level: int) -> None:
        if level == self.level and digest != self.hasher.zero(level):
            self._spans[(self.position >> level) - 1] = digest
