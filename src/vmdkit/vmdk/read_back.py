# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Open a disk that is complete but has no name yet, as any reader will open it once it has.

Its descriptor names files by their last names; the gate here leads from those to the temporary ones. Everything else
is the reader's own path: what is read back shares nothing with what wrote it but the bytes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError
from vmdkit.gate import Deny, Gate
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmdkit.device import Device
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files


def open_parts(files: Files, first: str, parts: Mapping[str, str], parent: str = "") -> VmdkDisk:
    """Return the disk whose descriptor is in the file ``first``.

    ``parts`` leads from the names in it to the paths they have for now; ``parent`` is the path that was named as the
    parent. Raises what opening raises; the caller closes it.
    """
    return _open(files.open_file(first), _Parts(files, parts, parent))


def open_single(storage: Device) -> VmdkDisk:
    """Return the disk that is in one file; takes over ``storage``, also on failure. Raises what opening raises."""
    return _open(storage, Deny())


def _open(storage: Device, gate: Gate) -> VmdkDisk:
    try:
        text = read_descriptor(storage)
        if text is None:
            raise FormatError("what was written is no disk", path=storage.name)
    except BaseException:
        storage.close()
        raise
    return open_image(storage, text, gate, Options())


class _Parts(Gate):
    """Lets through the files just made, the parent that was asked for, and what its own chain may name."""

    def __init__(self, files: Files, parts: Mapping[str, str], parent: str) -> None:
        self._files = files
        self._parts = parts
        self._parent = files.real_path(parent) if parent else ""

    def resolve(self, name: str, base: str) -> str:
        """Return the path that ``name`` has for now."""
        if name in self._parts:
            return self._parts[name]
        path = self._files.real_path(os.path.join(os.path.dirname(base), name))
        return path if path == self._parent else self._files.gate().resolve(name, base)

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open it."""
        path = self.resolve(name, base)
        if name in self._parts or path == self._parent:
            return self._files.open_file(path, regular=True)
        return self._files.gate().open(name, base)
