# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Decide which files an image may name.

Whatever stands *inside* an image (extent names, parent hints) was perhaps written by an attacker: a descriptor that
names ``/etc/shadow`` as its flat extent has leaked host files from OpenStack (CVE-2022-47951), and qemu-img still
follows it (users spec, A1 to A4). So nothing named inside an image is opened except through the Gate that the
caller handed in. Opening itself is done by the function the gate was made with; the gate gives it a name that has
passed, and the rule that the last component is no symbolic link and the thing opened is a regular file.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from vmdkit.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmdkit.device import Device

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # nbd:, json:, fd:, vsan:, but also C:
_LONGEST = 4096  # bytes; PATH_MAX of Linux


class OpenFile(Protocol):
    """How a gate opens what it has let through: no links followed at the end, regular files only if ``regular``."""

    def __call__(self, path: str, *, writable: bool, follow: bool, regular: bool) -> Device:
        """Open ``path``; raises GateError for what is refused, OSError for what fails."""
        ...


class Gate(ABC):
    """A policy for names found inside images."""

    @abstractmethod
    def resolve(self, name: str, base: str) -> str:
        """Return the path to open for ``name``, found inside the image at path ``base``; or raise GateError."""

    @abstractmethod
    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open ``name``, found inside the image at path ``base``; raises GateError or OSError."""


class Deny(Gate):
    """Open nothing: for single-file images from strangers."""

    def resolve(self, name: str, base: str) -> str:
        """Refuse."""
        raise GateError(f"the image names {name!r}; opening further files is not allowed", path=base)

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Refuse."""
        raise GateError(f"the image names {name!r}; opening further files is not allowed", path=base)


class SameDir(Gate):
    """Open bare file names in the directory of the image that names them: the default."""

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    def resolve(self, name: str, base: str) -> str:
        """Return ``name`` in the directory of ``base``; refuse anything that is no bare file name."""
        _check_name(name, base)
        if "/" in name or name in {".", ".."}:
            raise GateError(
                f"the image names {name!r}, which lies outside its own directory; "
                "allow that directory if you trust the image (--allow-path DIR)",
                path=base,
            )
        return os.path.join(os.path.dirname(base), name)

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a regular file beside ``base``; a symbolic link is refused."""
        return _open_checked(self._open_file, self.resolve(name, base), name, base, writable, devices=False)


class Allow(Gate):
    """Open what lies beside the image or below one of ``directories``, after all links are resolved.

    With ``devices`` true, block devices below them are opened too (fullDevice disks).
    """

    def __init__(self, open_file: OpenFile, directories: Sequence[str], *, devices: bool = False) -> None:
        self._open_file = open_file
        self._roots = [os.path.realpath(directory) for directory in directories]
        self._devices = devices

    def resolve(self, name: str, base: str) -> str:
        """Return the real path of ``name`` seen from ``base``; refuse what is below no allowed directory."""
        _check_name(name, base)
        home = os.path.dirname(os.path.abspath(base))
        path = os.path.realpath(os.path.join(home, name))
        for root in (os.path.realpath(home), *self._roots):
            if path.startswith(root.rstrip("/") + "/"):
                return path
        raise GateError(f"the image names {name!r}, which is {path}: below no allowed directory", path=base)

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open the real path of ``name``."""
        path = self.resolve(name, base)
        return _open_checked(self._open_file, path, name, base, writable, devices=self._devices)


def _check_name(name: str, base: str) -> None:
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= _LONGEST or any(ord(char) < 32 for char in name):
        raise GateError(f"the image names {name[:80]!r}, which is no file name here", path=base)
    if _SCHEME.match(name) and not _is_drive(name):
        raise GateError(f"the image names {name!r}; addresses inside an image are not followed", path=base)


def _is_drive(name: str) -> bool:
    """Tell ``C:/x`` from ``nbd:x``: one letter is a Windows drive, to be refused as a path, not as an address."""
    return len(name) > 1 and name[1] == ":"


def _open_checked(open_file: OpenFile, path: str, name: str, base: str, writable: bool, *, devices: bool) -> Device:
    try:
        return open_file(path, writable=writable, follow=False, regular=not devices)
    except GateError as error:
        raise GateError(f"the image names {name!r}: {error.message}", path=base) from error
