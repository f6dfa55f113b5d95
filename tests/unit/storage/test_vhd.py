# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from vmdkit.errors import CorruptError
from vmdkit.storage.vhd import check_footer, footer, geometry

MIB, GIB = 1 << 20, 1 << 30
# by the steps of the appendix, done by hand
GEOMETRIES = [
    (3 * MIB, (90, 4, 17)),
    (20 * MIB, (602, 4, 17)),
    (100 * MIB, (1003, 12, 17)),
    (GIB, (2080, 16, 63)),
    (40 * GIB, (20560, 16, 255)),
    (200 * GIB, (65535, 16, 255)),
]


@pytest.mark.parametrize(("size", "expected"), GEOMETRIES)
def test_geometry(size: int, expected: tuple[int, int, int]) -> None:
    assert geometry(size) == expected


def test_every_byte_of_a_footer() -> None:
    raw = footer(20 * MIB, now=946684800 + 0x01020304, identity=bytes(range(16)))
    assert len(raw) == 512
    head = struct.unpack(">8sIIQI4sI4sQQHBBII16sB", raw[:85])
    assert head == (
        *(b"conectix", 2, 0x10000, (1 << 64) - 1, 0x01020304, b"win ", 0x60003, b"Wi2k"),
        *(20 * MIB, 20 * MIB, 602, 4, 17, 2, head[14], bytes(range(16)), 0),
    )
    assert raw[85:] == bytes(427)
    assert sum(raw[:64] + raw[68:]) + head[14] == 0xFFFFFFFF


def test_a_clock_before_2000() -> None:
    assert footer(MIB, now=0)[24:28] == bytes(4)


def test_a_footer_is_checked() -> None:
    raw = bytearray(footer(MIB))
    check_footer(raw, MIB, "x")
    with pytest.raises(CorruptError, match="it tells of 1048576 bytes, type 2; 2097152 and type 2 are due"):
        check_footer(raw, 2 * MIB, "x")
    raw[100] ^= 1
    with pytest.raises(CorruptError, match="what ends the file is no footer"):
        check_footer(raw, MIB, "x")
