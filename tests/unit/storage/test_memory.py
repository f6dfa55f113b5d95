# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes in memory."""

from __future__ import annotations

import pytest

from vmdkit.device import BlockSize, Can, Extent
from vmdkit.errors import ReadOnlyError
from vmdkit.storage.memory import MemoryDevice


def test_reads_what_was_written() -> None:
    device = MemoryDevice(b"0123456789")
    device.pwrite(b"abc", 4)
    assert device.pread(10, 0) == b"0123abc789"
    device.zero(2, 0)
    assert device.pread(3, 0) == b"\0\x002"
    device.flush()
    device.cache(10, 0)
    assert list(device.extents()) == [Extent(0, 10, 0)]


def test_the_callers_bytes_are_copied() -> None:
    mine = bytearray(b"mine")
    device = MemoryDevice(mine)
    device.pwrite(b"y", 0)
    assert mine == b"mine"


def test_a_number_is_so_many_zeros() -> None:
    assert MemoryDevice(5).pread(5, 0) == bytes(5)


def test_for_reading_only() -> None:
    device = MemoryDevice(b"x", writable=False, name="m")
    assert device.name == "m"
    assert not device.can & Can.WRITE
    with pytest.raises(ReadOnlyError):
        device.pwrite(b"y", 0)


def test_blocks() -> None:
    device = MemoryDevice(bytes(range(256)) * 4, block_size=BlockSize(512))
    device.pwrite(b"\xff", 513)
    assert device.pread(3, 512) == b"\x00\xff\x02"
