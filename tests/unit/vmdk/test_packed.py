# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Compressed grains, read many at once: wherever they lie, whatever lies between, and when they are damaged."""

from __future__ import annotations

import os
import random
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import images
import vmdkit
from images import STREAMS
from vmdkit.errors import CorruptError, VmdkitError
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.packed import _SPAN, PackedGrains

if TYPE_CHECKING:
    from pathlib import Path

K64 = 64 << 10


class Counting(MemoryDevice):
    """Remembers what was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self.reads.append((offset, len(view)))
        super()._pread_into(view, offset)


def lay(contents: list[bytes], order: list[int], gaps: list[int], grain: int, *, lba: bool) -> tuple[bytes, list[int]]:
    """Return a file that holds packed grains in some order, with gaps of some sectors before each, and where."""
    data, places = bytearray(b"\xee" * 512), [0] * len(contents)
    for number, gap in zip(order, gaps, strict=True):
        data += b"\xee" * (512 * gap)
        places[number] = len(data)
        packed = zlib.compress(contents[number], 1)
        data += (struct.pack("<Q", number * grain // 512) if lba else b"") + struct.pack("<I", len(packed)) + packed
        data += bytes(-len(data) % 512)
    return bytes(data), places


@settings(max_examples=80, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from((512, 4096, K64)))
def test_grains_are_found_wherever_they_lie(data: st.DataObject, lba: bool, grain: int) -> None:
    count = data.draw(st.integers(1, 24))
    dice = random.Random(data.draw(st.integers(0, 1000)))
    contents = [
        dice.choice((dice.randbytes(grain), bytes([number]) * grain, dice.randbytes(16) * (grain // 16), b"short"))
        for number in range(count)
    ]
    order = data.draw(st.one_of(st.just(list(range(count))), st.permutations(range(count))))
    gaps = data.draw(st.lists(st.sampled_from((0, 0, 0, 1, 5, 2 * grain // 512 + 9)), min_size=count, max_size=count))
    raw, places = lay(contents, order, gaps, grain, lba=lba)
    packed = PackedGrains(MemoryDevice(raw), grain, has_lba=lba)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    following = places[last] if last < count and data.draw(st.booleans()) else -1
    found = list(packed.grains(places[first:last], first * grain, following))
    assert found == contents[first:last]


def test_neighbours_are_read_together() -> None:
    dice = random.Random(3)
    contents = [dice.randbytes(K64 // 2) + bytes(K64 // 2) for _ in range(64)]
    raw, places = lay(contents, list(range(64)), [0] * 64, K64, lba=True)
    device = Counting(raw)
    packed = PackedGrains(device, K64, has_lba=True)
    assert list(packed.grains(places, 0)) == contents
    assert len(device.reads) <= len(raw) / _SPAN + 3
    assert sum(length for _, length in device.reads) <= len(raw) + K64
    assert max(length for _, length in device.reads) <= _SPAN + K64
    device.reads.clear()
    assert list(packed.grains(places[:1], 0, places[1])) == contents[:1]
    assert device.reads == [(places[0], places[1] - places[0])]  # not more than the grain, and not twice


def test_an_error_names_the_grain_among_its_neighbours() -> None:
    contents = [bytes([number]) * 4096 for number in range(8)]
    raw, places = lay(contents, list(range(8)), [0] * 8, 4096, lba=True)
    broken = bytearray(raw)
    broken[places[5] + 14] ^= 1
    grains = PackedGrains(MemoryDevice(bytes(broken)), 4096, has_lba=True).grains(places, 0)
    assert [next(grains) for _ in range(5)] == contents[:5]
    with pytest.raises(CorruptError, match="do not inflate to a grain of 4096") as caught:
        next(grains)
    assert caught.value.offset == places[5]


@pytest.mark.parametrize("name", ["A", "B", "BARE"])
def test_a_flipped_bit_is_never_a_wrong_byte(name: str, tmp_path: Path) -> None:
    """Each bit of a grain is checked: by its marker, by deflate, by Adler-32; a flip in the padding changes nothing."""
    image = images.stream_optimized(tmp_path, "256k:A 64k:- 128k:b 64k:C", STREAMS[name])
    wanted = image.model.pread(image.size, 0)
    sound = image.path.read_bytes()
    grains = sorted((field.offset, field.size) for key, field in image.fields.items() if key.endswith("].data"))
    head = 12 if name != "BARE" else 4
    dice = random.Random(11)
    noticed: list[VmdkitError] = []
    count = 0
    for _ in range(150):
        start, size = dice.choice(grains)
        at = start - head + dice.randrange(head + size)
        data = bytearray(sound)
        data[at] ^= 1 << dice.randrange(8)
        image.path.write_bytes(data)
        noticed.clear()
        with vmdkit.open(image.path) as disk:
            for offset in range(0, image.size, K64):
                try:
                    assert disk.pread(K64, offset) == wanted[offset : offset + K64]
                except VmdkitError as error:
                    noticed.append(error)
        assert all((error.path, error.offset) == (str(image.path), start - head) for error in noticed)
        count += len(noticed)
    assert count >= 140  # zlib has a few bits that nobody needs: the level in its header


@pytest.mark.parametrize("name", ["B", "QEMU", "BARE"])
def test_a_stream_that_was_cut_off_fails_where_it_ends(name: str, tmp_path: Path) -> None:
    """Tables in front: the file opens, and every grain that is whole can be read."""
    image = images.stream_optimized(tmp_path, "384k:A 64k:- 64k:C", STREAMS[name])
    wanted = image.model.pread(image.size, 0)
    sound = image.path.read_bytes()
    places = {
        int(key[6:-6]): (field.offset, field.size) for key, field in image.fields.items() if key.endswith("].data")
    }
    dice = random.Random(5)
    low = min(place for place, _ in places.values())
    for _ in range(40):
        end = dice.randrange(low, len(sound))
        image.path.write_bytes(sound[:end])
        with vmdkit.open(image.path) as disk:
            for number in range(image.size // K64):
                place, size = places.get(number, (0, 0))
                if place + size <= end:
                    assert disk.pread(K64, number * K64) == wanted[number * K64 : (number + 1) * K64]
                else:
                    with pytest.raises(VmdkitError):
                        disk.pread(K64, number * K64)


def test_a_file_that_shrinks_under_us_is_an_error_not_zeros(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "256k:A", STREAMS["B"])
    with vmdkit.open(image.path) as disk:
        os.truncate(image.path, image.fields["grain[2].data"].offset + 10)
        assert disk.pread(2 * K64, 0) == image.model.pread(2 * K64, 0)
        with pytest.raises((VmdkitError, OSError)):
            disk.pread(K64, 2 * K64)
