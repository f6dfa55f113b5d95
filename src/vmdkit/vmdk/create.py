# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make new disks, and children, of every subformat that can be written (format spec 1.2 to 1.11).

::

    all files, temporary names │ barrier ─ extents get their names │ barrier ─ the descriptor gets its name │ barrier

A disk is there when its descriptor is, and then all of it is durable. An error, a signal or a power cut before that
leaves no disk: temporary files at most, and those only after a power cut.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit.errors import ChainError, UsageError
from vmdkit.units import KIB, SECTOR, TIB, format_size
from vmdkit.vmdk import descriptor_edit, layout
from vmdkit.vmdk.descriptor import NO_CID, parse
from vmdkit.vmdk.descriptor_text import NewLine, checked_name, new_long_id, new_uuid, render
from vmdkit.vmdk.flat import FlatExtent
from vmdkit.vmdk.fresh import FreshCowd, FreshHosted, NewDisk
from vmdkit.vmdk.hardware import check_hardware, hardware_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.extent_file import ExtentFile
    from vmdkit.vmdk.files import Files
    from vmdkit.vmdk.structs import CowdHeader, HostedHeader

SPARSE_PIECE = 4192256 * SECTOR  # 2047 MiB: with its tables the file stays below 2 GiB (format spec 1.11)
FLAT_PIECE = 4193792 * SECTOR
_MOST_PIECES = 65536
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Shape:
    """How a creatable subformat is laid out: extent type, name of its files, bytes of a piece (0: one file)."""

    name: str
    type: str
    suffix: str  # of an extent file's name; with %d for the number of a piece
    piece: int = 0
    embedded: bool = False
    child: bool = False  # can express "not here", so it can have a parent
    doc: str = ""

    @property
    def is_flat(self) -> bool:
        """Whether the extents are raw bytes."""
        return self.type in ("FLAT", "VMFS")


