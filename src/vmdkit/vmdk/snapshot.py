# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Take a snapshot: a child that gets all writes from now on (format spec 1.4, 1.11).

The disk itself is not touched. The child is of its family, since VMware does not mix them in a chain: a hosted disk
gets a hosted sparse child, split if it is split, a vmfs disk gets a vmfsSparse delta.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.units import format_size
from vmdkit.vmdk import layout
from vmdkit.vmdk.create import Recipe, create
from vmdkit.vmdk.same_content import is_unclean

if TYPE_CHECKING:
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files

_NUMBERED = re.compile(r"(.+)-(\d{6})")


def next_name(files: Files, path: str) -> str:
    """Return the first free ``x-NNNNNN.vmdk`` beside ``path``, above the number that it has (format spec 1.11)."""
    home, name = os.path.split(path)
    stem = re.sub(r"\.vmdk$", "", name, flags=re.IGNORECASE)
    numbered = _NUMBERED.fullmatch(stem)
    base, number = (numbered[1], int(numbered[2])) if numbered else (stem, 0)
    taken = set(files.names(files.real_path(home or ".")))
    for candidate in range(number + 1, 1_000_000):
        begin = f"{base}-{candidate:06d}"
        if not any(other == f"{begin}.vmdk" or other.startswith(f"{begin}-") for other in taken):
            return os.path.join(home, f"{begin}.vmdk")
    raise UsageError("every number of a snapshot is taken; say a name", path=path)


def family(disk: VmdkDisk) -> str:
    """Return the subformat that a child of ``disk`` should be; UnsupportedError where we write none such."""
    kind = disk.descriptor.create_type.lower()
    types = {extent.kind for extent in disk.extent_files}
    if "SESPARSE" in types or (kind.startswith("vmfs") and disk.size > layout.MOST_COWD):
        raise UnsupportedError(
            f"its snapshots are seSparse on ESX, which vmdkit does not write ({format_size(disk.size)}); "
            "-o subformat=… makes another kind",
            path=disk.name,
        )
    if kind.startswith("vmfs") or types & {"VMFS", "VMFSSPARSE"}:
        return "vmfsSparse"
    if kind.startswith(("twogb", "2gb")):
        return "twoGbMaxExtentSparse"
    return "monolithicSparse"


def snapshot(
    files: Files, disk: VmdkDisk, child: str, recipe: Recipe | None = None, *, overwrite: bool = False
) -> None:
    """Make ``child`` a child of ``disk``; without ``recipe`` of its family.

    Raises UsageError where the disk is being written or was not closed cleanly, since a child holds on to what it
    was made from; and what ``create`` raises.
    """
    refuse_unclean(disk)
    recipe = replace(Recipe(), subformat=family(disk)) if recipe is None else recipe
    create(files, child, disk.size, recipe, parent=disk, overwrite=overwrite)


def refuse_unclean(disk: VmdkDisk) -> None:
    """Raise UsageError where a writer has not finished with one of the extents."""
    if is_unclean(disk):
        raise UsageError(
            "it was not closed cleanly: it is in use, or its writer has crashed; check and repair it first",
            path=disk.name,
        )
