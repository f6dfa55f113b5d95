# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks whose descriptor is a file of its own: any extents side by side, and the named subformats made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Unpack

from images.base import Common, Draft, Image, Part, Run
from images.cowd import Cowd, write_cowd
from images.flat import Flat, write_flat
from images.hosted import Hosted, write_hosted
from images.sesparse import SeSparse, write_sesparse
from images.stream import Stream, write_stream
from layout import SECTOR, ZERO, size_of
from model import Model

if TYPE_CHECKING:
    from pathlib import Path

Knobs = Flat | Hosted | Stream | Cowd | SeSparse
SPLIT_HOSTED: Final = Hosted(descriptor=0)  # VMware's; qemu's has descriptor=20


class Piece(NamedTuple):
    """One extent line to be: ``kind`` is its type, ``length`` in bytes (0: what remains)."""

    kind: str
    length: int = 0
    access: str = "RW"
    knobs: Knobs | None = None
    file: str = ""  # default: NAME-e001.vmdk and so on
    tail: str | None = None  # what follows the file name; default: the offset for FLAT, else nothing


def assemble(
    directory: Path, what: str | Model, pieces: list[Piece], create_type: str = "custom", **common: Unpack[Common]
) -> Image:
    """Build a disk of extents side by side. Under ZERO the model is made zero, under NOACCESS unreadable."""
    draft = Draft(directory, what, common)
    parts: list[Part] = []
    starts: list[int] = []
    lines: list[str] = []
    gaps: list[Run] = []
    noaccess: list[tuple[int, int]] = []
    at = 0
    for number, piece in enumerate(pieces, 1):
        length = piece.length or draft.model.size - at
        line = f"{piece.access} {length // SECTOR} {piece.kind}"
        if piece.kind == "ZERO":
            draft.model.put(ZERO, length, at)
            gaps.append(Run(at, length, ZERO))
        else:
            path = directory / (piece.file or f"{draft.name}-e{number:03d}.vmdk")
            parts.append(_write(path, draft.model, at, length, piece))
            starts.append(at)
            line += f' "{path.name}"' + _tail(piece)
        if piece.access == "NOACCESS":
            noaccess.append((at, length))
        lines.append(line)
        at += length
    if at != draft.model.size:
        raise ValueError(f"the extents cover {at} bytes of {draft.model.size}")
    text = draft.text(create_type, tuple(lines))
    draft.path.write_bytes(text.render(draft.style))
    image = draft.image(text, parts, starts)
    image.gaps, image.noaccess = gaps, noaccess
    return image


def _write(path: Path, model: Model, start: int, length: int, piece: Piece) -> Part:
    match piece.knobs or _default(piece.kind):
        case Flat() as knobs:
            return write_flat(path, model, start, length, knobs)
        case Hosted() as knobs:
            return write_hosted(path, model, start, length, knobs)
        case Stream() as knobs:
            return write_stream(path, model, start, length, knobs)
        case Cowd() as knobs:
            return write_cowd(path, model, start, length, knobs)
        case SeSparse() as knobs:
            return write_sesparse(path, model, start, length, knobs)


def _default(kind: str) -> Knobs:
    sparse: dict[str, Knobs] = {"SPARSE": SPLIT_HOSTED, "VMFSSPARSE": Cowd(), "SESPARSE": SeSparse()}
    return sparse.get(kind, Flat())


def _tail(piece: Piece) -> str:
    if piece.tail is not None:
        return piece.tail
    if piece.kind == "FLAT":
        return f" {piece.knobs.before // SECTOR if isinstance(piece.knobs, Flat) else 0}"
    return ""


def _split(size: int, step: int) -> list[int]:
    return [min(step, size - at) for at in range(0, size, step)]


def _size(what: str | Model) -> int:
    return what.size if isinstance(what, Model) else size_of(what)


def monolithic_flat(directory: Path, what: str | Model, knobs: Flat | None = None, **common: Unpack[Common]) -> Image:
    """Build a descriptor and one flat file."""
    name = common.get("name", "disk")
    return assemble(directory, what, [Piece("FLAT", knobs=knobs, file=f"{name}-flat.vmdk")], "monolithicFlat", **common)


def split_flat(directory: Path, what: str | Model, split: int = 256 << 10, **common: Unpack[Common]) -> Image:
    """Build twoGbMaxExtentFlat with extents of ``split`` bytes."""
    name = common.get("name", "disk")
    pieces = [
        Piece("FLAT", length, file=f"{name}-f{number:03d}.vmdk")
        for number, length in enumerate(_split(_size(what), split), 1)
    ]
    return assemble(directory, what, pieces, "twoGbMaxExtentFlat", **common)


