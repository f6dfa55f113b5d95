# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where each field lies, against the numbers of the published formats, and how pointers are decoded."""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.cowd import HEADER as COWD_FIELDS
from images.hosted import HEADER as HOSTED_FIELDS
from images.sesparse import CONSTANT, VOLATILE, entry
from vmdkit.vmdk import structs
from vmdkit.vmdk.structs import (
    CORRUPT,
    UNALLOCATED,
    ZERO,
    CowdHeader,
    GrainMarker,
    HostedHeader,
    Marker,
    SeSparseHeader,
    SeSparseVolatile,
    decode_sectors,
    decode_sesparse_directory,
    decode_sesparse_table,
)

if TYPE_CHECKING:
    from vmdkit.record import Record

HOSTED = {
    "magic": 0,
    "version": 4,
    "flags": 8,
    "capacity": 12,
    "grain_size": 20,
    "descriptor_offset": 28,
    "descriptor_size": 36,
    "table_entries": 44,
    "rgd_offset": 48,
    "gd_offset": 56,
    "overhead": 64,
    "unclean_shutdown": 72,
    "newlines": 73,
    "compression": 77,
    "pad": 79,
}
COWD = {
    "magic": 0,
    "version": 4,
    "flags": 8,
    "capacity": 12,
    "grain_size": 16,
    "gd_offset": 20,
    "gd_entries": 24,
    "free": 28,
    "parent_name": 32,
    "parent_generation": 1056,
    "generation": 1060,
    "disk_name": 1064,
    "description": 1124,
    "saved_generation": 1636,
    "reserved": 1640,
    "unclean_shutdown": 1648,
    "pad": 1652,
}
SESPARSE = {
    "magic": 0,
    "version": 8,
    "capacity": 16,
    "grain_size": 24,
    "table_size": 32,
    "flags": 40,
    "reserved": 48,
    "volatile_offset": 80,
    "volatile_size": 88,
    "journal_header_offset": 96,
    "journal_header_size": 104,
    "journal_offset": 112,
    "journal_size": 120,
    "gd_offset": 128,
    "gd_size": 136,
    "tables_offset": 144,
    "tables_size": 152,
    "bitmap_offset": 160,
    "bitmap_size": 168,
    "backmap_offset": 176,
    "backmap_size": 184,
    "grains_offset": 192,
    "grains_size": 200,
    "pad": 208,
}
LAYOUTS: list[tuple[type[Record], int, dict[str, int]]] = [
    (HostedHeader, 512, HOSTED),
    (CowdHeader, 2048, COWD),
    (SeSparseHeader, 512, SESPARSE),
    (SeSparseVolatile, 512, {"magic": 0, "free_table": 8, "next_transaction": 16, "replay_journal": 24, "pad": 32}),
    (GrainMarker, 12, {"lba": 0, "length": 8}),
    (Marker, 512, {"following": 0, "length": 8, "type": 12, "pad": 16}),
]


@pytest.mark.parametrize(("record", "size", "offsets"), LAYOUTS, ids=[row[0].__name__ for row in LAYOUTS])
def test_layout(record: type[Record], size: int, offsets: dict[str, int]) -> None:
    assert record.size_of() == size
    assert {name: record.offset_of(name) for name in offsets} == offsets


def test_the_builders_of_the_tests_put_the_fields_at_the_same_places() -> None:
    assert {offset for offset, _ in HOSTED_FIELDS.values()} <= set(HOSTED.values())
    assert {offset for offset, _ in COWD_FIELDS.values()} <= set(COWD.values())
    assert {offset for offset, _ in CONSTANT.values()} <= set(SESPARSE.values())
    assert {offset for offset, _ in VOLATILE.values()} <= {0, 8, 16, 24}


def test_magic_numbers() -> None:
    assert (0x564D444B).to_bytes(4, "little") == structs.HOSTED_MAGIC
    assert bytes(byte ^ 0x20 for byte in structs.HOSTED_MAGIC) == structs.UNFINISHED_MAGIC
    assert (0x44574F43).to_bytes(4, "little") == structs.COWD_MAGIC
    assert structs.SESPARSE_MAGIC == 0x00000000CAFEBABE
    assert structs.SESPARSE_VOLATILE_MAGIC == 0xCAFECAFE
    assert structs.SESPARSE_VERSION == 0x0000000200000001
    assert bytes.fromhex("0a200d0a") == structs.NEWLINES
    assert HostedHeader.unpack(b"\xff" * 512).gd_offset == structs.GD_AT_END
    assert (structs.MARKER_EOS, structs.MARKER_FOOTER, structs.MARKER_PROGRESS) == (0, 3, 4)


def test_a_new_header_is_what_vmware_creates() -> None:
    raw = HostedHeader(capacity=10 << 20).pack()
    assert struct.unpack_from("<4sIIQQ", raw) == (b"KDMV", 1, 3, 20480, 128)
    assert raw[72:79] == b"\0\n \r\n\0\0"


