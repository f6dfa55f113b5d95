# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make and change disks by path: the door to create, snapshot, commit, rebase, resize, compact.

Each function here opens what it needs and hands it, with the files, to the module that knows how. ``files`` takes
the place of the local file system, for those who record what is done to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit import opener
from vmdkit.gate import Allow, SameDir
from vmdkit.storage.directory import LocalFiles

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from vmdkit.gate import Gate
    from vmdkit.vmdk.commit import Committed
    from vmdkit.vmdk.compact import Compacted
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
            path,
            writable=writable,
            single_link=single_link,
            ignore_cid=ignore_cid,
            allow_paths=self.allow_paths,
            with_children=True,  # each verb knows which of them it breaks
        )
        assert isinstance(disk, VmdkDisk)  # noqa: S101  # a path is opened as nothing else
        return disk

    def gate(self) -> Gate:
        """Allow what lies beside an image, and below the allowed paths."""
        if self.allow_paths:
            return Allow(self.open_file, self.allow_paths, devices=True)
        return SameDir(self.open_file)


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


def snapshot(
    disk: str | os.PathLike[str],
    child: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    files: Files | None = None,
    **options: Any,
) -> str:
    """Make a child of ``disk`` that gets all writes from now on; return its path.

    Default name: ``x-000001.vmdk`` and so on; default subformat: the disk's family (format spec 1.4). ``options``
    are those of ``Recipe``. Raises UsageError for a disk that was not closed cleanly, and what ``create`` raises.
    """
    import os as paths
    from dataclasses import replace

    from vmdkit.vmdk import snapshot as snapshots
    from vmdkit.vmdk.create import Recipe

    files = Workshop() if files is None else files
    base = paths.fspath(disk)
    path = snapshots.next_name(files, base) if child is None else paths.fspath(child)
    with files.open_disk(base) as opened:
        recipe = Recipe(**options)
        if "subformat" not in options:
            recipe = replace(recipe, subformat=snapshots.family(opened))
        snapshots.snapshot(files, opened, path, recipe, overwrite=overwrite)
    return path


def commit(
    child: str | os.PathLike[str],
    *,
    keep: bool = False,
    delete: bool = False,
    with_children: bool = False,
    progress: Callable[[int], None] | None = None,
    files: Files | None = None,
) -> Committed:
    """Merge ``child`` into its parent; then the child is emptied, or with ``keep`` left alone, or with ``delete`` gone.

    ``with_children`` commits though other disks were made from the parent. ``progress`` gets numbers of bytes.
    Raises UsageError, ChainError, UnsupportedError, OSError; the chain reads as before then, and the commit may be
    repeated, as it may after a power cut.
    """
    import os as paths

    from vmdkit.vmdk import commit as commits

    options = commits.CommitOptions(keep=keep, delete=delete, with_children=with_children)
    return commits.commit(
        Workshop() if files is None else files, paths.fspath(child), options, progress or (lambda _: None)
    )


def rebase(
    child: str | os.PathLike[str],
    parent: str | os.PathLike[str] | None,
    *,
    unsafe: bool = False,
    progress: Callable[[int], None] | None = None,
    files: Files | None = None,
) -> int:
    """Give ``child`` another parent, or with None none, without changing what it reads; return the bytes written.

    ``unsafe`` changes only the name and content ID of the parent. ``progress`` gets numbers of bytes looked at.
    Raises ChainError, UnsupportedError, UsageError, OSError; the disk reads as before then, as after a power cut.
    """
    import os as paths

    from vmdkit.vmdk import rebase as rebases

    files = Workshop() if files is None else files
    name = "" if parent is None else paths.fspath(parent)
    return rebases.rebase(files, paths.fspath(child), name, unsafe=unsafe, progress=progress or (lambda _: None))


def resize(
    disk: str | os.PathLike[str],
    size: int,
    *,
    shrink: bool = False,
    with_children: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    files: Files | None = None,
) -> tuple[int, int]:
    """Give ``disk`` a size of ``size`` bytes, rounded up to 512; return the old and the new size.

    ``shrink`` allows a smaller size: what lies behind is lost. ``with_children`` allows to break disks made from
    this one, ``overwrite`` to replace files that are in the way of new extents. ``progress`` gets numbers of bytes
    that had to be moved. Raises UsageError, UnsupportedError, OSError; the disk is whole then, as after a power cut,
    with its old size or the new one.
    """
    import os as paths

    from vmdkit.vmdk import resize as resizes

    files = Workshop() if files is None else files
    options = resizes.ResizeOptions(shrink=shrink, with_children=with_children, overwrite=overwrite)
    return resizes.resize(files, paths.fspath(disk), size, options, progress or (lambda _: None))


def compact(
    disk: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None, files: Files | None = None
) -> Compacted:
    """Make the files of ``disk`` as small as its data, in place; it reads as before, also after a power cut.

    Zeros are dropped, the last grains move to free places, the rest is cut off; in flat files zeros become holes.
    ``progress`` gets numbers of bytes examined. Raises UnsupportedError and what opening for writing raises.
    """
    import os as paths

    from vmdkit.vmdk import compact as compacts

    files = Workshop() if files is None else files
    return compacts.compact(files, paths.fspath(disk), progress or (lambda _: None))
