# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Extent lines that name what must not be opened, and extent files that are not what they should be."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from images.assemble import monolithic_flat, split_flat
from images.damage_kinds import ANY, CAREFUL, FAILS, NONE, NOTE, READS, REFUSES, Damage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

good = partial(monolithic_flat, what="4k:A 4k:-")


def _nested(directory: Path) -> Image:
    """Put a file worth stealing beside the image's own directory."""
    (directory / "secret").write_bytes(b"secret!!" * 1024)
    return good(directory / "inner")


def _name(name: str) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke_text("disk-flat.vmdk", name)

    return apply


def _absolute(image: Image) -> None:
    image.poke_text("disk-flat.vmdk", str(image.path.parent.parent / "secret"))


def _instead(make: Callable[[Path], None]) -> Callable[[Image], None]:
    """Return a damage that puts something else in the place of the extent file."""

    def apply(image: Image) -> None:
        path = image.parts[0].path
        path.unlink()
        make(path)

    return apply


def _link_out(path: Path) -> None:
    path.symlink_to(path.parent.parent / "secret")


def _link_beside(image: Image) -> None:
    path = image.parts[0].path
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _truncate(length: int) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        os.truncate(image.parts[0].path, length)
        image.bad.append((length, image.size - length))

    return apply


def _grow(image: Image) -> None:
    """Append to the flat file: more than the line says is harmless."""
    with image.parts[0].path.open("ab") as file:
        file.write(b"more" * 1024)


def _same_file(image: Image) -> None:
    """Let two lines name one file: legal for readers, a trap for writers."""
    first, second = (part.path.name for part in image.parts[:2])
    image.poke_text(second, first)
    image.model.write(image.model.pread(4096, 0), 4096)


def _names_itself(image: Image) -> None:
    image.poke_text("disk-flat.vmdk", image.path.name)


NAMED: Final = {
    "name-absolute": Damage(_nested, _absolute, REFUSES),
    "name-dotdot": Damage(_nested, _name("../secret"), REFUSES),
    "name-dotdot-backslash": Damage(_nested, _name("..\\secret"), REFUSES),
    "name-dotdot-hidden": Damage(_nested, _name("x/../../secret"), REFUSES),
    "name-device": Damage(good, _name("/dev/zero"), REFUSES),
    "name-proc": Damage(good, _name("/proc/self/mem"), REFUSES),
    "name-nbd": Damage(good, _name("nbd://localhost:10809/x"), REFUSES),
    "name-nbd-short": Damage(good, _name("nbd:localhost:10809"), REFUSES),
    "name-json": Damage(good, _name("json:{}"), REFUSES),
    "name-http": Damage(good, _name("http://localhost/x"), REFUSES),
    "name-file-url": Damage(_nested, _name("file:../secret"), REFUSES),
    "name-fd": Damage(good, _name("fd:0"), REFUSES),
    "name-dot": Damage(good, _name("."), REFUSES),
    "name-dotdot-only": Damage(good, _name(".."), REFUSES),
    "name-empty": Damage(good, _name(""), REFUSES),
    "name-long": Damage(good, _name("x" * 5000), REFUSES),
    "name-control": Damage(good, _name("a\x01b"), REFUSES),
    "name-drive": Damage(good, _name("C:\\disk-flat.vmdk"), REFUSES),
    "name-itself": Damage(good, _names_itself, ANY),
    "extent-fifo": Damage(good, _instead(os.mkfifo), REFUSES),
    "extent-directory": Damage(good, _instead(os.mkdir), REFUSES),
    "extent-symlink-out": Damage(_nested, _instead(_link_out), REFUSES),
    "extent-symlink-beside": Damage(good, _link_beside, REFUSES),
    "extent-lost": Damage(good, _instead(lambda path: None), REFUSES),
    "extent-short": Damage(good, _truncate(4096), FAILS),
    "extent-empty": Damage(good, _truncate(0), FAILS),
    "extent-long": Damage(good, _grow, READS, NOTE),
    "extent-named-twice": Damage(partial(split_flat, what="4k:A 4k:B", split=4096), _same_file, CAREFUL, NONE),
}
