# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a descriptor for extent files that have lost theirs (format spec 1.2 to 1.11). Never overwrites one.

What the files say is taken from them; what nobody can know is new: the content ID, unless a child beside it says
which one it expects, adapter and hardware version. A delta needs to be told its parent.
"""

from __future__ import annotations

import os
import random
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError, UnsupportedError, UsageError, VmdkitError
from vmdkit.units import SECTOR
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.descriptor_text import NewLine, new_long_id, new_uuid, render
from vmdkit.vmdk.geometry import geometry
from vmdkit.vmdk.hosted import read_header
from vmdkit.vmdk.image import FileKind, classify, read_descriptor
from vmdkit.vmdk.sesparse import SeSparseExtent

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.files import Files

_NAME = re.compile(r"(.+?)-(flat|delta|sesparse|([sf])(\d{3,}))\.vmdk", re.IGNORECASE)
_MOST_NEIGHBOURS = 4096
_FLAT = ("vmfs", "monolithicFlat")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A new descriptor: where it goes, what it says, and where its content ID comes from."""

    path: str
    text: bytes
    cid: int
    origin: str


def rebuild(files: Files, path: str, *, flat_type: str = "", parent: str = "", adapter: str = "lsilogic") -> Rebuilt:
    """Return the descriptor that the extent file ``path`` should have; writes nothing.

    ``flat_type`` is what a ``-flat`` file becomes: vmfs (the default, ESX) or monolithicFlat. ``parent`` is the disk
    that a delta was made from. Raises UsageError where something has to be said that is not, UnsupportedError,
    FormatError where the file is damaged, OSError.
    """
    match = _NAME.fullmatch(os.path.basename(path))
    if match is None:
        raise UsageError(
            "its name is none of an extent file (-flat, -delta, -sesparse, -s001, -f001), so nobody knows what "
            "else belongs to it", path=path,
        )  # fmt: skip
    home, base = os.path.dirname(path), match[1]
    target = os.path.join(home, f"{base}.vmdk")
    if files.exists(target):
        raise UsageError("it exists; a descriptor is never overwritten", path=target)
    names = _pieces(files, home, base, match)
    with ExitStack() as stack:
        found = [stack.enter_context(files.open_file(os.path.join(home, name), regular=True)) for name in names]
        create_type, lines = _lines(found, names, match, flat_type)
    size = sum(line.length for line in lines)
    above = _parent(files, parent, size) if parent else None
    if above is None and create_type in ("vmfsSparse", "seSparse"):
        raise UsageError("a delta has a parent; say which disk it was made from (--parent DISK)", path=path)
    cid, origin = _content_id(files, home, os.path.basename(target))
    hint = os.path.relpath(files.real_path(parent), files.real_path(home or ".")) if parent else ""
    text = render(
        create_type, lines, _database(size, adapter, cid, is_child=above is not None), cid=cid,
        parent_cid=NO_CID if above is None else above.cid, hint=hint,
    )  # fmt: skip
    return Rebuilt(target, text, cid, origin)


def _pieces(files: Files, home: str, base: str, match: re.Match[str]) -> list[str]:
    """Return the names of all files of the disk, in order; raises FormatError where one lacks in between."""
    if not match[3]:
        return [match[0]]
    pattern = re.compile(re.escape(f"{base}-{match[3]}") + r"(\d{3,})\.vmdk", re.IGNORECASE)
    found = {int(one[1]): name for name in files.names(home or ".") if (one := pattern.fullmatch(name))}
    missing = [number for number in range(1, max(found) + 1) if number not in found]
    if missing:
        raise FormatError(f"piece {missing[0]} of {max(found)} is not there: nobody can say how long it was")
    return [found[number] for number in sorted(found)]


