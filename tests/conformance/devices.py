# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every Device there is, each with the model of what it holds: the table that the conformance suite runs over."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import images
import ovas
from images import CHILDREN, PATCHED, SUBFORMATS
from layout import SECTOR
from model import Model
from require import requires
from vmdkit import opener
from vmdkit.device import BlockSize
from vmdkit.filters.slice import SliceDevice
from vmdkit.maker import Workshop
from vmdkit.nbd import ActivatedAddress, ClientOptions, CommandAddress, connect
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.create import Construction, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from images import Image
    from vmdkit.device import Device

MIXED: Final = "64k:A 64k:0 64k:- 32k:B 32k:- 128k:c 4k:D 4k:0 4k:- 1M:- 3M:E 60k:- 512:F"
TABLES: Final = "16320k:- 128k:A 16256k:- 64k:B 1M:- 8k:0 31M:- 4608:C"  # data on both sides of 16 and 32 MiB
OVER: Final = "4k:- 64k:G 60k:- 64k:0 40k:- 32k:0 24k:H 96k:- 12k:0 1M:- 3M:- 60k:- 512:0"  # as long as MIXED
FRESH: Final = [kind for kind in (*CHILDREN, "stream-A", "stream-B") if not kind.startswith("split")]
EXACT: Final = dict.fromkeys("-0", 3) | {"A": 0, images.PACKED: 0}


class Opened(NamedTuple):
    """An open device, what it must hold, and the image it was made from, if any."""

    device: Device
    model: Model
    image: Image | None = None

    def boundaries(self) -> list[int]:
        """Return the offsets at which anything begins or ends."""
        if self.image is not None:
            return self.image.boundaries()
        return sorted({0, self.model.size, *(segment.offset for segment in self.model.segments())})


def memory(directory: Path) -> Opened:
    model = Model(MIXED)
    return Opened(MemoryDevice(model.pread(model.size, 0)), model)


def raw_file(directory: Path, *, writable: bool = False) -> Opened:
    image = images.monolithic_flat(directory, MIXED)
    return Opened(opener.open(image.parts[0].path, raw=True, writable=writable), image.model)


def unnamed(directory: Path, *, recipe: Recipe) -> Opened:
    """A disk under construction, filled, that has no name yet."""
    model = Model(MIXED)
    path = str(directory / "new.vmdk")
    disk = Construction(Workshop(), path, model.size, recipe, None, overwrite=False).build_disk()
    for offset, length, what in model.segments():
        if what != "-":
            disk.pwrite(model.pread(length, offset), offset)
    return Opened(disk, model)


def window(directory: Path, *, start: int, block: int = 1) -> Opened:
    """A slice of a larger device; not where the blocks of that begin, if ``start`` is odd."""
    model = Model(MIXED)
    around = b"\xee" * start + model.pread(model.size, 0) + b"\xee" * (-(start + model.size) % 4096 + 4096)
    return Opened(SliceDevice(MemoryDevice(around, block_size=BlockSize(block)), start, model.size), model)


def window_of_file(directory: Path, *, start: int) -> Opened:
    model = Model(MIXED)
    path = directory / "around"
    path.write_bytes(b"\xee" * start + model.pread(model.size, 0) + b"\xee" * 5000)
    return Opened(SliceDevice(open_file(str(path)), start, model.size), model)


def in_ova(directory: Path, kind: str) -> Opened:
    image = SUBFORMATS[kind].build(directory, MIXED)
    part = ovas.Part("disk.vmdk", image.path.read_bytes(), image.size)
    path = ovas.ova(directory / "box.ova", ovas.Ovf([part]))
    return Opened(opener.open(f"{path}#disk.vmdk"), image.model)


def disk(directory: Path, kind: str, layout: str) -> Opened:
    image = {**SUBFORMATS, **PATCHED}[kind].build(directory, layout)
    return Opened(opener.open(image.path), image.model, image)


def child(directory: Path, base: str, tops: tuple[str, ...]) -> Opened:
    image = images.chain(directory, [(base, MIXED), *((top, OVER) for top in tops)])
    return Opened(opener.open(image.path), image.model, image)


