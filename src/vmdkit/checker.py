# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check disks by path: the door to ``vmdkit check``, for those who want a report rather than a screen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmdkit import finder
from vmdkit.errors import FormatError
from vmdkit.vmdk.check import How, check_disk, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        storage = finder.find_file(path)
    except FormatError as error:
        return unreadable(path, error)
    with storage:
        return check_disk(storage, gate, how, name=path)
