# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damage to hosted sparse extents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from images.assemble import monolithic_flat, split_sparse
from images.damage_kinds import (
    ANY,
    CAREFUL,
    ERROR,
    FAILS,
    K64,
    NONE,
    NOTE,
    READS,
    REFUSES,
    REPAIR,
    Damage,
    poke,
    spoil,
)
from images.hosted import Hosted, monolithic_sparse
from layout import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

# Four grains, the last of them in a second table: numbers 0, 1, 3 and 516.
LAYOUT: Final = "64k:A 64k:B 64k:- 64k:C 32M:- 64k:D 64k:-"
FAR: Final = 516


def good(directory: Path, knobs: Hosted | None = None) -> Image:
    """Build the image that is to be broken."""
    return monolithic_sparse(directory, LAYOUT, knobs)


def _entry(image: Image, grain: int) -> int:
    name, index = image.entry(grain)
    return image.peek(name, index)


def _rgt_lacks_grain(image: Image) -> None:
    image.poke("rgt[0]", 0, 1)


def _gt_lacks_grain(image: Image) -> None:
    """As after a crash between the copies: who follows the primary sees no grain."""
    image.poke("gt[0]", 0, 1)
    image.model.put("-", K64, K64)


def _rgt_swapped(image: Image) -> None:
    one, other = _entry(image, 0), _entry(image, 1)
    image.poke("rgt[0]", other, 0)
    image.poke("rgt[0]", one, 1)


def _rgt_garbage(image: Image) -> None:
    image.poke("rgt[0]", bytes(range(256)) * 8)


def _duplicate(image: Image) -> None:
    image.poke_entry(1, _entry(image, 0))
    image.model.write(image.model.pread(K64, 0), K64)


def _set_entry(value: int, grain: int = 3) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke_entry(grain, value)
        spoil(image, grain)

    return apply


def _unaligned(image: Image) -> None:
    image.poke_entry(3, _entry(image, 3) - 1)
    spoil(image, 3)


