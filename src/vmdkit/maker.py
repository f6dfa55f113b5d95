# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make and change disks by path: the door to create, snapshot, commit, rebase, resize, compact.

Each function here opens what it needs and hands it, with the files, to the module that knows how. ``files`` takes
the place of the local file system, for those who record what is done to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit import opener
from vmdkit.storage.directory import LocalFiles

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files


class Workshop(LocalFiles):
    """The local file system, and disks opened as ``vmdkit.open`` does."""

    def __init__(self, *, allow_paths: Sequence[str] = ()) -> None:
        self.allow_paths = tuple(allow_paths)

    def open_disk(
        self, path: str, *, writable: bool = False, single_link: bool = False, ignore_cid: bool = False
    ) -> VmdkDisk:
        """Open a disk; see ``vmdkit.open``."""
        from vmdkit.vmdk.disk import VmdkDisk

        disk = opener.open(
            path, writable=writable, single_link=single_link, ignore_cid=ignore_cid, allow_paths=self.allow_paths
        )
        assert isinstance(disk, VmdkDisk)  # noqa: S101  # a path is opened as nothing else
        return disk


def create(
    path: str | os.PathLike[str],
    size: int | None = None,
    *,
    parent: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    files: Files | None = None,
    **options: Any,
) -> None:
    """Make a new disk of ``size`` bytes, rounded up to 512; with ``parent`` an empty child, which has its size.

    ``options`` are those of ``Recipe``: subformat, adapter, hwversion, grain (bytes), zeroed_grain, thin,
    preallocate. An existing file is refused unless ``overwrite``. Raises UsageError, ChainError, OSError, and what
    opening the parent raises; nothing is left behind then.
    """
    import os as paths

    from vmdkit.errors import UsageError
    from vmdkit.vmdk.create import Recipe
    from vmdkit.vmdk.create import create as make

    files = Workshop() if files is None else files
    recipe, name = Recipe(**options), paths.fspath(path)
    if parent is None:
        if size is None:
            raise UsageError("a size is needed; only a child takes it from its parent", path=name)
        make(files, name, size, recipe, overwrite=overwrite)
        return
    with files.open_disk(paths.fspath(parent)) as base:
        make(files, name, base.size if size is None else size, recipe, parent=base, overwrite=overwrite)
