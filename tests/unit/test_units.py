# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes as users write and read them."""

from __future__ import annotations

import pytest

from vmdkit.errors import UsageError
from vmdkit.units import GIB, KIB, MIB, SECTOR, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1b", 1),
        ("3s", 3 * SECTOR),
        ("64k", 64 * KIB),
        ("64K", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("64kB", 64 * KIB),
        (" 10G ", 10 * GIB),
        ("10 GiB", 10 * GIB),
        ("1.5T", 3 * TIB // 2),
        ("0.5k", 512),
        ("2.0", 2),
        ("1M", MIB),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "k", "-1", "+1", "1.5", "0.3b", "1e9", "0x10", "1_000", "10P", "1 2", "1..5k", ".5k", "1.k", "1" * 21, "nan"],
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (64 * KIB, "64 KiB"),
        (10 * MIB, "10 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (TIB, "1 TiB"),
        (2000 * TIB, "2000 TiB"),
    ],
)
def test_format(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize("size", [0, 1, 512, KIB, 3 * MIB, 5 * GIB, 64 * TIB])
def test_what_is_printed_can_be_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
