# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a disk larger or smaller, of every subformat that can be created.

::

    larger    extents grow, new ones are made │ barrier ── the descriptor says so │ barrier
    smaller   the descriptor says so │ barrier ── extents shrink, those that are left over go │ barrier

An extent that is larger than its line in the descriptor is legal and read up to the line; so the disk is whole at any
moment, with its old size or its new one, and the same command finishes what a power cut has interrupted. How the
tables of sparse extents are moved is told in relayout.py and cowd_resize.py.

All links of a chain have one size (format spec 1.1), so neither a child nor a disk with children is resized.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.units import SECTOR, format_size
from vmdkit.vmdk import descriptor_edit, layout
from vmdkit.vmdk.children import refuse_children
from vmdkit.vmdk.compact import close_gaps_cowd, close_gaps_hosted
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.cowd_resize import resize_cowd
from vmdkit.vmdk.create import SHAPES, Shape, check_size
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.descriptor_rewrite import check_room, rewrite
from vmdkit.vmdk.descriptor_text import Edit, NewLine
from vmdkit.vmdk.flat import FlatExtent
from vmdkit.vmdk.geometry import cylinders
from vmdkit.vmdk.hosted import HostedExtent
from vmdkit.vmdk.relayout import relayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.extent_file import ExtentFile
    from vmdkit.vmdk.files import Files
    from vmdkit.vmdk.structs import HostedHeader

    Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ResizeOptions:
    """What is allowed.

    ``shrink`` a smaller size, whose tail is lost; ``with_children`` to lose disks that were made from this one;
    ``overwrite`` to replace files that are in the way of new extents.
    """

    shrink: bool = False
    with_children: bool = False
    overwrite: bool = False


def resize(
    files: Files,
    path: str,
    size: int,
    options: ResizeOptions = ResizeOptions(),
    progress: Progress = lambda _: None,
) -> tuple[int, int]:
    """Give the disk at ``path`` a size of ``size`` bytes, rounded up to a sector; return the old and the new size.

    ``progress`` gets numbers of bytes that had to be moved. Raises UsageError for children and parents, for shrinking
    unasked, and for names that are taken; UnsupportedError for disks that we do not create; OSError.
    """
    size = layout.round_up(size, SECTOR)
    with files.open_disk(path, writable=True, single_link=True) as disk:
        work = _Resizing(files, disk, size, options)
        work.check()
        work.run(progress)
        return work.old_size, size


def _canonical(create_type: str) -> str:
    """Return the key of SHAPES for a createType, for the documentation's and ESX's old names too (format spec 1.4)."""
    name = create_type.lower()
    if name in ("vmfsthin", "vmfsthick", "vmfspreallocated", "vmfseagerzeroedthick"):
        return "vmfs"
    return name.replace("2gb", "twogb")


