# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A package in either of its two forms: an OVA, or a directory with an .ovf and the files it names.

Files are handed out as Devices to read from. In a directory they are opened through a gate: what an href names is a
bare name beside the descriptor, no link, a regular file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vmdkit import opener
from vmdkit.errors import FormatError, GateError, UnsupportedError, UsageError
from vmdkit.gate import SameDir
from vmdkit.ova import descriptor, xml
from vmdkit.ova.archive import Archive, read_archive
from vmdkit.storage.file import open_file

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from vmdkit.device import Device
    from vmdkit.ova.descriptor import Envelope

_MOST_NAMES = 4096


class Package:
    """An open package. ``names`` are its regular files: in an OVA in their order, in a directory those that count."""

    def __init__(self, path: str) -> None:
        """Open an OVA, an .ovf, or a directory with one. Raises FormatError for none of them, OSError."""
        self.path = path
        self.archive: Archive | None = None
        self._device: Device | None = None
        self._gate = SameDir(open_file)
        self._base = path
        if os.path.isdir(path):
            self._base = os.path.join(path, _only_descriptor(path))
        if os.path.isdir(path) or path.lower().endswith(".ovf"):
            self.names = [os.path.basename(self._base)]
            self.names += [name for name in (self._beside(".mf"), self._beside(".cert")) if name]
            return
        self._device = open_file(path)
        try:
            self.archive = read_archive(self._device)
        except BaseException:
            self._device.close()
            raise
        self.names = [member.name for member in self.archive.files()]

    @property
    def is_archive(self) -> bool:
        """Whether it is an OVA."""
        return self.archive is not None

    def descriptors(self) -> list[str]:
        """Return the names of all descriptors."""
        return [name for name in self.names if name.lower().endswith(".ovf")]

    def find(self, href: str) -> str | None:
        """Return the name of the file that an href means, written as it is or percent-encoded; None for no file."""
        for name in dict.fromkeys((href, href.removeprefix("./"), unquote(href))):
            if self.archive is not None:
                if name in self.names:
                    return name
            elif self._is_file(name):
                if name not in self.names and len(self.names) < _MOST_NAMES:
                    self.names.append(name)
                return name
        return None

    def _is_file(self, name: str) -> bool:
        try:
            self._gate.open(name, self._base).close()
        except (OSError, GateError):
            return False
        return True

    def _beside(self, ending: str) -> str | None:
        stem = os.path.splitext(os.path.basename(self._base))[0]
        name = stem + ending
        return name if self._is_file(name) else None

    def open(self, name: str) -> Device:
        """Open a file. Raises FormatError where it is cut off or there are two of that name, GateError, OSError."""
        if self.archive is not None:
            return self.archive.open(self.archive.find(name))
        return self._gate.open(name, self._base)

    def open_disk(self, name: str) -> Device:
        """Open a file as the disk that the guest sees. Raises what ``vmdkit.open`` raises."""
        if not self.is_archive:
            return opener.open(os.path.join(os.path.dirname(self._base), name))
        if not opener.names_archive(self.path):
            raise UnsupportedError("disks are read only out of files that are named .ova; rename it", path=self.path)
        return opener.open(f"{self.path}#{name}")

    def offset(self, name: str) -> int:
        """Return where the bytes of a file begin in the archive; 0 in a directory."""
        return self.archive.find(name).at if self.archive is not None else 0

    def read(self, name: str, most: int) -> bytes:
        """Return a small file whole. Raises FormatError where it has more than ``most`` bytes."""
        with self.open(name) as file:
            if file.size > most:
                raise FormatError(f"it has {file.size} bytes; {most} are the most that are read", path=file.name)
            return bytes(file.pread(file.size, 0))

    def envelope(self) -> tuple[str, Envelope]:
        """Return the name of the descriptor, and what it says. Raises FormatError where that cannot be said."""
        found = self.descriptors()
        if len(found) != 1:
            text = f"there are {len(found)} descriptors in it" if found else "there is no .ovf in it"
            raise FormatError(text, path=self.path)
        label = f"{self.path}#{found[0]}" if self.is_archive else self._base
        return found[0], descriptor.parse(self.read(found[0], xml.LARGEST), label)

    def close(self) -> None:
        """Close the archive."""
        if self._device is not None:
            self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only_descriptor(directory: str) -> str:
    names = sorted(name for name in os.listdir(directory) if name.lower().endswith(".ovf"))
    if len(names) != 1:
        text = f"there are {len(names)} .ovf files in it; name one" if names else "there is no .ovf file in it"
        raise UsageError(text, path=directory)
    return names[0]
