# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Give a child another parent, or none, without changing what it reads (format spec 1.3, 1.15).

::

    what shows through from the old parent and differs from the new one is written into the child │ tables │ barrier
    ── the descriptor names the new parent │ barrier

Before the last step the child is over its old parent and has some of its bytes twice; after it, over the new one.
Both read the same, so a power cut at any moment is harmless, and the content ID stays: nothing that was made from
the child, or backed up, notices. Unsafe rebasing is the last step alone, for parents that were moved or renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.device import DEPTH, Kind
from vmdkit.errors import ChainError, UnsupportedError
from vmdkit.units import MIB
from vmdkit.vmdk import chain
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.create import hint_for
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.descriptor_rewrite import check_room, rewrite
from vmdkit.vmdk.descriptor_text import Edit, new_uuid
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.hosted import HostedExtent
from vmdkit.vmdk.same_content import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.files import Files
    from vmdkit.vmdk.writable import WritableDisk

    Progress = Callable[[int], None]
    Tag = tuple[object, ...]

_STEP = MIB  # bytes compared at once
_ZERO: Tag = ("zero",)
# What a disk without a parent says of itself, and a child leaves to its parent (format spec 1.6).
_OF_THE_BASE = (
    "adapterType",
    "geometry.cylinders",
    "geometry.heads",
    "geometry.sectors",
    "toolsInstallType",
    "toolsVersion",
    "virtualHWVersion",
)


def rebase(files: Files, path: str, parent: str, *, unsafe: bool = False, progress: Progress = lambda _: None) -> int:
    """Make ``parent`` the parent of the disk at ``path``, or with an empty ``parent`` make that a disk of its own.

    ``unsafe`` only changes the descriptor: the caller knows that both parents read the same where the child has
    nothing. Returns how many bytes were written into the child. ``progress`` gets numbers of bytes, ``disk.size``
    in all. Raises ChainError for parents that are missing, changed, of another size or made from the
    child itself, UnsupportedError, OSError; the disk reads as before then.
    """
    with files.open_disk(path, writable=True, single_link=unsafe) as child:
        if not all(isinstance(extent, (HostedExtent, CowdExtent)) for extent in child.extent_files):
            raise UnsupportedError(f"a {child.descriptor.create_type} disk cannot have a parent", path=path)
        if not parent:
            return _onto(files, child, None, unsafe, progress)
        with files.open_disk(parent) as new:
            _check(files, child, new)
            return _onto(files, child, new, unsafe, progress)


def _check(files: Files, child: VmdkDisk, new: VmdkDisk) -> None:
    if new.size != child.size:
        raise ChainError(
            f"it has {new.size} bytes, its child would have {child.size}; all links of a chain are of one size",
            path=new.name,
        )
    if new.descriptor.cid == NO_CID:
        raise ChainError("its content ID says that it is no parent; a child could not name it", path=new.name)
    here = files.real_path(child.name)
    link: Device | None = new
    while link is not None:
        if files.real_path(link.name) == here:
            raise ChainError("it was made from the very disk that is to become its child", path=new.name)
        link = getattr(link, "parent", None)


def _onto(files: Files, child: VmdkDisk, new: VmdkDisk | None, unsafe: bool, progress: Progress) -> int:
    edit = Edit(child.descriptor)
    if new is None:
        edit.put("parentCID", f"{NO_CID:08x}")
        edit.put("parentFileNameHint", None)
        _describe(edit, child)
    else:
        edit.put("parentCID", f"{new.descriptor.cid:08x}")
        edit.put("parentFileNameHint", hint_for(files, new.name, files.real_path(child.name)))
    text = edit.result()
    check_room(child, text)
    written = 0
    if not unsafe:
        disk, session = quiet(child)
        written = _copy(disk, child.parent, new, progress)
        disk.flush()
        session.close()
    rewrite(files, child, text)
    return written


def _describe(edit: Edit, child: VmdkDisk) -> None:
    """Let a disk that stands alone say what its parents said: the newest link that says anything is right."""
    known: dict[str, str] = {}
    link: Device | None = child
    while isinstance(link, VmdkDisk):
        known = link.descriptor.ddb | known
        link = link.parent
    for key in _OF_THE_BASE:
        if key.lower() in known and key.lower() not in child.descriptor.ddb:
            edit.put_ddb(key, known[key.lower()])
    if "uuid" not in child.descriptor.ddb:
        edit.put_ddb("uuid", new_uuid())


def _copy(disk: WritableDisk, old: Device | None, new: Device | None, progress: Progress) -> int:
    """Write into ``disk`` what it does not hold itself and what differs between its parents; return the bytes."""
    written = 0
    missing = [(run.offset, run.length) for run in disk.extents(context=DEPTH) if run.flags != 1]
    progress(disk.size - sum(length for _, length in missing))
    grain = max(extent.grain for extent in disk.extent_files)
    for offset, length in missing:
        for at, count, before, after in ranges.pair(_cover(old, length, offset), _cover(new, length, offset)):
            if before != after or before[0] == "read":
                for start, step in ranges.split(at, count, max(_STEP, grain)):
                    written += _copy_differing(disk, old, new, start, step, grain)
            progress(count)
    return written


def _cover(device: Device | None, count: int, offset: int) -> Iterator[tuple[int, int, Tag]]:
    """Yield (offset, length, tag); equal tags mean equal bytes, but for "read"."""
    if device is None:
        yield offset, count, _ZERO
        return
    for run in device.locate(count, offset):
        if run.kind in (Kind.HOLE, Kind.ZERO):
            yield run.offset, run.length, _ZERO
        elif run.kind is Kind.DATA and run.storage is not None:
            yield run.offset, run.length, ("at", chain.identify(run.storage), run.at - run.offset)
        else:
            yield run.offset, run.length, ("read",)


def _copy_differing(
    disk: WritableDisk, old: Device | None, new: Device | None, offset: int, count: int, grain: int
) -> int:
    """Write the old bytes of those grains in which the parents differ."""
    before = old.pread(count, offset) if old is not None else bytearray(count)
    after = new.pread(count, offset) if new is not None else bytearray(count)
    if before == after:
        return 0
    differing = (
        (at, length, 0)
        for at, length in ranges.split(offset, count, grain)
        if before[at - offset : at - offset + length] != after[at - offset : at - offset + length]
    )
    written = 0
    for at, length, _ in ranges.coalesce(differing):
        disk.pwrite(before[at - offset : at - offset + length], at)
        written += length
    return written
