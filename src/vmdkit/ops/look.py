# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find blocks of zeros in a file that is about to be moved by the kernel, without reading it.

A block is zero only if its first word is. So one word of each block is read, and whole blocks only where that is
zero: a few percent of the time that moving takes, where reading everything would double it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.kernels import is_zero
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

_WINDOW = 8 * MIB  # bytes that the kernel is told of beforehand, else every look would wait for the disk
_WORD = 8
_NOTHING = bytes(_WORD)


def zeros_in_file(fd: int, at: int, length: int, offset: int, block: int) -> Iterator[ranges.Span]:
    """Yield ``(offset, length, is zero)`` spans that cover ``length`` bytes at ``at`` of a file.

    ``offset`` is where they are on the disk, whose blocks of ``block`` bytes are looked at; parts of blocks at both
    ends count as blocks. A file that ends early is all data: reading it will tell.
    """
    shift = at - offset
    return ranges.coalesce(_blocks(fd, shift, offset, length, block))


def _blocks(fd: int, shift: int, offset: int, length: int, block: int) -> Iterator[ranges.Span]:
    end, told = offset + length, offset
    for start, part in ranges.split(offset, length, block * max(1, _WINDOW // block)):
        ahead = min(start + part + _WINDOW, end)
        os.posix_fadvise(fd, told + shift, ahead - told, os.POSIX_FADV_WILLNEED)
        told = ahead
        for where, count in ranges.split(start, part, block):
            yield where, count, int(_is_zero(fd, where + shift, count))


def _is_zero(fd: int, at: int, count: int) -> bool:
    head = os.pread(fd, _WORD, at)
    if head != _NOTHING[: len(head)] or not head:
        return False
    data = os.pread(fd, count, at)
    return len(data) == count and is_zero(data)
