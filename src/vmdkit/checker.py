# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check disks by path, and clear their locks: the door to ``vmdkit check`` and ``unlock``."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from vmdkit import finder
from vmdkit.errors import FormatError, VmdkitError
from vmdkit.opener import names_archive
from vmdkit.vmdk import locks
from vmdkit.vmdk.check import How, check_disk, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.check_findings import Report


def check(
    location: str | os.PathLike[str],
    *,
    chain: bool = False,
    shallow: bool = False,
    threads: int = 2,
    untrusted: bool = False,
    allow_paths: Sequence[str] = (),
) -> Report:
    """Check the disk at a path, and return what was found; damage is no error here.

    ``chain`` checks every parent too. ``shallow`` does not read the grains of streams. Raises OSError where the file
    itself cannot be opened, GateError where it is no file.
    """
    path = os.fspath(location)
    how = How(chain=chain, shallow=shallow, threads=threads)
    gate = finder.gate_for(untrusted=untrusted, allow_paths=allow_paths)
    try:
        if names_archive(path):
            storage, gate = _in_archive(path)
        else:
            storage = finder.find_file(path)
    except FormatError as error:
        return unreadable(path, error)
    with storage:
        return check_disk(storage, gate, how, name=path)


def _in_archive(location: str) -> tuple[Device, Gate]:
    """Open a disk inside an OVA, whatever state it is in; the module lies above this one."""
    opened: tuple[Device, Gate] = import_module("vmdkit.ova.disk").open_storage(location)
    return opened


def unlock(location: str | os.PathLike[str], *, force: bool = False, allow_paths: Sequence[str] = ()) -> list[str]:
    """Remove the locks that dead programs have left beside the files of a disk; return what was removed, in words.

    Raises LockedError for the lock of a living program, and without ``force`` for one of another machine.
    """
    path = os.fspath(location)
    gate = finder.gate_for(untrusted=False, allow_paths=allow_paths)
    removed: list[str] = []
    for name in _files_of(path, gate):
        removed += [f"{what} on {name}" for what in locks.unlock(name, force=force)]
    return removed


def _files_of(path: str, gate: Gate) -> list[str]:
    """Return the files of a disk as far as its descriptor tells; a lock may be there where a file is not."""
    try:
        storage, text = finder.find(path)
    except VmdkitError:
        return [path]
    storage.close()
    names = [storage.name]
    for line in text.extents:
        with suppress(VmdkitError):
            names += [gate.resolve(line.name, text.path)] if line.name else []
    return list(dict.fromkeys([path, *names]))