# ── u32 sector pointers ──────────────────────────────────────────────────────────────────────────────────────────


def sectors(*entries: int, low: int = 65536, high: int = 1 << 20, zero_grains: bool = False) -> list[int]:
    codes: list[int] = decode_sectors(
        struct.pack(f"<{len(entries)}I", *entries), low=low, high=high, zero_grains=zero_grains
    ).tolist()
    return codes


def test_sectors_at_each_bound() -> None:
    assert sectors(0, 1, 127, 128, 2047, 2048) == [UNALLOCATED, CORRUPT, CORRUPT, 65536, (1 << 20) - 512, CORRUPT]


def test_sectors_of_a_file_that_ends_within_a_sector() -> None:
    assert sectors(2047, 2048, high=(1 << 20) + 1) == [(1 << 20) - 512, 1 << 20]


def test_one_is_a_zero_grain_only_where_the_header_says_so() -> None:
    assert sectors(1, zero_grains=True) == [ZERO]
    assert sectors(1, low=512, zero_grains=True) == [ZERO]
    assert sectors(1, low=512) == [512]


def test_the_largest_pointer_does_not_wrap() -> None:
    assert sectors(0xFFFFFFFF, high=1 << 62) == [0xFFFFFFFF * 512]
    assert sectors(0x80000000, high=1 << 62) == [1 << 40]


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=40), st.integers(512, 1 << 42), st.booleans())
def test_sectors_law(entries: list[int], high: int, zero_grains: bool) -> None:
    def one(value: int) -> int:
        if value == 0:
            return UNALLOCATED
        if value == 1 and zero_grains:
            return ZERO
        return value * 512 if 512 <= value * 512 < high else CORRUPT

    assert sectors(*entries, low=512, high=high, zero_grains=zero_grains) == [one(value) for value in entries]


# ── u64 entries of seSparse ──────────────────────────────────────────────────────────────────────────────────────

BASE, HIGH = 6 << 20, (6 << 20) + (4097 + 1) * 4096


def table(*entries: int, grains_offset: int = BASE, high: int = HIGH) -> list[int]:
    raw = struct.pack(f"<{len(entries)}Q", *entries)
    codes: list[int] = decode_sesparse_table(raw, grains_offset=grains_offset, grain=4096, high=high).tolist()
    return codes


def test_each_type_of_entry() -> None:
    assert table(0, 1 << 60, 2 << 60, 3 << 60) == [UNALLOCATED, ZERO, ZERO, BASE]
    assert table(1 << 60 | 77, 2 << 60 | 77) == [ZERO, ZERO]  # what is left of a former grain
    assert table(77, 4 << 60, 15 << 60, (1 << 64) - 1) == [CORRUPT] * 4


def test_the_shuffled_bits_of_a_known_entry() -> None:
    assert entry(4097) == 0x3001000000000001
    assert table(0x3001000000000001) == [BASE + 4097 * 4096]
    assert table(0x3FFF000000000000) == [BASE + 4095 * 4096]
    assert table(0x3000000000000001) == [BASE + 4096 * 4096]


def test_the_last_grain_and_the_one_behind_it() -> None:
    assert table(entry(4097), entry(4098)) == [BASE + 4097 * 4096, CORRUPT]
    assert table(entry(4097), entry(4098), high=HIGH + 1) == [BASE + 4097 * 4096, BASE + 4098 * 4096]


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40), st.integers(0, 1 << 50))
def test_any_entry_gives_an_address_in_the_file_or_a_code(entries: list[int], high: int) -> None:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for value, code in zip(entries, table(*entries, high=high), strict=True):
            index = (value >> 48 & 0xFFF) | (value & 0xFFFFFFFFFFFF) << 12
            if value >> 60 == 3 and BASE + index * 4096 < high:
                assert code == BASE + index * 4096
            else:
                assert code in (UNALLOCATED, ZERO, CORRUPT)


@given(st.integers(0, (1 << 60) - 1), st.integers(1 << 12, 1 << 62))
def test_an_index_survives_the_shuffle(index: int, high: int) -> None:
    address = BASE + index * 4096
    assert table(entry(index), high=high) == [address if address < high else CORRUPT]


def directory(*entries: int, offset: int = 3 << 20, high: int = 4 << 20) -> list[int]:
    raw = struct.pack(f"<{len(entries)}Q", *entries)
    codes: list[int] = decode_sesparse_directory(raw, tables_offset=offset, table_size=32768, high=high).tolist()
    return codes


def test_directory_entries() -> None:
    kind = 0x10000000 << 32
    assert directory(0, kind, kind | 1, kind | 31, kind | 32) == [
        UNALLOCATED,
        3 << 20,
        (3 << 20) + 32768,
        (4 << 20) - 32768,
        CORRUPT,
    ]
    assert directory(1, kind << 1 & (1 << 64) - 1, kind + (1 << 32), (1 << 64) - 1, kind | 0xFFFFFFFF) == [CORRUPT] * 5
