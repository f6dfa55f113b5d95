# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Merge a child into its parent, so that a power cut at any moment loses nothing (format spec 1.3, 4.3).

::

    1  parent: unclean flags │ barrier ── CID := the child's │ barrier
    2  child:  parentCID := the same │ barrier
    3  parent: every byte the child has │ tables │ barrier ── clean
    4  child:  emptied, or removed

The child stays as it is until everything it holds is durable in the parent. While the parent is half merged the
chain reads as before: wherever the parent has changed, the child has the same bytes above it. So every step may be
repeated, and a commit that was interrupted is finished by a second one. A power cut between 1 and 2 is known by the
parent's content ID, which is the child's and can have come from nowhere else: our readers go on reading then
(``chain.is_half_committed``), writing waits until the commit is repeated or the child repaired.

The parent takes over the child's content ID because it takes over its content: disks made from the child, and
backups that know it, find what they expect. Other children of the parent do not, and are told so by that very ID.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.device import DEPTH, ExtentFlags
from vmdkit.errors import ChainError, UnsupportedError, UsageError
from vmdkit.units import MIB
from vmdkit.vmdk import chain
from vmdkit.vmdk.children import Child, children, refuse_children
from vmdkit.vmdk.clear import clear
from vmdkit.vmdk.create import hint_for
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.descriptor_rewrite import rewrite
from vmdkit.vmdk.descriptor_text import Edit
from vmdkit.vmdk.same_content import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files

    Progress = Callable[[int], None]

_STEP = MIB  # bytes read and written at once
_ZERO_STEP = 256 * MIB


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What becomes of the child: ``keep`` leaves its data in it, ``delete`` removes it; else it is emptied.

    ``with_children`` commits though another disk was made from the parent, which cannot be read afterwards.
    """

    keep: bool = False
    delete: bool = False
    with_children: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """What was done: bytes merged, where to, and whether the child still holds data."""

    parent: str
    merged: int
    emptied: bool
    deleted: bool


def to_merge(child: VmdkDisk) -> int:
    """Return how many bytes of the disk ``child``, opened as a single link, holds itself."""
    return sum(length for _, length, _ in _own(child))


def commit(
    files: Files, path: str, options: CommitOptions = CommitOptions(), progress: Progress = lambda _: None
) -> Committed:
    """Merge the disk at ``path`` into its parent.

    Raises UsageError where there is no parent, where other disks were made from it, or where ``delete`` would leave
    a grandchild that cannot be pointed elsewhere; ChainError where the parent is missing or has changed;
    UnsupportedError where it cannot be written; OSError. After any error the chain reads as before, and the commit
    may be repeated.
    """
    if options.keep and options.delete:
        raise UsageError("a child is kept or deleted, not both", path=path)
    with _open_child(files, path) as child:
        if child.descriptor.parent_cid == NO_CID:
            raise UsageError("it has no parent that it could be committed to", path=path)
        with chain.open_parent(child.descriptor, files.gate()) as found:
            base = found.name
        with files.open_disk(base, writable=True) as parent:
            _check(files, child, parent, path, options)
            grandchildren = list(children(files, child))
            merged = _merge(files, child, parent, progress)
            _take_over(files, child, parent)  # where there was nothing to merge
            if options.delete:
                _adopt(files, grandchildren, parent)
        emptied = not (options.keep or options.delete) and child.writable and clear(child)
        names = list(child.files)
    if options.delete:
        _remove(files, names)
    return Committed(base, merged, emptied, options.delete)


def _open_child(files: Files, path: str) -> VmdkDisk:
    """Open the child alone: its parent is about to be written. What only ESX writes is opened for reading."""
    try:
        return files.open_disk(path, writable=True, single_link=True)
    except UnsupportedError:
        return files.open_disk(path, single_link=True)


def _check(files: Files, child: VmdkDisk, parent: VmdkDisk, path: str, options: CommitOptions) -> None:
    if parent.size != child.size:
        raise ChainError(f"its parent {parent.name} has {parent.size} bytes, this link {child.size}", path=path)
    mine, due = child.descriptor, parent.descriptor.cid
    # The parent has the child's own ID only after an interrupted commit of this very child.
    if due not in (mine.parent_cid, mine.cid):
        raise ChainError(
            f"its parent {parent.name} has changed since: content ID {due:08x}, {mine.parent_cid:08x} is due; "
            "merging would mix two states",
            path=path,
        )
    if not child.writable and not options.keep:
        raise UsageError(f"a {mine.create_type} child cannot be emptied or marked; -d keeps it as it is", path=path)
    if (
        not options.with_children and due != mine.cid
    ):  # else the parent has its new ID already, and who names it means that
        refuse_children(files, parent, "committing to it", but=path)


def _own(child: VmdkDisk) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, is zero) of what this link holds itself."""
    for run in child.extents(context=DEPTH):
        if run.flags == 1:
            for part in child.extents(run.length, run.offset):
                yield part.offset, part.length, bool(part.flags & ExtentFlags.ZERO)


def _merge(files: Files, child: VmdkDisk, parent: VmdkDisk, progress: Progress) -> int:
    """Write all that the child holds into the parent, durably."""

    def before() -> None:
        _take_over(files, child, parent)

    disk, session = quiet(parent, before)
    merged = 0
    for offset, length, zero in _own(child):
        for at, count in ranges.split(offset, length, _ZERO_STEP if zero else _STEP):
            if zero:
                disk.zero(count, at)
            else:
                disk.pwrite(child.pread(count, at), at)
            merged += count
            progress(count)
    disk.flush()
    session.close()
    return merged


def _take_over(files: Files, child: VmdkDisk, parent: VmdkDisk) -> None:
    """Give the parent the child's content ID, and tell the child: before the parent's first byte changes."""
    _set_content(files, parent, child)
    _set_parent_id(files, child, parent.descriptor.cid)


def _set_content(files: Files, parent: VmdkDisk, child: VmdkDisk) -> None:
    cid = child.descriptor.cid
    if parent.descriptor.cid == cid:
        return
    edit = Edit(parent.descriptor)
    edit.content(cid)
    long = child.descriptor.ddb.get("longcontentid", "")
    if parent.descriptor.ddb.get("longcontentid") and long[-8:].lower() == f"{cid:08x}":
        edit.put_ddb("longContentID", long)
    rewrite(files, parent, edit.result())


def _set_parent_id(files: Files, child: VmdkDisk, cid: int) -> None:
    if child.descriptor.parent_cid != cid and child.writable:
        edit = Edit(child.descriptor)
        edit.put("parentCID", f"{cid:08x}")
        rewrite(files, child, edit.result())


def _adopt(files: Files, grandchildren: list[Child], parent: VmdkDisk) -> None:
    """Point disks that were made from the child at the parent: it has the content ID that they expect."""
    for found in grandchildren:
        with files.open_disk(found.path, writable=True, single_link=True) as disk:
            edit = Edit(disk.descriptor)
            edit.put("parentFileNameHint", hint_for(files, parent.name, found.path))
            rewrite(files, disk, edit.result())


def _remove(files: Files, names: list[str]) -> None:
    """Remove a disk, its descriptor first: without it the rest is no disk."""

    for name in names:
        files.remove(name)
        files.sync_directory(os.path.dirname(files.real_path(name)))
