# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find the children of a disk. No disk knows its children: only the directory can be searched (format spec 1.3)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import UsageError, VmdkitError
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.image import read_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files

_MOST_NEIGHBOURS = 4096  # files looked at


class Child(NamedTuple):
    """A descriptor that names the disk as its parent, and agrees with its content ID."""

    path: str
    text: Descriptor


def children(files: Files, disk: VmdkDisk, but: str = "") -> Iterator[Child]:
    """Yield the children of ``disk`` in its own directory, except the one at path ``but``."""
    cid = disk.descriptor.cid
    here = files.real_path(disk.name)
    home, name = os.path.split(here)
    left_out = {here, files.real_path(but) if but else ""}
    for count, neighbour in enumerate(sorted(files.names(home))):
        path = os.path.join(home, neighbour)
        if count >= _MOST_NEIGHBOURS:
            return
        if not neighbour.lower().endswith(".vmdk") or path in left_out:
            continue
        text = _text(files, path)
        if text is not None and _is_child(text, cid, name):
            yield Child(path, text)


def refuse_children(files: Files, disk: VmdkDisk, what: str, but: str = "") -> None:
    """Raise UsageError where another disk in the directory was made from this one; ``what`` would break it."""
    found = [os.path.basename(child.path) for child in children(files, disk, but)]
    if found:
        names = ", ".join(found[:3]) + (" and others" if len(found) > 3 else "")
        raise UsageError(
            f"{names} would be broken by {what}: made from this disk as it is (--with-children)", path=disk.name
        )


def _text(files: Files, path: str) -> Descriptor | None:
    try:
        with files.open_file(path, follow=False, regular=True) as storage:
            return read_descriptor(storage)
    except (OSError, VmdkitError):
        return None


def _is_child(text: Descriptor, cid: int, name: str) -> bool:
    try:
        if text.parent_cid == NO_CID or text.parent_cid != cid:
            return False
    except VmdkitError:
        return False
    return text.parent_hint.replace("\\", "/").rsplit("/", 1)[-1] in ("", name)