SHAPES: dict[str, Shape] = {
    shape.name.lower(): shape
    for shape in (
        Shape("monolithicSparse", "SPARSE", "", embedded=True, child=True, doc="one growing file"),
        Shape("twoGbMaxExtentSparse", "SPARSE", "-s%03d", SPARSE_PIECE, child=True, doc="growing files below 2 GiB"),
        Shape("monolithicFlat", "FLAT", "-flat", doc="a descriptor and one file of raw bytes"),
        Shape("twoGbMaxExtentFlat", "FLAT", "-f%03d", FLAT_PIECE, doc="a descriptor and raw files below 2 GiB"),
        Shape("vmfs", "VMFS", "-flat", doc="ESX: a descriptor and one flat file, thick or thin"),
        Shape("vmfsSparse", "VMFSSPARSE", "-delta", child=True, doc="ESX: a snapshot delta (COWD)"),
    )
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a new disk shall be.

    ``grain`` in bytes: a power of two, for hosted sparse 4 KiB to 1 MiB (default 64 KiB), for vmfsSparse 512 B to
    1 MiB (default 512 B). ``thin`` concerns vmfs, ``preallocate`` the other flat subformats; ``zeroed_grain`` makes
    sparse disks of version 2, whose zeros take no space over a parent, and which VirtualBox refuses.
    """

    subformat: str = "monolithicSparse"
    adapter: str = "lsilogic"
    hwversion: str = "10"
    grain: int | None = None
    zeroed_grain: bool = False
    thin: bool = False
    preallocate: bool = False

    @property
    def shape(self) -> Shape:
        """The row of SHAPES; UsageError where there is none."""
        shape = SHAPES.get(self.subformat.lower())
        if shape is None:
            known = ", ".join(row.name for row in SHAPES.values())
            raise UsageError(f"{self.subformat!r} cannot be created; {known} can")
        return shape

    def check(self, size: int, *, child: bool) -> None:
        """Raise UsageError for what contradicts itself or the format, for a disk of ``size`` bytes."""
        shape = self.shape
        check_hardware(self.adapter, self.hwversion)
        if child and not shape.child:
            raise UsageError(f"a {shape.name} disk cannot have a parent: raw bytes cannot say 'not here'")
        if self.grain is not None:
            if shape.is_flat:
                raise UsageError(f"a {shape.name} disk has no grains")
            layout.check_grain(self.grain, SECTOR if shape.type == "VMFSSPARSE" else 4 * KIB)
        if self.zeroed_grain and shape.type != "SPARSE":
            raise UsageError(f"a {shape.name} disk has no entry for a grain of zeros")
        if self.thin and shape.name != "vmfs":
            raise UsageError("only vmfs disks are thin or thick by name; others grow as they are written")
        if self.preallocate and (not shape.is_flat or self.thin):
            raise UsageError("only flat disks that are not thin are preallocated")
        check_size(size, shape)


def check_size(size: int, shape: Shape) -> None:
    """Raise UsageError for a size (bytes) that the subformat cannot have."""
    most = {"SPARSE": layout.MOST_HOSTED, "VMFSSPARSE": layout.MOST_COWD}.get(shape.type, _LARGEST)
    if shape.piece:
        most = min(shape.piece * _MOST_PIECES, _LARGEST)
    if size < 1:
        raise UsageError("a disk needs at least one byte")
    if size > most:
        other = "" if shape.piece or most > 2 * TIB else "; twoGbMaxExtentSparse and flat disks can be larger"
        raise UsageError(f"a {shape.name} disk holds at most {format_size(most)}{other}")


def create(
    files: Files,
    path: str,
    size: int,
    recipe: Recipe = Recipe(),
    *,
    parent: VmdkDisk | None = None,
    overwrite: bool = False,
) -> None:
    """Make a disk of ``size`` bytes (rounded up to a sector) at ``path``; with ``parent`` an empty child of it.

    Raises UsageError for contradictions, for names no descriptor can hold, and where a file exists and may not be
    overwritten; ChainError for a parent that cannot be one; OSError. Nothing is left behind then.
    """
    with Construction(files, path, size, recipe, parent, overwrite=overwrite) as work:
        work.build()
        work.publish()


@contextmanager
def new_disk(
    files: Files,
    path: str,
    size: int,
    recipe: Recipe = Recipe(),
    *,
    parent: VmdkDisk | None = None,
    overwrite: bool = False,
) -> Iterator[NewDisk]:
    """Give a new disk to be filled; it appears at ``path``, whole and durable, when the block ends without an error.

    Takes and raises what ``create`` does. The parent stays the caller's to close.
    """
    with Construction(files, path, size, recipe, parent, overwrite=overwrite) as work:
        yield work.build_disk()
        work.complete()
        work.publish()


@dataclass(slots=True)
class _Part:
    """One file being made: its last name, the temporary one, and what is in it."""

    final: str
    temporary: str
    length: int  # bytes of the disk; 0 for a separate descriptor
    storage: Device | None = None


@dataclass
class Construction:
    """A disk that has no name yet. A context: what is not published by its end is removed.

    ``build_disk``, fill the disk, ``complete``, perhaps ``read_back``, ``publish``. Without ``sync`` nothing waits
    for stable storage: for those who would rather repeat the work after a power cut.
    """

    files: Files
    path: str
    size: int
    recipe: Recipe
    parent: VmdkDisk | None
    overwrite: bool
    sync: bool = True
    _parts: list[_Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = layout.round_up(self.size, SECTOR)
        self.recipe.check(self.size, child=self.parent is not None)
        self._shape = self.recipe.shape
        self._final = self.files.real_path(self.path)
        self._home, name = os.path.split(self._final)
        self._stem = name.removesuffix(".vmdk") or name
        checked_name(self._stem)
        if self.parent is not None:
            self._check_parent(self.parent)
        for index, length in enumerate(self._lengths()):
            self._add(self._extent_name(index), length)
        if not self._shape.embedded:
            self._add(name, 0)
        self._refuse_existing(self._chain_files())

    def __enter__(self) -> Construction:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            if part.storage is not None:
                part.storage.close()
            if part.temporary:
                with suppress(FileNotFoundError):
                    self.files.remove(part.temporary)

    # ── what is made ─────────────────────────────────────────────────────────────────────────────────────────

    def _check_parent(self, parent: VmdkDisk) -> None:
        if parent.size != self.size:
            raise UsageError(
                f"a child has the size of its parent, {parent.size} bytes, not {self.size}", path=self.path
            )
        if parent.descriptor.cid == NO_CID:
            raise ChainError("its content ID says that it is no parent; a child could not name it", path=parent.name)

    def _lengths(self) -> list[int]:
        piece = self._shape.piece or self.size
        return [min(piece, self.size - at) for at in range(0, self.size, piece)]

    def _extent_name(self, index: int) -> str:
        if self._shape.embedded:
            return os.path.basename(self._final)
        suffix = self._shape.suffix % (index + 1) if "%" in self._shape.suffix else self._shape.suffix
        return f"{self._stem}{suffix}.vmdk"

    def _add(self, name: str, length: int) -> None:
        temporary = os.path.join(self._home, f".vmdkit-{os.urandom(6).hex()}.part")
        self._parts.append(_Part(os.path.join(self._home, name), temporary, length))

    def _chain_files(self) -> set[str]:
        """Return the real paths of everything that the parents are made of: nothing of that is overwritten."""
        paths: set[str] = set()
        link: Device | None = self.parent
        while link is not None:
            paths.update(self.files.real_path(path) for path in getattr(link, "files", ()))
            link = getattr(link, "parent", None)
        return paths

    def _refuse_existing(self, chain: set[str]) -> None:
        for part in self._parts:
            if part.final in chain:
                raise UsageError("its parent is made of this very file", path=self.shown(part.final))
            if self.files.exists(part.final) and not self.overwrite:
                raise UsageError("it exists; -f overwrites it", path=self.shown(part.final))

    def shown(self, name: str) -> str:
        """Return one of ``names`` as the user would write it."""
        return os.path.join(os.path.dirname(self.path), os.path.basename(name))

    def _text(self) -> bytes:
        """Return the descriptor. A child says of itself only what its parent cannot (format spec 1.6)."""
        shape, parent = self._shape, self.parent
        at = 0 if shape.type == "FLAT" else None
        lines = [
            NewLine(part.length, shape.type, os.path.basename(part.final), at) for part in self._parts if part.length
        ]
        cid = descriptor_edit.new_content_id(NO_CID)
        ddb = {"longContentID": new_long_id(cid)}
        if parent is not None:
            hint = hint_for(self.files, parent.name, self._final)
            return render(shape.name, lines, ddb, cid=cid, parent_cid=parent.descriptor.cid, hint=hint)
        ddb |= hardware_lines(self.size, self.recipe.adapter, self.recipe.hwversion) | {"uuid": new_uuid()}
        if self.recipe.thin:
            ddb["thinProvisioned"] = "1"
        return render(shape.name, lines, ddb, cid=cid)

    def build(self) -> None:
        """Write every file of an empty disk under its temporary name, durably."""
        text = self._text()
        for part in self._parts:
            with closing(self.files.new_file(part.temporary, self.shown(part.final))) as storage:
                if part.length:
                    self._write_extent(storage, part.length, text)
                else:
                    _write_text(storage, text)
                storage.flush()

    def build_disk(self) -> NewDisk:
        """Begin every file under its temporary name, and return the disk that they will be, to be filled."""
        text = self._text()
        extents: list[ExtentFile] = []
        for part in self._parts:
            storage = part.storage = self.files.new_file(part.temporary, self.shown(part.final))
            if part.length:
                extents.append(self._fresh(storage, part.length, text))
            else:
                _write_text(storage, text)
        self.disk = NewDisk(parse(text, self.path), extents, parent=self.parent)
        return self.disk

    def _write_extent(self, storage: Device, length: int, text: bytes) -> None:
        if self._shape.is_flat:
            self._write_flat(storage, length)
        elif self._shape.type == "VMFSSPARSE":
            layout.write_cowd(storage, self._cowd_header(length))
        else:
            layout.write_hosted(storage, self._hosted_header(length), text if self._shape.embedded else b"")

    def _fresh(self, storage: Device, length: int, text: bytes) -> ExtentFile:
        kind = self._shape.type
        if self._shape.is_flat:
            self._write_flat(storage, length)
            return FlatExtent(length, storage, start=0, kind=kind)
        if kind == "VMFSSPARSE":
            return FreshCowd(storage, self._cowd_header(length), kind=kind, whole=self.parent is None)
        return FreshHosted(storage, self._hosted_header(length), text if self._shape.embedded else b"", kind=kind)

    def _write_flat(self, storage: Device, length: int) -> None:
        storage.resize(length)
        if self.recipe.preallocate or (self._shape.name == "vmfs" and not self.recipe.thin):
            storage.zero(length, 0, no_hole=True)  # allocates: fallocate(2) where the file system has it

    def _cowd_header(self, length: int) -> CowdHeader:
        return layout.cowd_header(length, self.recipe.grain or layout.COWD_GRAIN)

    def _hosted_header(self, length: int) -> HostedHeader:
        area = layout.DESCRIPTOR_AREA if self._shape.embedded else 0
        grain = self.recipe.grain or layout.HOSTED_GRAIN
        return layout.hosted_header(length, grain, descriptor=area, zero_grains=self.recipe.zeroed_grain)

    # ── how it appears ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def names(self) -> list[str]:
        """The paths of all files that it will be made of, the descriptor's last."""
        return [part.final for part in self._parts]

    def complete(self) -> None:
        """Write what the disk still lacks; it is whole then, and with ``sync`` durable, though nameless."""
        self.disk.complete(sync=self.sync)

    def read_back(self) -> VmdkDisk:
        """Open the complete disk once more, for reading, before it has its name; whoever asks closes it."""
        from vmdkit.vmdk.read_back import open_parts  # on use: it brings every reader there is

        parts = {os.path.basename(part.final): part.temporary for part in self._parts}
        return open_parts(
            self.files, self._parts[-1].temporary, parts, self.parent.name if self.parent is not None else ""
        )

    def publish(self) -> None:
        """Give every file its name, the descriptor's last. A disk that is replaced disappears first as a whole."""
        for part in self._parts:
            if part.storage is not None and self.sync:
                part.storage.flush()
        last = self._parts[-1]
        if self.overwrite and len(self._parts) > 1:
            with suppress(FileNotFoundError):
                self.files.remove(last.final)
                self.files.sync_directory(self._home)
        done: list[_Part] = []
        try:
            for part in self._parts:
                if part is last and done:
                    self.files.sync_directory(self._home)
                self.files.rename(part.temporary, part.final, replace=self.overwrite)
                part.temporary = ""
                done.append(part)
            self.files.sync_directory(self._home)
        except BaseException:
            for part in done:
                with suppress(FileNotFoundError):
                    self.files.remove(part.final)
            raise


def _write_text(storage: Device, text: bytes) -> None:
    storage.resize(len(text))
    storage.pwrite(text, 0)


def hint_for(files: Files, parent: str, child: str) -> str:
    """Return how a child at path ``child`` names its parent: relative to its own directory (format spec 1.3)."""
    home = files.real_path(os.path.dirname(child) or ".")
    return checked_name(os.path.relpath(files.real_path(parent), home))
