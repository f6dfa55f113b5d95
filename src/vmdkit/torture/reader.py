# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A second reader of VMDK, made to disagree: it shares no code with ``vmdkit.vmdk`` and tolerates nothing.

Reads whole disks of hosted sparse, COWD, flat and ZERO extents, with parents, from files in memory; of grain tables
either copy. Small on purpose: a judge has to be simpler than what it judges.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    Files = Mapping[str, bytes | bytearray]

_LINE = re.compile(rb'^(RW|RDONLY) (\d+) (\w+)(?: "([^"]+)")?(?: (\d+))?', re.MULTILINE)
_HINT = re.compile(rb'^parentFileNameHint="([^"]+)"', re.MULTILINE)
_CID = re.compile(rb"^CID=([0-9a-f]{8})$", re.MULTILINE)
_PARENT_CID = re.compile(rb"^parentCID=([0-9a-f]{8})$", re.MULTILINE)
_NO_PARENT = b"ffffffff"
_COWD_ENTRIES = 4096
_UNCLEAN_AT = {b"KDMV": 72, b"COWD": 1648}  # magic -> offset of the flag


class UnreadableError(Exception):
    """The disk cannot be read, and this says why."""


class Link(NamedTuple):
    """What was read: the bytes of the disk, its content ID, and the unclean flag of each of its sparse files."""

    content: bytearray
    cid: str
    unclean: tuple[bool, ...]


def read(files: Files, name: str, *, redundant: bool = False) -> Link:
    """Return all of the disk that ``name`` describes; raises UnreadableError."""
    raw = files[name]
    embedded = raw[:4] == b"KDMV"
    offset, length = struct.unpack_from("<QQ", raw, 28) if embedded else (0, len(raw))
    text = bytes(raw[offset * SECTOR : (offset + length) * SECTOR]).split(b"\0")[0]
    cid, parent_cid = _CID.search(text), _PARENT_CID.search(text)
    if cid is None or parent_cid is None:
        raise UnreadableError("no CID or parentCID in the descriptor")
    lines = _LINE.findall(text)
    size = sum(int(line[1]) for line in lines) * SECTOR
    if parent_cid[1] == _NO_PARENT:
        out = bytearray(size)
    else:
        hint = _HINT.search(text)
        parent = read(files, hint[1].decode()) if hint is not None else None
        if parent is None or parent.cid != parent_cid[1].decode() or len(parent.content) != size:
            raise UnreadableError("the parent is not there, or has changed")
        out = parent.content
    at, flags = 0, []
    for index, (_, count, kind, file, start) in enumerate(lines):
        length = int(count) * SECTOR
        own = name if embedded and index == 0 else file.decode()
        held = files.get(own, b"")
        _extent(out, at, length, kind, held, int(start or 0) * SECTOR, redundant=redundant)
        at += length
        if bytes(held[:4]) in _UNCLEAN_AT:
            flags.append(held[_UNCLEAN_AT[bytes(held[:4])]] != 0)
    return Link(out, cid[1].decode(), tuple(flags))


def _extent(
    out: bytearray, at: int, length: int, kind: bytes, raw: bytes | bytearray, start: int, *, redundant: bool
) -> None:
    if kind == b"ZERO":
        out[at : at + length] = bytes(length)
    elif kind in (b"FLAT", b"VMFS"):
        if len(raw) < start + length:
            raise UnreadableError(f"a flat file has {len(raw)} bytes, {start + length} are due")
        out[at : at + length] = memoryview(raw)[start : start + length]
    elif raw[:4] == b"KDMV":
        _hosted(out, at, length, raw, redundant=redundant)
    elif raw[:4] == b"COWD":
        _cowd(out, at, length, raw)
    else:
        raise UnreadableError(f"a {kind.decode()} extent begins with {bytes(raw[:4])!r}")


def _hosted(out: bytearray, at: int, length: int, raw: bytes | bytearray, *, redundant: bool) -> None:
    version, flags, capacity, grain = struct.unpack_from("<IIQQ", raw, 4)
    entries, rgd, gd, overhead = struct.unpack_from("<IQQQ", raw, 44)
    if version not in (1, 2) or flags & ~7 or capacity * SECTOR < length or raw[73:77] != b"\n \r\n":
        raise UnreadableError("the header is damaged")
    directory = rgd if redundant and flags & 2 else gd
    tables = -(-capacity // (grain * entries))
    _grains(out, (at, length), raw, (directory, tables, entries), grain * SECTOR, overhead, zeros=bool(flags & 4))


def _cowd(out: bytearray, at: int, length: int, raw: bytes | bytearray) -> None:
    version, _, capacity, grain, directory, count, free = struct.unpack_from("<7I", raw, 4)
    if version != 1 or capacity * SECTOR < length or count * grain * _COWD_ENTRIES * SECTOR < length:
        raise UnreadableError("the header is damaged")
    where = (directory, -(-capacity // (grain * _COWD_ENTRIES)), _COWD_ENTRIES)
    end = _grains(out, (at, length), raw, where, grain * SECTOR, directory + 1, zeros=False)
    if end > free:
        raise UnreadableError(f"sector {end - 1} is in use, and freeSector is {free}")


def _grains(
    out: bytearray,
    place: tuple[int, int],
    raw: bytes | bytearray,
    where: tuple[int, int, int],
    grain: int,
    low: int,
    *,
    zeros: bool,
) -> int:
    """Copy every grain of an extent; return the first sector behind all that the tables name.

    ``place`` is where the extent is on the disk and its length, ``where`` the directory, its entries, and theirs.
    """
    at, length = place
    directory, count, entries = where
    tables = struct.unpack_from(f"<{count}I", raw, directory * SECTOR)
    end, used, view = 0, set(), memoryview(raw)
    for number, table in enumerate(tables):
        if not table:
            continue
        if table * SECTOR + 4 * entries > len(raw):
            raise UnreadableError(f"table {number} lies behind the end of the file")
        end = max(end, table + 4 * entries // SECTOR)
        codes = np.frombuffer(raw, dtype="<u4", count=entries, offset=table * SECTOR)
        for entry in np.flatnonzero(codes).tolist():
            here = (number * entries + entry) * grain
            size = max(0, min(grain, length - here))  # an extent may have more than the disk shows of it
            sector = int(codes[entry])
            if sector == 1 and zeros:
                out[at + here : at + here + size] = bytes(size)
                continue
            start = sector * SECTOR
            if sector < low or start + grain > len(raw) or sector in used:
                raise UnreadableError(f"entry {entry} of table {number} is {sector}, which cannot be")
            if start % grain and grain > SECTOR and low % (grain // SECTOR) == 0:
                raise UnreadableError(f"entry {entry} of table {number} is {sector}, not aligned")
            used.add(sector)
            end = max(end, sector + grain // SECTOR)
            out[at + here : at + here + size] = view[start : start + size]
    return end