def split_sparse(
    directory: Path,
    what: str | Model,
    knobs: Hosted | None = None,
    split: int = 256 << 10,
    **common: Unpack[Common],
) -> Image:
    """Build twoGbMaxExtentSparse with extents of ``split`` bytes."""
    name = common.get("name", "disk")
    pieces = [
        Piece("SPARSE", length, knobs=knobs or SPLIT_HOSTED, file=f"{name}-s{number:03d}.vmdk")
        for number, length in enumerate(_split(_size(what), split), 1)
    ]
    return assemble(directory, what, pieces, "twoGbMaxExtentSparse", **common)


VMFS_TYPES: Final = ("vmfs", "vmfsThin", "vmfsPreallocated", "vmfsEagerZeroedThick", "vmfsThick")


def vmfs(directory: Path, what: str | Model, create_type: str = "vmfs", **common: Unpack[Common]) -> Image:
    """Build an ESX disk: a descriptor and one flat file, whose extent line has no offset."""
    name = common.get("name", "disk")
    return assemble(directory, what, [Piece("VMFS", file=f"{name}-flat.vmdk")], create_type, **common)


def vmfs_sparse(directory: Path, what: str | Model, knobs: Cowd | None = None, **common: Unpack[Common]) -> Image:
    """Build an ESX delta: a descriptor and one COWD file."""
    name = common.get("name", "disk")
    piece = Piece("VMFSSPARSE", knobs=knobs, file=f"{name}-delta.vmdk")
    return assemble(directory, what, [piece], "vmfsSparse", **common)


def se_sparse(directory: Path, what: str | Model, knobs: SeSparse | None = None, **common: Unpack[Common]) -> Image:
    """Build a VMFS6 delta: a descriptor and one seSparse file."""
    name = common.get("name", "disk")
    piece = Piece("SESPARSE", knobs=knobs, file=f"{name}-sesparse.vmdk")
    return assemble(directory, what, [piece], "seSparse", **common)


def full_device(directory: Path, what: str | Model, **common: Unpack[Common]) -> Image:
    """Build fullDevice on an image file that stands for the device."""
    name = common.get("name", "disk")
    return assemble(directory, what, [Piece("FLAT", file=f"{name}.raw")], "fullDevice", **common)


def partitioned_device(directory: Path, what: str | Model, **common: Unpack[Common]) -> Image:
    """Build partitionedDevice: a copy of the partition table, one partition at its offset, zeros for the others."""
    name = common.get("name", "disk")
    size = _size(what)
    table = min(63 * SECTOR, size // 4 // SECTOR * SECTOR)
    zeros = size // 4 // SECTOR * SECTOR
    pieces = [
        Piece("FLAT", table, file=f"{name}-pt.vmdk"),
        Piece("FLAT", size - table - zeros, knobs=Flat(before=table, after=zeros), file=f"{name}.raw"),
        Piece("ZERO", zeros),
    ]
    return assemble(directory, what, pieces, "partitionedDevice", **common)


def monolithic_and_more(directory: Path, what: str | Model, first: int, **common: Unpack[Common]) -> Image:
    """Build a sparse file of ``first`` bytes that holds the descriptor, and a flat file with the rest: legal, rare."""
    draft = Draft(directory, what, common)
    size, rest = draft.model.size, directory / f"{draft.name}-f001.vmdk"
    lines = (
        f'RW {first // SECTOR} SPARSE "{draft.path.name}"',
        f'RW {(size - first) // SECTOR} FLAT "{rest.name}" 0',
    )
    text = draft.text("custom", lines)
    one = write_hosted(draft.path, draft.model, 0, first, Hosted(), text.render(draft.style))
    return draft.image(
        text, [one, write_flat(rest, draft.model, first, size - first, Flat())], [0, first], embedded=True
    )


def custom(directory: Path, what: str | Model, **common: Unpack[Common]) -> Image:
    """Build a disk that mixes four kinds of extents, each a quarter of the disk (in whole grains)."""
    quarter = max(_size(what) // 4 // (64 << 10), 1) * (64 << 10)
    if quarter * 3 >= _size(what):
        quarter = max(_size(what) // 4 // SECTOR, 1) * SECTOR
    pieces = [
        Piece("FLAT", quarter, knobs=Flat(before=512)),
        Piece("SPARSE", quarter),
        Piece("ZERO", quarter),
        Piece("SPARSE", knobs=Hosted(grain=8 << 10), access="RDONLY"),
    ]
    return assemble(directory, what, pieces, "custom", **common)
