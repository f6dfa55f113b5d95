# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What making and changing disks needs of a file system, and nothing else.

Everything that ``create``, ``snapshot``, ``commit``, ``rebase``, ``resize`` and ``compact`` do to files passes
through an object of this kind and the Devices it gives. A recorder of power cuts takes its place, and so sees every
write, barrier, new name and removal in the order in which they happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.disk import VmdkDisk


class Files(Protocol):
    """A file system, and the door through which disks are opened. Errors are OSError and VmdkitError."""

    def open_file(self, path: str, *, writable: bool = False, follow: bool = True, regular: bool = False) -> Device:
        """Open an existing file; see ``vmdkit.gate.OpenFile``."""
        ...

    def new_file(self, path: str, name: str) -> Device:
        """Make an empty file at ``path``, which must not exist, and open it for writing; messages call it ``name``."""
        ...

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give ``old`` the name ``new`` in one step.

        With ``replace`` a file of that name is replaced, and its mode kept; else UsageError, and it is not harmed.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a name; FileNotFoundError where it is gone."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make new, changed and removed names in directory ``path`` durable."""
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is anything of that name; UsageError where it is no regular file."""
        ...

    def real_path(self, path: str) -> str:
        """Return the absolute path without symbolic links; the last part need not exist."""
        ...

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory."""
        ...

    def open_disk(
        self, path: str, *, writable: bool = False, single_link: bool = False, ignore_cid: bool = False
    ) -> VmdkDisk:
        """Open the disk that ``path`` holds, locked as any reader or writer locks it; see ``vmdkit.open``."""
        ...

    def gate(self) -> Gate:
        """Return the policy for names that are found in descriptors."""
        ...