def _in_directory(image: Image) -> None:
    image.poke_entry(3, image.peek("header.gdOffset") // 8 * 8)
    spoil(image, 3)


def _at_eof(image: Image) -> None:
    image.poke_entry(3, image.path.stat().st_size // SECTOR)
    spoil(image, 3)


def _leak(image: Image) -> None:
    with image.path.open("ab") as file:
        file.write(b"leak" * (K64 // 4))


def _no_table(image: Image) -> None:
    image.poke("gd", 0, 1)
    image.poke("rgd", 0, 1)
    image.model.put("-", 2 * K64, FAR * K64)


def _gde(value: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke("gd", value, 1)
        image.poke("rgd", value, 1)
        image.bad.append((512 * K64, image.size - 512 * K64))

    return apply


def _gde_primary(image: Image) -> None:
    """Break the primary only: the redundant one could help, but must not be used silently."""
    image.poke("gd", 0x7FFFFFF0, 1)
    image.bad.append((512 * K64, image.size - 512 * K64))


def _gde_twice(image: Image) -> None:
    image.poke("gd", image.peek("gd", 0), 1)
    image.poke("rgd", image.peek("rgd", 0), 1)


def _short(image: Image) -> None:
    """Cut the last grain to 1000 bytes: what lacks reads as zeros."""
    place = image.fields[f"grain[{FAR}]"]
    with image.path.open("r+b") as file:
        file.truncate(place.offset + 1000)
    image.model.write(image.model.pread(1000, FAR * K64) + bytes(K64 - 1000), FAR * K64)


def _lost_tail(image: Image) -> None:
    """Cut the last two grains off."""
    place = min(image.fields[f"grain[{grain}]"].offset for grain in (3, FAR))
    with image.path.open("r+b") as file:
        file.truncate(place)
    spoil(image, 3)
    spoil(image, FAR)


def _capacity(count: int, *, text: bool = True) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        if text:
            image.poke_text(f"RW {image.size // SECTOR} ", f"RW {count} ")
        image.poke("header.capacity", count)

    return apply


def _cut_text(image: Image) -> None:
    """Say the area has one sector although the text needs two."""
    image.poke("header.descriptorSize", 1)


def _tight(directory: Path) -> Image:
    """Let the grain directory follow a descriptor of one sector at once."""
    return good(directory, Hosted(descriptor=1))


def _nothing(image: Image) -> None:
    """Leave it as it is: unusual, not broken."""


def _host_file(directory: Path) -> Image:
    """Hide a text that names a file of the host behind a sparse header of no capacity."""
    inner = directory / "inner"
    secret = monolithic_flat(directory, "4k:S", name="secret")
    image = good(inner)
    line = f'RW 8 FLAT "{secret.parts[0].path}" 0'
    image.put_text(image.text.but(create_type="monolithicFlat", lines=(line,)).render(image.style))
    image.poke("header.capacity", 0)
    return image


def _text_mode(image: Image) -> None:
    """Pass the file through a transfer that turns LF into CR LF."""
    image.path.write_bytes(image.path.read_bytes().replace(b"\n", b"\r\n"))


def _split(directory: Path) -> Image:
    return split_sparse(directory, "64k:A 64k:B 64k:C 64k:D", split=128 << 10)


def _lose_extent(image: Image) -> None:
    image.parts[1].path.unlink()


def _less_capacity(image: Image) -> None:
    """Let an extent file say less than its line does: the rest cannot be known."""
    image.poke("1/header.capacity", 128)
    image.bad.append((3 * K64, K64))


def _no_capacity(image: Image) -> None:
    image.poke("header.capacity", 0)
    image.bad.append((0, image.size))


_small = partial(good, knobs=Hosted(grain=4 << 10))
_marked = partial(monolithic_sparse, what="64k:A 64k:0 64k:-", knobs=Hosted(zero_grains=True))
_no_copy = partial(good, knobs=Hosted(rgd=False))

HOSTED: Final = {
    "rgt-lacks-grain": Damage(good, _rgt_lacks_grain, READS, REPAIR),
    "gt-lacks-grain": Damage(good, _gt_lacks_grain, READS, REPAIR),
    "rgt-swapped": Damage(good, _rgt_swapped, READS, ERROR),
    "rgt-garbage": Damage(good, _rgt_garbage, READS, REPAIR),
    "rgd-offset-beyond-eof": Damage(good, poke("header.rgdOffset", 1 << 40), CAREFUL),
    "gte-duplicate": Damage(good, _duplicate, READS),
    "gte-beyond-eof": Damage(good, _set_entry(0x7FFFFF80), FAILS),
    "gte-beyond-eof-last": Damage(good, _set_entry(0xFFFFFFFF), FAILS),
    "gte-at-eof": Damage(good, _at_eof, FAILS),
    "gte-in-header": Damage(good, _set_entry(2), FAILS),
    "gte-in-directory": Damage(_small, _in_directory, FAILS),
    "gte-unaligned": Damage(good, _unaligned, ANY),
    "gte-1-without-flag": Damage(good, _set_entry(1), FAILS),
    "gte-1-flag-lost": Damage(_marked, poke("header.flags", 3), ANY),
    "leaked-tail-grain": Damage(good, _leak, READS, NOTE),
    "gde-0": Damage(good, _no_table, READS, NOTE),
    "gde-beyond-eof": Damage(_no_copy, lambda image: _gde_one(image, 0x7FFFFFF0), FAILS),
    "gde-in-header": Damage(good, _gde(1), ANY),
    "gde-primary-broken": Damage(good, _gde_primary, CAREFUL),
    "gde-twice": Damage(good, _gde_twice, ANY),
    "last-grain-short": Damage(good, _short, READS, NOTE),
    "tail-lost": Damage(good, _lost_tail, FAILS),
    "unclean": Damage(good, poke("header.uncleanShutdown", 1), READS, NOTE),
    "descriptor-area-tight": Damage(_tight, _nothing, READS, NONE),
    "descriptor-area-too-small": Damage(good, _cut_text, CAREFUL),
    "descriptor-beyond-eof": Damage(good, poke("header.descriptorOffset", 1 << 50), REFUSES),
    "descriptor-size-huge": Damage(good, poke("header.descriptorSize", 1 << 50), REFUSES),
    "newline-bytes": Damage(good, poke("header.newline", b"\r\n \r"), REFUSES),
    "text-mode": Damage(good, _text_mode, REFUSES),
    "capacity-2^40": Damage(good, _capacity(1 << 40), REFUSES),
    "capacity-2^62": Damage(good, _capacity(1 << 62), REFUSES),
    "capacity-2^64": Damage(good, _capacity((1 << 64) - 1), REFUSES),
    "capacity-unlike-text": Damage(good, _capacity(1 << 40, text=False), REFUSES),
    "capacity-0": Damage(good, _no_capacity, FAILS),
    "capacity-0-host-file": Damage(_host_file, _nothing, REFUSES),
    "grain-0": Damage(good, poke("header.grainSize", 0), REFUSES),
    "grain-3": Damage(good, poke("header.grainSize", 3), REFUSES),
    "grain-huge": Damage(good, poke("header.grainSize", 1 << 40), REFUSES),
    "grain-2^63": Damage(good, poke("header.grainSize", 1 << 63), REFUSES),
    "gtes-0": Damage(good, poke("header.numGTEsPerGT", 0), REFUSES),
    "gtes-511": Damage(good, poke("header.numGTEsPerGT", 511), ANY),
    "gtes-huge": Damage(good, poke("header.numGTEsPerGT", 1 << 31), REFUSES),
    "gd-offset-0": Damage(_no_copy, poke("header.gdOffset", 0), REFUSES),
    "gd-offset-beyond-eof": Damage(_no_copy, poke("header.gdOffset", 1 << 40), REFUSES),
    "gd-offset-at-end": Damage(good, poke("header.gdOffset", (1 << 64) - 1), REFUSES),
    "overhead-0": Damage(good, poke("header.overHead", 0), CAREFUL, NOTE),
    "overhead-huge": Damage(good, poke("header.overHead", 1 << 40), CAREFUL),
    "extent-file-lost": Damage(_split, _lose_extent, REFUSES),
    "extent-capacity": Damage(_split, _less_capacity, FAILS),
}


def _gde_one(image: Image, value: int) -> None:
    image.poke("gd", value, 1)
    image.bad.append((512 * K64, image.size - 512 * K64))
