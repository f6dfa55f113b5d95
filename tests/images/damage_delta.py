# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damage to COWD and seSparse extents, and to chains."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from images.assemble import monolithic_flat, se_sparse, vmfs_sparse
from images.cowd import GTES
from images.damage_kinds import ANY, CAREFUL, FAILS, NOTE, READS, REFUSES, Damage, poke, spoil
from images.hosted import monolithic_sparse
from images.sesparse import entry
from images.table import chain
from layout import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

DELTA: Final = "4k:A 4k:- 4k:B 4k:0 20M:- 4k:C"
cowd = partial(vmfs_sparse, what=DELTA)
sparse = partial(se_sparse, what=DELTA)
COVER: Final = GTES * SECTOR  # of one COWD table
SE_COVER: Final = 16 << 20  # of one seSparse table


def _entry(value: int, grain: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke_entry(grain, value)
        spoil(image, grain)

    return apply


def _directory(value: int, cover: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke("gd", value, 0)
        image.bad.append((0, cover))

    return apply


def _pair(**links: str | int) -> Callable[[Path], Image]:
    """Return a maker of a child over a base; ``links`` are facts of the child."""

    def make(directory: Path) -> Image:
        base = monolithic_sparse(directory, "64k:A 64k:B 64k:-", name="base")
        return monolithic_sparse(directory, "64k:- 64k:C 64k:-", name="child", parent=base, **links)  # type: ignore[arg-type]

    return make


def _to_itself(image: Image) -> None:
    assert image.parent is not None
    image.poke_text(image.parent.path.name, image.path.name)
    image.poke_text(f"parentCID={image.text.parent_cid:08x}", f"parentCID={image.text.cid:08x}")


def _loop(image: Image) -> None:
    """Let the base name its child as parent."""
    base = image.parent
    assert base is not None
    base.put_text(base.text.but(parent_cid=image.text.cid, hint=image.path.name).render(base.style))


def _written_base(image: Image) -> None:
    """Change the base as one does who boots it: its content ID changes."""
    assert image.parent is not None
    image.parent.poke_text(f"CID={image.parent.text.cid:08x}", "CID=12345678")


def _other_size(image: Image) -> None:
    """Replace the base by a smaller one of the same content ID."""
    base = image.parent
    assert base is not None
    base.path.unlink()
    monolithic_sparse(base.path.parent, "64k:A 64k:B", name="base", cid=base.text.cid)


def _lost_base(image: Image) -> None:
    assert image.parent is not None
    image.parent.path.unlink()


def _base_elsewhere(directory: Path) -> Image:
    base = monolithic_flat(directory / "elsewhere", "64k:A 64k:B", name="base")
    return monolithic_sparse(directory / "here", "64k:- 64k:C", name="child", parent=base, hint="absolute")


def _deep(directory: Path) -> Image:
    return chain(directory, [("hosted-4k", "4k:A 4k:-"), *[("hosted-4k", "4k:- 4k:B")] * 200])


def _nothing(image: Image) -> None:
    """Leave it as it is."""


DELTAS: Final = {
    "cowd-gte-beyond-eof": Damage(cowd, _entry(0x7FFFFFFF, 2), FAILS),
    "cowd-gte-in-header": Damage(cowd, _entry(2, 2), FAILS),
    "cowd-gde-beyond-eof": Damage(cowd, _directory(0x7FFFFFFF, COVER), FAILS),
    "cowd-gde-in-header": Damage(cowd, _directory(1, COVER), FAILS),
    "cowd-free-sector-low": Damage(cowd, poke("header.freeSector", 6), CAREFUL),
    "cowd-grain-0": Damage(cowd, poke("header.grainSize", 0), REFUSES),
    "cowd-grain-huge": Damage(cowd, poke("header.grainSize", 1 << 31), REFUSES),
    "cowd-gd-offset": Damage(cowd, poke("header.gdOffset", 0x7FFFFFFF), REFUSES),
    "cowd-gd-offset-0": Damage(cowd, poke("header.gdOffset", 0), REFUSES),
    "cowd-directory-short": Damage(cowd, poke("header.numGDEntries", 1), REFUSES),
    "cowd-directory-huge": Damage(cowd, poke("header.numGDEntries", 0xFFFFFFFF), CAREFUL),
    "cowd-capacity": Damage(cowd, poke("header.numSectors", 0xFFFFFFFF), REFUSES),
    "cowd-version": Damage(cowd, poke("header.version", 9), REFUSES),
    "cowd-magic": Damage(cowd, poke("header.magic", b"XXXX"), REFUSES),
    "cowd-unclean": Damage(cowd, poke("header.uncleanShutdown", 1), READS, NOTE),
    "sesparse-type-4": Damage(sparse, _entry(4 << 60, 2), FAILS),
    "sesparse-type-f": Damage(sparse, _entry((1 << 64) - 1, 2), FAILS),
    "sesparse-type-0-not-empty": Damage(sparse, _entry(77, 2), FAILS),
    "sesparse-grain-beyond": Damage(sparse, _entry(entry(1 << 40), 2), FAILS),
    "sesparse-directory-type": Damage(sparse, _directory(2 << 60, SE_COVER), FAILS),
    "sesparse-directory-no-type": Damage(sparse, _directory(5, SE_COVER), FAILS),
    "sesparse-table-beyond": Damage(sparse, _directory(1 << 60 | 0xFFFFFFFF, SE_COVER), FAILS),
    "sesparse-table-past-region": Damage(sparse, _directory(1 << 60 | 40, SE_COVER), ANY),
    "sesparse-magic": Damage(sparse, poke("header.magic", 0), REFUSES),
    "sesparse-version": Damage(sparse, poke("header.version", 0x300000000), REFUSES),
    "sesparse-volatile-magic": Damage(sparse, poke("volatile.magic", 0), REFUSES),
    "sesparse-grain-size": Damage(sparse, poke("header.grainSize", 16), REFUSES),
    "sesparse-table-size": Damage(sparse, poke("header.grainTableSize", 0), REFUSES),
    "sesparse-capacity": Damage(sparse, poke("header.capacity", 1 << 62), REFUSES),
    "sesparse-directory-offset": Damage(sparse, poke("header.grainDirectoryOffset", 1 << 60), REFUSES),
    "sesparse-grains-offset": Damage(sparse, poke("header.grainsOffset", 1 << 62), CAREFUL),
    "sesparse-volatile-offset": Damage(sparse, poke("header.volatileHeaderOffset", 1 << 60), REFUSES),
    "parent-itself": Damage(_pair(), _to_itself, REFUSES),
    "parent-loop": Damage(_pair(), _loop, REFUSES),
    "parent-cid": Damage(_pair(), _written_base, REFUSES),
    "parent-cid-wrong": Damage(_pair(parent_cid=0x77777777), _nothing, REFUSES),
    "parent-capacity": Damage(_pair(), _other_size, REFUSES),
    "parent-lost": Damage(_pair(), _lost_base, REFUSES),
    "parent-url": Damage(_pair(hint="nbd://localhost/base"), _nothing, REFUSES),
    "parent-outside": Damage(_base_elsewhere, _nothing, REFUSES),
    "parent-dotdot": Damage(_pair(hint="../../../../etc/passwd"), _nothing, REFUSES),
    "parent-too-deep": Damage(_deep, _nothing, CAREFUL),
}
