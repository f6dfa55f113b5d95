# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Records: what they read, write and refuse."""

from __future__ import annotations

from typing import Annotated

import pytest

from vmdkit.errors import CorruptError, UsageError
from vmdkit.record import U8, U16, U32, U64, Bytes4, Record, Sectors32, Sectors64


class Little(Record, endian="<", size=31):
    """One field of each kind."""

    magic: Bytes4 = b"ABCD"
    one: U8 = 1
    two: U16 = 0x0201
    four: U32 = 4
    eight: U64 = 8
    near: Sectors32 = 512
    far: Sectors64 = 1024


class Big(Record, endian=">", size=6):
    """As on the wire."""

    length: U32
    pad: Annotated[bytes, "2s"] = b""


def test_offsets_follow_the_order_of_the_fields() -> None:
    names = ("magic", "one", "two", "four", "eight", "near", "far")
    assert [Little.offset_of(name) for name in names] == [0, 4, 5, 7, 11, 19, 23]
    assert Little.size_of() == 31


def test_pack_and_unpack() -> None:
    raw = Little(one=9, far=512 << 40).pack()
    assert raw == (
        b"ABCD\x09\x01\x02\x04\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0" + (1 << 40).to_bytes(8, "little")
    )  # fmt: skip
    again = Little.unpack(b"xx" + raw + b"yy", 2)
    assert again == Little(one=9, far=512 << 40)
    assert again.far == 512 << 40
    assert again.near == 512


def test_big_endian_and_padding() -> None:
    assert Big(length=258).pack() == b"\0\0\1\2\0\0"
    assert Big.unpack(memoryview(b"\0\0\0\5zz")).length == 5


def test_sectors_become_bytes_without_wrapping() -> None:
    assert Little.unpack(b"\xff" * 31).far == 0xFFFFFFFFFFFFFFFF * 512
    assert Little.unpack(b"\xff" * 31).near == 0xFFFFFFFF * 512


@pytest.mark.parametrize(("length", "offset"), [(0, 0), (30, 0), (31, 1), (40, 10)])
def test_too_short_says_where(length: int, offset: int) -> None:
    with pytest.raises(CorruptError, match=f"Little: cut off: {length - offset} bytes, 31 expected") as caught:
        Little.unpack(bytes(length), offset, path="disk.vmdk")
    assert caught.value.offset == offset
    assert caught.value.path == "disk.vmdk"


@pytest.mark.parametrize(
    ("field", "value"), [("one", 256), ("two", -1), ("four", 1 << 32), ("near", 512 << 32), ("far", 512 << 64)]
)
def test_what_does_not_fit_is_refused(field: str, value: int) -> None:
    with pytest.raises(UsageError, match="Little cannot hold"):
        Little(**{field: value}).pack()  # type: ignore[arg-type]


def test_what_is_no_whole_sector_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Little\.far is no multiple of 512"):
        Little(far=513).pack()


def test_a_field_without_default_must_be_given_and_a_strange_one_must_not() -> None:
    with pytest.raises(AttributeError):
        Big()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field 'colour'"):
        Big(length=1, colour=2)  # type: ignore[call-arg]


def test_a_wrong_size_is_found_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="declared with 5 bytes but has 4"):

        class Wrong(Record, endian="<", size=5):
            one: U32 = 0


def test_equality_and_text() -> None:
    assert Little() == Little()
    assert Little() != Little(one=2)
    assert Little() != Big(length=1)
    assert repr(Big(length=3)) == "Big(length=3)"
