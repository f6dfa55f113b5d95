# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hot loops at their edges."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib

import pytest

from images.damage_stream import bomb
from vmdkit import kernels
from vmdkit.kernels import FAST, LEVELS, STORED, ZEROS, compress, inflate, is_zero, store, stored_length
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


def inflated(data: bytes | bytearray | memoryview, limit: int) -> bytes:
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


# ── deflating ────────────────────────────────────────────────────────────────────────────────────────────────────

CONTENT = {
    "text": b"grain %d " * 9000,
    "zeros": bytes(65536),
    "random": os.urandom(65536),
    "half random": os.urandom(32768) + bytes(32768),
    "random in the middle": bytes(30000) + os.urandom(8192) + bytes(27344),
    "random, repeated": os.urandom(8192) * 8,
    "counters": b"".join(number.to_bytes(4, "little") for number in range(16384)),
}


@pytest.mark.parametrize("level", [FAST, STORED, *LEVELS])
@pytest.mark.parametrize("length", [0, 1, 511, 4096, 16384, 65535, 65536])
@pytest.mark.parametrize("kind", CONTENT)
def test_compress_gives_back(kind: str, length: int, level: int) -> None:
    data = CONTENT[kind][:length]
    packed = compress(memoryview(data), level)
    assert zlib.decompress(packed) == data
    assert inflated(packed, 65536) == data
    assert len(packed) <= stored_length(len(data))
    assert int.from_bytes(packed[:2], "big") % 31 == 0


@pytest.mark.parametrize("level", [FAST, 1, 6])
@pytest.mark.parametrize("length", [128 * KIB, MIB])
def test_random_bytes_grow_by_stored_blocks_only(length: int, level: int) -> None:
    """ISA-L's own stored blocks are shorter, and need more heads: 295 bytes more for a MiB."""
    data = random.Random(length).randbytes(length)
    packed = compress(data, level)
    assert len(packed) <= stored_length(length)
    assert zlib.decompress(packed) == data


@pytest.mark.parametrize("length", [0, 1, 65534, 65535, 65536, 131070, 131071, MIB])
def test_stored_blocks(length: int) -> None:
    data = random.Random(length).randbytes(length)
    packed = store(data)
    assert zlib.decompress(packed) == data
    assert len(packed) == stored_length(length)


@pytest.mark.parametrize("kind", [kind for kind in CONTENT if kind != "random"])
def test_what_shrinks_is_not_taken_for_random(kind: str) -> None:
    """A sample may look random where the whole is not."""
    data = CONTENT[kind][:65536]
    assert len(compress(data, 6)) < 0.8 * len(data)
    assert not kernels._is_random(data)


def test_random_bytes_are_not_deflated_in_vain() -> None:
    data = CONTENT["random"]
    assert kernels._is_random(data)
    assert compress(data, 6) == store(data)
    assert not kernels._is_random(data[:4096])  # not worth a sample


@pytest.mark.parametrize("level", [FAST, 1, 6])
def test_the_interpreter_is_free_meanwhile(level: int) -> None:
    """Another thread gets on while a large buffer is deflated, so that all cores can work."""
    data = memoryview(CONTENT["text"] * 400)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0002)

    other = threading.Thread(target=tick)
    other.start()
    most = 0
    for _ in range(50):  # on a busy machine the other thread may have to wait
        begun = time.perf_counter()
        compress(data, level)
        ended = time.perf_counter()
        most = max(most, len([at for at in ticks if begun < at < ended]))
        if most >= 3:
            break
    done.set()
    other.join()
    assert most >= 3