def recipe(directory: Path, make: Callable[[Path], Image]) -> Opened:
    image = make(directory)
    return Opened(opener.open(image.path), image.model, image)


def ours(directory: Path) -> Opened:
    """An export of our own server: a chain, so that there is a second context."""
    image = images.chain(directory, [("hosted", MIXED), ("hosted", OVER)])
    command = [sys.executable, "-m", "vmdkit.cli.main", "serve", "-s", str(image.path)]
    return Opened(connect(CommandAddress(command)), image.model)


def export(directory: Path, command: Sequence[str], *, activated: bool = False, writable: bool = False) -> Opened:
    """An export of somebody else's server: a raw file; PATH in the command is where it lies."""
    requires(command[0])
    image = images.monolithic_flat(directory, MIXED)
    words = [str(image.parts[0].path) if word == "PATH" else word for word in command]
    address = ActivatedAddress(words) if activated else CommandAddress(words)
    return Opened(connect(address, writable=writable, options=ClientOptions(timeout=30)), image.model)


POLICY: Final = (
    "blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error",
)  # fmt: skip
DEVICES: Final[dict[str, Callable[[Path], Opened]]] = {
    "memory": memory,
    "file": raw_file,
    "file-writable": partial(raw_file, writable=True),
    "slice": partial(window, start=1000),
    "slice-aligned": partial(window, start=8192, block=4096),
    "slice-across-blocks": partial(window, start=700, block=512),
    "slice-of-file": partial(window_of_file, start=12345),
    "slice-of-file-from-0": partial(window_of_file, start=0),
    "new-sparse": partial(unnamed, recipe=Recipe(grain=4096)),
    "new-split-zeros": partial(unnamed, recipe=Recipe("twoGbMaxExtentSparse", zeroed_grain=True)),
    "new-cowd": partial(unnamed, recipe=Recipe("vmfsSparse")),
    "new-flat": partial(unnamed, recipe=Recipe("twoGbMaxExtentFlat")),
    "in-ova-stream": partial(in_ova, kind="stream-A"),
    "in-ova-sparse": partial(in_ova, kind="hosted"),
    **{kind: partial(disk, kind=kind, layout=MIXED) for kind in (*SUBFORMATS, *PATCHED)},
    **{
        f"{kind}-tables": partial(disk, kind=kind, layout=TABLES)
        for kind, row in SUBFORMATS.items()
        if (row.grain > SECTOR and not kind.startswith("split")) or kind == "vmfsSparse"
    },
    **{f"{kind}-fresh": partial(disk, kind=kind, layout="40M:-") for kind in FRESH},
    **{f"{kind}-over-hosted": partial(child, tops=(kind,), base="hosted") for kind in CHILDREN},
    "seSparse-over-stream": partial(child, base="stream-A", tops=("seSparse",)),
    "hosted-over-flat": partial(child, base="flat", tops=("hosted",)),
    "four-links": partial(child, base="vmfs", tops=("vmfsSparse", "seSparse-odd", "hosted-zeros")),
    "nbd": ours,
    "nbd-qemu": partial(export, command=("qemu-nbd", "-r", "-f", "raw", "PATH"), activated=True),
    "nbd-qemu-writable": partial(export, command=("qemu-nbd", "-f", "raw", "PATH"), activated=True, writable=True),
    "nbd-nbdkit": partial(export, command=("nbdkit", "-s", "file", "PATH")),
    "nbd-nbdkit-pool": partial(export, command=("nbdkit", "file", "PATH"), activated=True, writable=True),
    "nbd-nbdkit-simple": partial(export, command=("nbdkit", "-s", "--no-sr", "file", "PATH")),
    "nbd-nbdkit-blocks": partial(
        export, command=("nbdkit", "-s", "--filter=blocksize-policy", "file", "PATH", *POLICY)
    ),
    "cowd-recipe": partial(recipe, make=images.cowd_8m),
    "sesparse-recipe": partial(recipe, make=images.sesparse_100m),
}
