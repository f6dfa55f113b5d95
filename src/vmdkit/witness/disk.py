# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The disk that the parts make, and the descriptor that names them (format spec 1.3)."""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from vmdkit.device import ALLOCATION, HOLE_ZERO, Can, Device
from vmdkit.errors import FormatError
from vmdkit.units import MIB, SECTOR
from vmdkit.witness.grains import grains
from vmdkit.witness.part import File, Flat, Nothing, Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_LINE: Final = re.compile(rb'(?:RW|RDONLY) (\d{1,15}) ([A-Z]+)(?: "([^"/\0]+)"(?: (\d{1,15}))?)?')
_NO_PARENT: Final = b"ffffffff"


class WitnessDisk(Device):
    """What the second reader finds; ``parent`` holds what it does not."""

    def __init__(self, name: str, files: Sequence[File], parts: Sequence[Part], parent: Device | None = None) -> None:
        self._files = list(files)
        self._parts = list(parts)
        self._parent = parent
        self._starts, size = [], 0
        for part in parts:
            self._starts.append(size)
            size += part.length
        super().__init__(size, name=name, can=Can.EXTENTS, contexts=(ALLOCATION,))

    def _read_plain(self, view: memoryview, offset: int) -> bool:
        """Read what lies in one file of plain bytes, holes too: no map is asked that could be wrong."""
        index = bisect_right(self._starts, offset) - 1
        part, inside = self._parts[index], offset - self._starts[index]
        if not isinstance(part, Flat) or inside + len(view) > part.length:
            return False
        part.read(view, inside)
        return True

    def _pieces(self, count: int, offset: int) -> Iterator[tuple[int, int, Part | None, int]]:
        """Yield ``(offset, length, part, offset in it)`` of a range; no part where it is zero or the parent's."""
        end = offset + count
        while offset < end:
            index = bisect_right(self._starts, offset) - 1
            part, start = self._parts[index], self._starts[index]
            for held in part.held(min(end, start + part.length) - offset, offset - start):
                at = start + held.offset
                if held.zero:
                    yield at, held.length, None, -1
                elif held.absent:
                    yield at, held.length, None, 0
                else:
                    yield at, held.length, part, held.offset
            offset = start + part.length

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if self._read_plain(view, offset):
            return
        for at, length, part, inside in self._pieces(len(view), offset):
            piece = view[at - offset : at - offset + length]
            if part is not None:
                part.read(piece, inside)
            elif inside == 0 and self._parent is not None:
                self._parent.pread_into(piece, at)
            else:
                piece[:] = bytes(length)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        for at, length, part, inside in self._pieces(count, offset):
            if part is not None:
                yield at, length, 0
            elif inside == 0 and self._parent is not None:
                yield from self._parent.extents(length, at)
            else:
                yield at, length, HOLE_ZERO

    def _close(self) -> None:
        for file in self._files:
            file.close()


def open_raw(path: str, shown: str = "") -> WitnessDisk:
    """Open a file of plain bytes; messages call it ``shown``."""
    file = File(path, shown or path)
    return WitnessDisk(file.path, [file], [Flat(file.size, file)])


def open_vhd(path: str, shown: str = "") -> WitnessDisk:
    """Open a fixed VHD: bytes, and a footer of which everything is checked that says what they are."""
    file = File(path, shown or path)
    size = file.size - SECTOR
    try:
        foot = file.read(SECTOR, size)
        told, kind = struct.unpack_from(">Q", foot, 48)[0], struct.unpack_from(">I", foot, 60)[0]
        total = ~(sum(foot) - sum(foot[64:68])) & 0xFFFFFFFF
        if foot[:8] != b"conectix" or (told, kind, total) != (size, 2, struct.unpack_from(">I", foot, 64)[0]):
            raise FormatError("it does not end as a fixed VHD does", path=file.path, offset=size)
    except BaseException:
        file.close()
        raise
    return WitnessDisk(file.path, [file], [Flat(size, file)])


def open_vmdk(
    path: str, parts: Mapping[str, str] | None = None, parent: Device | None = None, shown: str = ""
) -> WitnessDisk:
    """Open the VMDK whose descriptor is in ``path``; messages call that ``shown``.

    ``parts`` leads from the names in it to the paths that they have for now, where those are others than beside it.
    A child needs its ``parent``, which stays the caller's to close. Raises FormatError for what vmdkit does not
    write, whether or not others may read it; OSError.
    """
    shown = shown or path
    files = [File(path, shown)]
    try:
        text, embedded = _text(files[0])
        if (_value(text, b"parentCID") == _NO_PARENT) != (parent is None):
            raise FormatError("it is a child" if parent is None else "it is no child", path=shown)
        found: list[Part] = []
        for number, line in enumerate(line for line in text.splitlines() if re.match(rb"(RW|RDONLY|NOACCESS) ", line)):
            found.append(_part(line, files, parts or {}, own=embedded and not number))
        if not found:
            raise FormatError("no extent in the descriptor", path=shown)
        return WitnessDisk(shown, files, found, parent)
    except BaseException:
        for file in files:
            file.close()
        raise


def _text(file: File) -> tuple[bytes, bool]:
    """Return the descriptor, and whether it is embedded."""
    head = file.read(min(file.size, SECTOR), 0)
    if head[:4] == b"KDMV":
        at, length = struct.unpack_from("<QQ", head, 28)
        if length > MIB // SECTOR:
            raise FormatError(f"a descriptor of {length} sectors", path=file.path)
        return file.read(length * SECTOR, at * SECTOR).split(b"\0")[0], True
    if file.size > MIB:
        raise FormatError("it is no descriptor", path=file.path)
    return file.read(file.size, 0), False


def _value(text: bytes, key: bytes) -> bytes:
    found = re.search(rb"^%b=(.*)$" % key, text, re.MULTILINE)
    return found[1].strip(b'"') if found is not None else b""


def _part(line: bytes, files: list[File], parts: Mapping[str, str], *, own: bool) -> Part:
    """Return what an extent line means."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise FormatError(f"the extent line {line!r} is not as we write them", path=files[0].path)
    length, kind, name, start = int(match[1]) * SECTOR, match[2], os.fsdecode(match[3] or b""), int(match[4] or 0)
    if kind == b"ZERO":
        return Nothing(length)
    if not own:
        beside = os.path.join(os.path.dirname(files[0].path), name)
        files.append(File(parts.get(name, beside), beside))
    file = files[0] if own else files[-1]
    if kind in (b"FLAT", b"VMFS"):
        return Flat(length, file, start * SECTOR)
    if kind in (b"SPARSE", b"VMFSSPARSE"):
        return grains(length, file)
    raise FormatError(f"an extent of type {kind.decode()} is none that we write", path=files[0].path)
