# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find the descriptor of a path: in it, or, where the path is an extent file, beside it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError, VmdkitError
from vmdkit.gate import Allow, Deny, Gate, SameDir
from vmdkit.storage.file import open_file
from vmdkit.vmdk.descriptor import LARGEST, looks_like_descriptor
from vmdkit.vmdk.image import FileKind, classify, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmdkit.device import Device
    from vmdkit.storage.file import FileDevice
    from vmdkit.vmdk.descriptor import Descriptor

_EXTENT_NAME = re.compile(r"(.+?)-(?:flat|delta|sesparse|pt|rdmp?|[sf]\d{3,})\.vmdk", re.IGNORECASE)
_RAW_NAME = re.compile(
    r".+-(?:flat|pt|rdmp?|f\d{3,})\.vmdk", re.IGNORECASE
)  # those that hold the guest's bytes as such
_MOST_NEIGHBOURS = 4096  # files looked at for a descriptor


def gate_for(*, untrusted: bool, allow_paths: Sequence[str]) -> Gate:
    """Return the policy for names found inside an image."""
    if untrusted:
        return Deny()
    if allow_paths:
        return Allow(open_file, allow_paths, devices=True)
    return SameDir(open_file)


def find(path: str, *, untrusted: bool = False, writable: bool = False) -> tuple[Device, Descriptor]:
    """Return the file that holds the descriptor of ``path``, opened, and the descriptor.

    Raises FormatError where there is none, UnsupportedError, OSError. No neighbour is looked at if ``untrusted``.
    """
    name = os.path.basename(path)
    beside = None
    if not untrusted and _EXTENT_NAME.fullmatch(name):
        beside = _descriptor_beside(path, writable=writable)
    if beside is None and _RAW_NAME.fullmatch(name):
        open_file(path).close()
        # Never probed: its first bytes are the guest's, who could describe a disk made of its neighbours there.
        raise FormatError(
            "no descriptor beside it names this file, and it is named like a file of raw bytes; "
            "say --raw to read them, or rename it if it is a descriptor",
            path=path,
        )
    found = beside or _own_descriptor(path, writable=writable)
    if found is None and not untrusted:
        found = _descriptor_beside(path, writable=writable)
    if found is not None:
        return found
    raise FormatError(
        "this is an extent of a VMDK, and no descriptor beside it names it; "
        "its descriptor is the small text file that a disk is opened by",
        path=path,
    )


def find_file(path: str) -> Device:
    """Return the file that holds the descriptor of ``path``, opened, whatever state it is in; for those who check.

    Of an extent without a descriptor it is the extent. Raises FormatError for a file that is named like raw bytes
    and that no descriptor names, OSError, GateError.
    """
    named_so = _EXTENT_NAME.fullmatch(os.path.basename(path))
    beside = _descriptor_beside(path, writable=False) if named_so else None
    if beside is None and _RAW_NAME.fullmatch(os.path.basename(path)):
        open_file(path).close()
        raise FormatError("no descriptor beside it names this file, and it is named like one of raw bytes", path=path)
    if beside is not None:
        return beside[0]
    storage = open_file(path)
    try:
        extent = classify(storage) in (FileKind.HOSTED, FileKind.COWD, FileKind.SESPARSE) and not _holds_text(storage)
        beside = _descriptor_beside(path, writable=False) if extent else None
    except BaseException:
        storage.close()
        raise
    if beside is None:
        return storage
    storage.close()
    return beside[0]


def _holds_text(storage: Device) -> bool:
    try:
        return read_descriptor(storage) is not None
    except VmdkitError:
        return True


def _own_descriptor(path: str, *, writable: bool) -> tuple[Device, Descriptor] | None:
    """Open ``path`` and read the descriptor in it; None where it is an extent without one."""
    storage = open_file(path, writable=writable)
    try:
        text = read_descriptor(storage)
        if text is not None:
            return storage, text
        if classify(storage) is FileKind.UNKNOWN:
            raise FormatError(
                "this is no VMDK: neither a descriptor nor KDMV, COWD or seSparse at its beginning; "
                "say --raw if it holds raw bytes" + _empty(storage),
                path=path,
                offset=0,
            )
    except BaseException:
        storage.close()
        raise
    storage.close()
    return None


def _empty(storage: FileDevice) -> str:
    return "" if storage.size else " (it is empty)"


def _descriptor_beside(path: str, *, writable: bool) -> tuple[Device, Descriptor] | None:
    """Look in the directory of an extent file for the descriptor that names it."""
    name = os.path.basename(path)
    for candidate in _neighbours(path):
        text = _text_naming(name, candidate)
        if text is not None:
            return open_file(candidate, writable=writable, follow=False, regular=True), text
    return None


def _text_naming(name: str, candidate: str) -> Descriptor | None:
    """Return the descriptor in ``candidate`` if it has an extent called ``name``; what cannot be read has none."""
    try:
        with open_file(candidate, follow=False, regular=True) as storage:
            if storage.size > LARGEST or not looks_like_descriptor(storage.pread(storage.size, 0)):
                return None
            text = read_descriptor(storage)
    except (OSError, VmdkitError):
        return None
    return text if text is not None and any(line.name == name for line in text.extents) else None


def _neighbours(path: str) -> Iterator[str]:
    """Yield files that may be the descriptor of an extent: first the name that VMware gives it."""
    home, name = os.path.split(path)
    likely = _EXTENT_NAME.fullmatch(name)
    first = f"{likely[1]}.vmdk" if likely else ""
    if first and first != name:
        yield os.path.join(home, first)
    with os.scandir(home or ".") as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_NEIGHBOURS:
                return
            if entry.name.lower().endswith(".vmdk") and entry.name not in (first, name):
                yield os.path.join(home, entry.name)