class _Resizing:
    """One resizing: what is to be, worked out before anything is changed."""

    def __init__(self, files: Files, disk: VmdkDisk, size: int, options: ResizeOptions) -> None:
        self.files = files
        self.disk = disk
        self.size = size
        self.options = options
        self.old_size = disk.size
        self.old = [line.length for line in disk.descriptor.extents]
        self.home = os.path.dirname(files.real_path(disk.name))

    # ── what may be done ─────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise where the disk cannot be resized; nothing has been changed then."""
        disk, text = self.disk, self.disk.descriptor
        if text.parent_cid != NO_CID:
            raise UsageError("it has a parent, and all links of a chain are of one size", path=disk.name)
        shape = SHAPES.get(_canonical(text.create_type))
        if shape is None or len(disk.extent_files) != len(text.extents) or not self._is_plain(shape):
            raise UnsupportedError(
                f"a disk of type {text.create_type or 'unknown'} made of these extents is not resized; "
                "convert it to a new one",
                path=disk.name,
            )
        self.shape = shape
        check_size(self.size, shape)
        if self.size < self.old_size and not self.options.shrink:
            raise UsageError(
                f"{format_size(self.size)} are less than it has ({format_size(self.old_size)}): what lies behind is "
                "lost (--shrink)",
                path=disk.name,
            )
        if not self.options.with_children:
            refuse_children(self.files, disk, "a new size")
        self.new = self._lengths()
        self._added = [
            NewLine(length, self._type(), self._name(len(self.old) + index), self._at())
            for index, length in enumerate(self.new[len(self.old) :])
        ]
        for line in self._added:
            if self.files.exists(os.path.join(self.home, line.name)) and not self.options.overwrite:
                raise UsageError("it is in the way of a new extent (-f overwrites it)", path=line.name)
        self.text = self._text()
        check_room(disk, self.text)

    def _is_plain(self, shape: Shape) -> bool:
        """Tell whether the extents are all what the subformat says."""
        kind = FlatExtent if shape.is_flat else CowdExtent if shape.type == "VMFSSPARSE" else HostedExtent
        lines = self.disk.descriptor.extents
        if len(lines) > 1 and not shape.piece:
            return False
        return all(isinstance(extent, kind) for extent in self.disk.extent_files) and all(
            line.access == "RW" and line.length for line in lines
        )

    def _lengths(self) -> list[int]:
        """Return the lengths of all extents: those that are there stay, but for the last."""
        if not self.shape.piece:
            return [self.size]
        piece = self.old[0] if len(self.old) > 1 else max(self.old[0], self.shape.piece)
        lengths: list[int] = []
        left = self.size
        while left:
            index = len(lengths)
            held = self.old[index] if index < len(self.old) else 0
            lengths.append(min(left, held if index < len(self.old) - 1 else max(piece, held)))
            left -= lengths[-1]
        return lengths

    def _type(self) -> str:
        return self.disk.descriptor.extents[0].type

    def _at(self) -> int | None:
        return 0 if self._type() == "FLAT" else None

    def _name(self, index: int) -> str:
        stem = os.path.basename(self.files.real_path(self.disk.name)).removesuffix(".vmdk")
        return f"{stem}{self.shape.suffix % (index + 1)}.vmdk"

    def _text(self) -> bytes:
        """Return the new descriptor: sizes, a new content ID, whole cylinders of the same shape."""
        edit, text = Edit(self.disk.descriptor), self.disk.descriptor
        edit.extents(self.new[: len(self.old)], self._added)
        edit.content(descriptor_edit.new_content_id(text.cid))
        heads, sectors = text.ddb.get("geometry.heads", ""), text.ddb.get("geometry.sectors", "")
        if heads.isdigit() and sectors.isdigit() and int(heads) * int(sectors):
            edit.put_ddb("geometry.cylinders", str(cylinders(self.size, int(heads), int(sectors))))
        return edit.result()

    # ── doing it ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, progress: Progress) -> None:
        """Do it, in the order that leaves a whole disk at any moment."""
        disk = self.disk
        lines, kept = disk.descriptor.extents, disk.extent_files[: len(self.new)]
        starts = [getattr(extent, "start", 0) for extent in kept]
        last = kept[-1]
        grows = self.size >= self.old_size
        last.mark_unclean(unclean=True)
        if last.storage is not None:
            last.storage.flush()
        if grows:
            self._resize_extent(last, starts[-1], self.new[len(kept) - 1], progress)
            self._add()
            self._rewrite()
        else:
            self._rewrite()
            self._resize_extent(last, starts[-1], self.new[len(kept) - 1], progress)
            if isinstance(last, HostedExtent):
                close_gaps_hosted(last.file)
            elif isinstance(last, CowdExtent):
                close_gaps_cowd(last.file)
            self._remove([line.name for line in lines[len(kept) :] if line.name is not None])
        last.mark_unclean(unclean=False)
        if last.storage is not None:
            last.storage.flush()

    def _rewrite(self) -> None:
        if self.size != self.old_size:
            rewrite(self.files, self.disk, self.text)

    def _resize_extent(self, extent: ExtentFile, start: int, length: int, progress: Progress) -> None:
        storage = extent.storage
        if storage is None:
            return
        if isinstance(extent, HostedExtent):
            relayout(storage, length, progress)
        elif isinstance(extent, CowdExtent):
            resize_cowd(storage, length, progress)
        else:
            self._resize_flat(extent, start, length)

    def _resize_flat(self, extent: ExtentFile, start: int, length: int) -> None:
        storage = extent.storage
        if storage is None:
            return
        old = extent.length
        if length > old:
            if storage.size < start + length:
                storage.resize(start + length)
            # The file may have been longer than the disk: what shows now has to be zero, and thick what was thick.
            storage.zero(length - old, start + old, no_hole=self._is_thick())
        elif length < old and storage.size > start + length:
            storage.resize(start + length)
        storage.flush()

    def _is_thick(self) -> bool:
        text = self.disk.descriptor
        thin = text.ddb.get("thinprovisioned") == "1" or text.create_type.lower() == "vmfsthin"
        return self.shape.name == "vmfs" and not thin

    def _add(self) -> None:
        """Make the new extents under their own names; nothing names them yet."""
        for line in self._added:
            final = os.path.join(self.home, line.name)
            temporary = os.path.join(self.home, f".vmdkit-{os.urandom(6).hex()}.part")
            try:
                with self.files.new_file(temporary, final) as storage:
                    if self.shape.is_flat:
                        storage.resize(line.length)
                    else:
                        layout.write_hosted(storage, self._header(line.length))
                    storage.flush()
                self.files.rename(temporary, final, replace=self.options.overwrite)
            finally:
                with suppress(FileNotFoundError):
                    self.files.remove(temporary)
        if self._added:
            self.files.sync_directory(self.home)

    def _header(self, length: int) -> HostedHeader:
        """Return the header of a further extent, of the version and grain of the others."""
        first = self.disk.extent_files[0]
        if not isinstance(first, HostedExtent):
            raise UnsupportedError("only sparse extents have a header", path=self.disk.name)
        header = layout.hosted_header(length, first.header.grain_size)
        header.version, header.flags = first.header.version, first.header.flags | header.flags
        return header

    def _remove(self, names: list[str]) -> None:
        """Remove extents that the descriptor does not name any more."""
        for name in names:
            with suppress(FileNotFoundError):
                self.files.remove(os.path.join(self.home, name))
        if names:
            self.files.sync_directory(self.home)
