# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a damage is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

READS, REFUSES, FAILS, CAREFUL, ANY = "reads", "refuses", "fails", "careful", "any"
ERROR, REPAIR, NOTE, NONE = "error", "repair", "note", ""  # what a check should find
K64: Final = 64 << 10


class Damage(NamedTuple):
    """How to make a good image, how to break it, and what must come of it."""

    make: Callable[[Path], Image]
    apply: Callable[[Image], None]
    outcome: str
    finding: str = ERROR

    def build(self, directory: Path) -> Image:
        """Return the broken image."""
        image = self.make(directory)
        self.apply(image)
        return image


def spoil(image: Image, grain: int, part: int = 0) -> None:
    """Say that a grain of an extent has become unreadable."""
    one = image.parts[part]
    offset = grain * one.grain
    image.bad.append((image.starts[part] + offset, min(one.grain, one.length - offset)))


def poke(name: str, value: int | bytes) -> Callable[[Image], None]:
    """Return a damage that overwrites one field."""

    def apply(image: Image) -> None:
        image.poke(name, value)

    return apply
