# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hot loops at their edges."""

from __future__ import annotations

import zlib

import pytest

from images.damage_stream import bomb
from vmdkit.kernels import ZEROS, inflate, is_zero
from vmdkit.units import KIB, MIB


@pytest.mark.parametrize("length", [0, 1, 511, 512, 64 * KIB, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 3])
def test_zeros_are_zero(length: int) -> None:
    assert is_zero(bytes(length))
    assert is_zero(bytearray(length))
    assert is_zero(memoryview(bytearray(length)))


@pytest.mark.parametrize("length", [1, 512, MIB - 1, MIB, MIB + 1, 2 * MIB + 3])
@pytest.mark.parametrize("where", ["first", "last", "before the step", "after the step"])
def test_one_byte_is_seen_wherever_it_is(length: int, where: str) -> None:
    place = {"first": 0, "last": length - 1, "before the step": MIB - 1, "after the step": MIB}[where]
    buf = bytearray(length)
    buf[min(place, length - 1)] = 1
    assert not is_zero(buf)


def test_views_that_are_not_of_bytes() -> None:
    assert is_zero(memoryview(bytearray(800)).cast("Q"))
    assert not is_zero(memoryview(bytes(7) + b"\1").cast("Q"))


def test_the_shared_zeros_cannot_be_changed() -> None:
    assert isinstance(ZEROS, bytes)
    assert len(ZEROS) == MIB
    assert not any(ZEROS)


def inflated(data: bytes | memoryview, limit: int) -> bytes:
    """Inflate what must be sound."""
    out = inflate(data, limit)
    assert out is not None
    return bytes(out)


@pytest.mark.parametrize("length", [0, 1, 511, 65535, 65536])
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_inflate_gives_back(length: int, level: int) -> None:
    data = (b"grain %d " * 9000)[:length]
    assert inflated(zlib.compress(data, level), 65536) == data


@pytest.mark.parametrize("extra", [1, 2, 4096, 300 * MIB])
def test_more_than_the_limit_is_refused_without_holding_it(extra: int) -> None:
    packed = bomb(extra) if extra >= MIB else zlib.compress(bytes(65536 + extra))
    assert inflate(packed, 65536) is None


def test_less_than_the_limit_is_as_long_as_it_is() -> None:
    assert inflated(zlib.compress(b"short"), 65536) == b"short"


def test_what_follows_the_stream_is_padding() -> None:
    assert inflated(zlib.compress(b"grain") + bytes(400), 4096) == b"grain"
    assert inflated(memoryview(zlib.compress(b"grain") + b"\xff" * 400), 4096) == b"grain"


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"",
        lambda packed: packed[:1],
        lambda packed: packed[:-1],
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-1] + bytes([packed[-1] ^ 1]),  # Adler-32
        lambda packed: b"\x00" + packed[1:],
        lambda packed: bytes([packed[0], packed[1] ^ 0x20]) + packed[2:],  # wants a dictionary
        lambda packed: packed[2:-4],  # raw deflate
        lambda packed: b"\xff" * 64,
    ],
)
def test_damage_is_refused(damage: object) -> None:
    assert callable(damage)
    assert inflate(damage(zlib.compress(b"grain" * 1000)), 65536) is None
