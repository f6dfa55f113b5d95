# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damage to streamOptimized extents."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from images.damage_kinds import ANY, CAREFUL, FAILS, K64, NOTE, READS, REFUSES, Damage, poke, spoil
from images.stream import FOOTER, GD, GT, STREAM_A, STREAM_B, STREAM_QEMU, Stream, marker, stream_optimized
from layout import fill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

LAYOUT: Final = "64k:A 64k:B 64k:- 64k:c 32M:- 64k:D"
MIB: Final = 1 << 20

good_a = partial(stream_optimized, what=LAYOUT, knobs=STREAM_A)
good_b = partial(stream_optimized, what=LAYOUT, knobs=STREAM_B)


def bomb(size: int) -> bytes:
    """Return a zlib stream, small and made in no time, of ``size`` zeros (whole MiB)."""
    press = zlib.compressobj(9)
    head = press.compress(bytes(MIB)) + press.flush(zlib.Z_FULL_FLUSH)
    one = press.compress(bytes(MIB)) + press.flush(zlib.Z_FULL_FLUSH)
    check = (size % 65521) << 16 | 1
    return head + one * (size // MIB - 1) + b"\x03\x00" + check.to_bytes(4, "big")


def _packed(data: bytes, grain: int = 1, size: int = K64) -> Callable[[Path], Image]:
    """Return a maker of a stream in which one grain holds ``data`` instead of its own bytes."""

    def make(directory: Path) -> Image:
        return stream_optimized(directory, LAYOUT, Stream(packed={grain: data}, grain=size))

    return make


def _spoil(grain: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        spoil(image, grain)

    return apply


def _poke_grain(field: str, value: int, grain: int = 1) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke(f"grain[{grain}].{field}", value)
        spoil(image, grain)

    return apply


def _checksum(image: Image) -> None:
    place = image.fields["grain[1].data"]
    with place.file.open("r+b") as file:
        file.seek(place.offset + place.size - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 0xFF]))
    spoil(image, 1)


def _garbage(image: Image) -> None:
    image.poke("grain[1].data", b"\xff" * 16)
    spoil(image, 1)


def _short_grain(image: Image) -> None:
    image.model.write(fill("B", 1000, K64) + bytes(K64 - 1000), K64)


def _beyond(image: Image) -> None:
    image.poke_entry(1, 0x7FFFFFF0)
    spoil(image, 1)


def _in_metadata(image: Image) -> None:
    image.poke_entry(1, 1)
    spoil(image, 1)


def _swapped(image: Image) -> None:
    """Let two entries point at one another's grain: only the markers tell."""
    (name, one), (_, other) = image.entry(0), image.entry(1)
    values = image.peek(name, one), image.peek(name, other)
    image.poke(name, values[1], one)
    image.poke(name, values[0], other)
    spoil(image, 0)
    spoil(image, 1)


def _cut(end: str) -> Callable[[Path], Image]:
    return partial(stream_optimized, what=LAYOUT, knobs=replace(STREAM_A, end=end))


def _nothing(image: Image) -> None:
    """Leave it as it is."""


def _trailing(image: Image) -> None:
    """Append what a careless transfer appends."""
    with image.path.open("ab") as file:
        file.write(bytes(5120))


def _behind_grain(image: Image) -> None:
    """Leave a byte where a grain's sector is filled up."""
    place = image.fields["grain[1].data"]
    with image.path.open("r+b") as file:
        file.seek(-(-(place.offset + place.size) // 512) * 512 - 1)
        file.write(b"x")


def _poke_both(field: str, value: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke(f"header.{field}", value)
        image.poke(f"footer.{field}", value)

    return apply


STREAMED: Final = {
    "stream-no-eos": Damage(_cut("no-eos"), _nothing, CAREFUL),
    "stream-no-footer": Damage(_cut("no-footer"), _nothing, CAREFUL),
    "stream-no-directory": Damage(_cut("no-directory"), _nothing, CAREFUL),
    "stream-b-no-eos": Damage(partial(stream_optimized, what=LAYOUT, knobs=STREAM_QEMU), _nothing, READS, NOTE),
    "stream-trailing-zeros": Damage(good_a, _trailing, CAREFUL, NOTE),
    "stream-b-trailing-zeros": Damage(good_b, _trailing, READS, NOTE),
    "stream-bomb": Damage(_packed(bomb(300 * MIB), grain=0, size=MIB), _spoil(0), FAILS),
    "stream-bomb-oversize": Damage(_packed(bomb(300 * MIB)), _spoil(1), FAILS),
    "stream-one-byte-too-much": Damage(_packed(zlib.compress(bytes(K64 + 1))), _spoil(1), FAILS),
    "stream-grain-short": Damage(_packed(zlib.compress(fill("B", 1000, K64))), _short_grain, CAREFUL, NOTE),
    "stream-not-zlib": Damage(good_a, _garbage, FAILS),
    "stream-checksum": Damage(good_a, _checksum, FAILS),
    "stream-size-huge": Damage(good_a, _poke_grain("size", 0xFFFFFFF0), FAILS),
    "stream-size-beyond-eof": Damage(good_a, _poke_grain("size", 120_000), FAILS),
    "stream-size-0": Damage(good_a, _poke_grain("size", 0), FAILS),
    "stream-size-1": Damage(good_a, _poke_grain("size", 1), FAILS),
    "stream-lba-wrong": Damage(good_a, _poke_grain("lba", 0), FAILS),
    "stream-lba-huge": Damage(good_a, _poke_grain("lba", (1 << 64) - 1), FAILS),
    "stream-grains-swapped": Damage(good_a, _swapped, FAILS),
    "stream-gte-beyond-eof": Damage(good_a, _beyond, FAILS),
    "stream-gte-in-descriptor": Damage(good_a, _in_metadata, FAILS),
    "stream-overhead-zeros": Damage(good_a, _poke_both("overHead", 64), READS),
    "stream-grain-padding": Damage(good_a, _behind_grain, READS, NOTE),
    "stream-table-marker-size": Damage(good_a, poke("gt[0].marker", marker(GT, 5)), READS),
    "stream-table-marker-type": Damage(good_a, poke("gt[1].marker", marker(7, 4)), READS),
    "stream-table-marker-zero": Damage(good_a, poke("gt[0].marker", bytes(512)), READS),
    "stream-directory-marker": Damage(good_a, poke("gd.marker", marker(GD, 2)), READS),
    "footer-marker-size": Damage(good_a, poke("footer.marker", marker(FOOTER, 2)), READS),
    "footer-overhead": Damage(good_a, poke("footer.overHead", 127), READS, NOTE),
    "footer-capacity": Damage(good_a, poke("footer.capacity", 1), REFUSES),
    "footer-grain": Damage(good_a, poke("footer.grainSize", 256), REFUSES),
    "footer-version": Damage(good_a, poke("footer.version", 1), CAREFUL),
    "footer-magic": Damage(good_a, poke("footer.magic", b"XXXX"), REFUSES),
    "footer-directory-at-end": Damage(good_a, poke("footer.gdOffset", (1 << 64) - 1), REFUSES),
    "footer-directory-beyond-eof": Damage(good_a, poke("footer.gdOffset", 1 << 40), REFUSES),
    "footer-directory-0": Damage(good_a, poke("footer.gdOffset", 0), REFUSES),
    "footer-marker": Damage(good_a, poke("footer.marker", bytes(512)), ANY),
    "stream-flag-compressed-lost": Damage(good_a, poke("header.flags", 1 | 1 << 17), REFUSES),
    "stream-capacity-2^62": Damage(good_b, poke("header.capacity", 1 << 62), REFUSES),
}