def _lines(found: list[Device], names: list[str], match: re.Match[str], flat_type: str) -> tuple[str, list[NewLine]]:
    """Return the createType and the extent lines."""
    kind = match[2].lower()
    if kind == "flat" or (match[3] or "").lower() == "f":
        return _flat(found, names, kind, flat_type)
    kinds = {classify(device) for device in found}
    if kinds == {FileKind.COWD}:
        length = CowdExtent(found[0], kind="VMFSSPARSE").length
        return "vmfsSparse", [NewLine(length, "VMFSSPARSE", names[0])]
    if kinds == {FileKind.SESPARSE}:
        length = SeSparseExtent(found[0], kind="SESPARSE", ignore_journal=True).length
        return "seSparse", [NewLine(length, "SESPARSE", names[0])]
    if kinds != {FileKind.HOSTED}:
        raise FormatError("this is no extent with grain tables, whatever its name says", path=found[0].name)
    lines = [NewLine(read_header(device).capacity, "SPARSE", name) for device, name in zip(found, names, strict=True)]
    return "twoGbMaxExtentSparse", lines


def _flat(found: list[Device], names: list[str], kind: str, flat_type: str) -> tuple[str, list[NewLine]]:
    wanted = flat_type or ("vmfs" if kind == "flat" else "twoGbMaxExtentFlat")
    if kind == "flat" and wanted not in _FLAT:
        raise UsageError(f"{wanted!r}: a -flat file belongs to {' or '.join(_FLAT)}")
    lines = []
    for device, name in zip(found, names, strict=True):
        if not device.size or device.size % SECTOR:
            raise UnsupportedError(
                f"it has {device.size} bytes, which are no whole sectors: it was cut off, or is no disk",
                path=device.name,
            )
        lines.append(NewLine(device.size, "VMFS", name) if wanted == "vmfs" else NewLine(device.size, "FLAT", name, 0))
    return wanted, lines


def _parent(files: Files, path: str, size: int) -> Descriptor:
    with files.open_file(path) as file:
        text = read_descriptor(file)
    if text is None:
        raise UsageError("a parent has to be a VMDK that has its descriptor", path=path)
    if text.size != size:
        raise UsageError(f"it has {text.size} bytes and its child {size}: it is not the parent", path=path)
    return text


def _content_id(files: Files, home: str, name: str) -> tuple[int, str]:
    """Return the content ID that the children beside it expect, where they agree; else a new one."""
    expected: set[int] = set()
    for count, neighbour in enumerate(sorted(files.names(home or "."))):
        if count >= _MOST_NEIGHBOURS:
            break
        if not neighbour.lower().endswith(".vmdk"):
            continue
        try:
            with files.open_file(os.path.join(home, neighbour), follow=False, regular=True) as storage:
                text = read_descriptor(storage)
            if text is not None and text.parent_hint.replace("\\", "/").rsplit("/", 1)[-1] == name:
                expected.add(text.parent_cid)
        except (VmdkitError, OSError):
            continue
    if len(expected) == 1 and NO_CID not in expected:
        return expected.pop(), "the one that its child beside it expects"
    return random.randrange(1, NO_CID - 1), "new: children made from it will not accept it (repair --relink)"


def _database(size: int, adapter: str, cid: int, *, is_child: bool) -> dict[str, str]:
    if is_child:
        return {"longContentID": new_long_id(cid)}
    shape = geometry(size, adapter)
    return {
        "adapterType": adapter,
        "geometry.cylinders": str(shape.cylinders),
        "geometry.heads": str(shape.heads),
        "geometry.sectors": str(shape.sectors),
        "longContentID": new_long_id(cid),
        "toolsInstallType": "4",
        "toolsVersion": "2147483647",
        "uuid": new_uuid(),
        "virtualHWVersion": "10",
    }


def write_descriptor(files: Files, new: Rebuilt) -> None:
    """Write a rebuilt descriptor, whole and durable, under its name; UsageError where that has come to be taken."""
    home = os.path.dirname(new.path)
    temporary = os.path.join(home, f".vmdkit-{os.urandom(6).hex()}.part")
    try:
        with files.new_file(temporary, new.path) as storage:
            storage.resize(len(new.text))
            storage.pwrite(new.text, 0)
            storage.flush()
        files.rename(temporary, new.path, replace=False)
    except BaseException:
        if files.exists(temporary):
            files.remove(temporary)
        raise
    files.sync_directory(home)
