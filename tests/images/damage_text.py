# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damage to the text of descriptors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from images.assemble import monolithic_flat
from images.damage_kinds import ANY, CAREFUL, FAILS, READS, REFUSES, Damage

if TYPE_CHECKING:
    from collections.abc import Callable

    from images.base import Image

good = partial(monolithic_flat, what="4k:A 4k:-")
LINE: Final = 'RW 16 FLAT "disk-flat.vmdk" 0'


def _line(*new: str) -> Callable[[Image], None]:
    """Return a damage that puts other lines in the place of the extent line."""

    def apply(image: Image) -> None:
        image.poke_text(LINE, "\n".join(new))

    return apply


def _drop(key: str) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        rows = image.path.read_text().splitlines(keepends=True)
        image.path.write_text("".join(row for row in rows if not row.startswith(key)))

    return apply


def _swap(old: str, new: str) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.poke_text(old, new)

    return apply


def _cid(image: Image) -> None:
    image.poke_text(f"CID={image.text.cid:08x}", "CID=xyz")


def _offset_beyond(image: Image) -> None:
    """Let the last sector lie behind the end of the file."""
    image.poke_text(LINE, LINE[:-1] + "1")
    image.model.write(image.model.pread(image.size - 512, 512), 0)
    image.bad.append((image.size - 512, 512))


def _append(data: bytes) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.path.write_bytes(image.path.read_bytes() + data)

    return apply


def _whole(data: bytes) -> Callable[[Image], None]:
    def apply(image: Image) -> None:
        image.path.write_bytes(data)

    return apply


TEXTS: Final = {
    "text-no-extents": Damage(good, _line(), REFUSES),
    "text-no-create-type": Damage(good, _drop("createType"), CAREFUL),
    "text-no-version": Damage(good, _drop("version"), CAREFUL),
    "text-no-cid": Damage(good, _drop("CID"), CAREFUL),
    "text-cid-not-hex": Damage(good, _cid, CAREFUL),
    "text-version-9": Damage(good, _swap("version=1", "version=9"), CAREFUL),
    "text-version-x": Damage(good, _swap("version=1", "version=x"), CAREFUL),
    "text-encoding-unknown": Damage(good, _swap('"UTF-8"', '"klingon"'), CAREFUL),
    "text-encoding-not-text": Damage(good, _swap('"UTF-8"', '"base64"'), CAREFUL),
    "text-size-0": Damage(good, _line('RW 0 FLAT "disk-flat.vmdk" 0'), ANY),
    "text-size-negative": Damage(good, _line('RW -16 FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-size-hex": Damage(good, _line('RW 0x10 FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-size-underscore": Damage(good, _line('RW 1_6 FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-size-foreign-digits": Damage(good, _line('RW １６ FLAT "disk-flat.vmdk" 0'), REFUSES),  # noqa: RUF001
    "text-size-huge": Damage(good, _line(f'RW {1 << 63} FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-size-many-digits": Damage(good, _line(f'RW {"9" * 5000} FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-sum-huge": Damage(good, _line(LINE, *[f"RW {1 << 60} ZERO"] * 40), REFUSES),
    "text-offset-negative": Damage(good, _line('RW 16 FLAT "disk-flat.vmdk" -1'), REFUSES),
    "text-offset-huge": Damage(good, _line(f'RW 16 FLAT "disk-flat.vmdk" {1 << 63}'), REFUSES),
    "text-offset-beyond": Damage(good, _offset_beyond, FAILS),
    "text-access-unknown": Damage(good, _line('RWX 16 FLAT "disk-flat.vmdk" 0'), REFUSES),
    "text-name-lacks": Damage(good, _line("RW 16 FLAT"), REFUSES),
    "text-quote-open": Damage(good, _line('RW 16 FLAT "disk-flat.vmdk'), REFUSES),
    "text-line-stops": Damage(good, _line("RW 16"), REFUSES),
    "text-zero-only": Damage(good, _line("RW 16 ZERO"), ANY),
    "text-many-extents": Damage(good, _line(LINE, *["RW 1 ZERO"] * 20_000), ANY),
    "text-nul-inside": Damage(good, _swap("# Extent description", "\0"), CAREFUL),
    "text-not-in-its-encoding": Damage(good, _append(b'ddb.comment = "\xff\xfe"\n'), READS),
    "text-two-mebibytes": Damage(good, _append(b"# padding\n" * 220_000), CAREFUL),
    "text-long-line": Damage(good, _append(b"#" * 500_000), CAREFUL),
    "text-empty": Damage(good, _whole(b""), REFUSES),
    "text-only-title": Damage(good, _whole(b"# Disk DescriptorFile\n"), REFUSES),
    "text-random": Damage(good, _whole(bytes(range(256)) * 16), REFUSES),
}
