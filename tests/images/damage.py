# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damage by name: ``DAMAGE["gte-beyond-eof"].build(tmp_path)`` is a good image with one thing wrong.

``outcome`` says what a reader must do with it:

* READS: open it, and read what ``image.model`` says
* REFUSES: refuse to open it, or to read anything, with an error of its own
* FAILS: raise for the ranges in ``image.bad``, and read all others as ``image.model`` says
* CAREFUL: either of these two: raise its own error, or give the bytes of ``image.model``
* ANY: no demand but to stay alive: its own error or any bytes, in little time and memory
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from images.damage_delta import DELTAS
from images.damage_hosted import HOSTED
from images.damage_kinds import ANY, CAREFUL, FAILS, READS, REFUSES, Damage
from images.damage_names import NAMED
from images.damage_stream import STREAMED
from images.damage_text import TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images.base import Image

DAMAGE: Final[dict[str, Damage]] = {**HOSTED, **STREAMED, **DELTAS, **NAMED, **TEXTS}


def cuts(image: Image, part: int = 0) -> Iterator[int]:
    """Yield lengths to cut an extent file to: at, within and just after each of its structures (three grains only)."""
    path = image.parts[part].path
    whole = path.stat().st_size
    sizes = {0, 1, 4, 511, whole - 1, whole - 512, whole - 1024}
    fields = image.parts[part].fields
    grains = [name for name in fields if name.startswith("grain[")]
    for name in set(fields) - set(grains[2:-1]):
        place = fields[name]
        if place.file == path and place.size >= 512:
            sizes |= {place.offset, place.offset + place.size // 2, place.offset + place.size - 1}
            sizes.add(place.offset + place.size)
    yield from sorted(size for size in sizes if 0 <= size < whole)


def truncate(image: Image, size: int, part: int = 0) -> None:
    """Cut an extent file."""
    with image.parts[part].path.open("r+b") as file:
        file.truncate(size)


__all__ = ["ANY", "CAREFUL", "DAMAGE", "FAILS", "READS", "REFUSES", "Damage", "cuts", "truncate"]
