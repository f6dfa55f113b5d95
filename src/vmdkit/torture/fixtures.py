# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Small disks of every subformat that is written in place, made in memory from the format alone.

Like the reader beside it, this shares no code with ``vmdkit.vmdk``: writer and judge must not agree by descent.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit.units import KIB, MIB, SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Files = dict[str, bytes]
    Grains = dict[int, bytes]  # number of a grain -> what it holds

_TEXT_SECTORS = 20
_HOSTED_ENTRIES = SECTOR  # entries of a table: by chance as many as a sector has bytes
_COWD_ENTRIES = 4096
_TOP = "disk.vmdk"
_BASE = "base.vmdk"


@dataclass(frozen=True, slots=True)
class Fixture:
    """A disk to be written: its files, the one to open, and what a reader must find."""

    name: str
    files: Files
    content: bytes
    grain: int
    top: str = _TOP
    regions: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)  # file -> (what, where it ends)

    def label(self, file: str, offset: int) -> str:
        """Say what lies at ``offset`` of a file."""
        for what, end in self.regions.get(file, ()):
            if offset < end:
                return f"{what} of {file}"
        return f"data of {file}"


def pattern(tag: int, count: int, offset: int) -> bytes:
    """Return sectors that say which they are: 16 bytes of tag and place, over and over."""
    first = offset // SECTOR
    return b"".join(struct.pack("<QQ", tag, first + at) * (SECTOR // 16) for at in range(count // SECTOR))


def text(kind: str, lines: list[str], *, cid: int, parent: int | None, extra: str = "") -> bytes:
    """Return a descriptor."""
    up = "ffffffff" if parent is None else f"{parent:08x}"
    hint = f'parentFileNameHint="{_BASE}"\n' if parent is not None else ""
    return (
        f'# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID={cid:08x}\nparentCID={up}\n'
        f'isNativeSnapshot="no"\ncreateType="{kind}"\n{hint}\n# Extent description\n' + "\n".join(lines) + "\n\n"
        f"{extra}# The Disk Data Base \n#DDB\n\n"
        f'ddb.adapterType = "lsilogic"\nddb.longContentID = "0123456789abcdef01234567{cid:08x}"\n'
        'ddb.virtualHWVersion = "14"\n'
    ).encode()


@dataclass(frozen=True, slots=True)
class Hosted:
    """How a hosted sparse extent is laid out."""

    grain: int = 4 * KIB
    redundant: bool = True
    zero_grains: bool = False
    on_demand: bool = False  # no tables but those in use


def hosted(
    how: Hosted, length: int, grains: Grains, descriptor: bytes = b""
) -> tuple[bytes, tuple[tuple[str, int], ...]]:
    """Return a hosted sparse extent, and where its parts end."""
    unit, table = how.grain // SECTOR, _HOSTED_ENTRIES * 4 // SECTOR
    count = -(-length // (how.grain * _HOSTED_ENTRIES))
    used = {number // _HOSTED_ENTRIES for number in grains} if how.on_demand else set(range(count))
    at = 1 + (_TEXT_SECTORS if descriptor else 0)
    regions = [("header and descriptor", at * SECTOR)]
    places: list[tuple[int, dict[int, int]]] = []
    for what in ("redundant tables", "tables") if how.redundant else ("tables",):
        directory, at = at, at + -(-count * 4 // SECTOR)
        places.append((directory, {number: at + index * table for index, number in enumerate(sorted(used))}))
        at += len(used) * table
        regions.append((what, at * SECTOR))
    overhead = -(-at // unit) * unit
    raw = bytearray((overhead + len(grains) * unit) * SECTOR)
    raw[:SECTOR] = struct.pack(
        "<4sIIQQQQIQQQB4sH433x", b"KDMV", 2 if how.zero_grains else 1, 1 | how.redundant << 1 | how.zero_grains << 2,
        length // SECTOR, unit, 1 if descriptor else 0, _TEXT_SECTORS if descriptor else 0, _HOSTED_ENTRIES,
        places[0][0] if how.redundant else 0, places[-1][0], overhead, 0, b"\n \r\n", 0,
    )  # fmt: skip
    raw[SECTOR : SECTOR + len(descriptor)] = descriptor
    for directory, tables in places:
        for number, place in tables.items():
            struct.pack_into("<I", raw, directory * SECTOR + number * 4, place)
        for index, number in enumerate(grains):
            entry = tables[number // _HOSTED_ENTRIES] * SECTOR + number % _HOSTED_ENTRIES * 4
            struct.pack_into("<I", raw, entry, overhead + index * unit)
    for index, data in enumerate(grains.values()):
        start = (overhead + index * unit) * SECTOR
        raw[start : start + len(data)] = data
    return bytes(raw), tuple(regions)


def cowd(grain: int, length: int, grains: Grains) -> tuple[bytes, tuple[tuple[str, int], ...]]:
    """Return a COWD extent, and where its parts end."""
    unit, table = grain // SECTOR, _COWD_ENTRIES * 4 // SECTOR
    count = -(-length // (grain * _COWD_ENTRIES))
    free = 4 + -(-count * 4 // SECTOR)
    regions = (("header", 4 * SECTOR), ("directory", free * SECTOR))
    tables: dict[int, int] = {}
    for number in sorted({number // _COWD_ENTRIES for number in grains}):
        tables[number], free = free, free + table
    free = -(-free // unit) * unit
    raw = bytearray((free + len(grains) * unit) * SECTOR)
    for number, place in tables.items():
        struct.pack_into("<I", raw, 4 * SECTOR + number * 4, place)
    for index, (number, data) in enumerate(grains.items()):
        place = free + index * unit
        struct.pack_into("<I", raw, tables[number // _COWD_ENTRIES] * SECTOR + number % _COWD_ENTRIES * 4, place)
        raw[place * SECTOR : place * SECTOR + len(data)] = data
    struct.pack_into("<4s7I", raw, 0, b"COWD", 1, 3, length // SECTOR, unit, 4, count, free + len(grains) * unit)
    return bytes(raw), regions


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of disk to make."""

    name: str
    kind: str  # createType
    size: int
    grain: int = 4 * KIB
    parent: bool = False
    how: Hosted = field(default_factory=Hosted)
    split: int = 0  # bytes of an extent, where there are several

    def make(self, seed: int) -> Fixture:
        """Return the disk; ``seed`` chooses what it holds."""
        rng = random.Random(f"fixture {seed}")
        cid, up = rng.getrandbits(31), rng.getrandbits(31) if self.parent else None
        below = pattern(1 << 40, self.size, 0) if self.parent else bytes(self.size)
        content, files, regions, lines = bytearray(below), {}, {}, []
        step = self.split or self.size
        for number, start in enumerate(range(0, self.size, step), 1):
            length = min(step, self.size - start)
            file = f"disk-e{number:03d}.vmdk"
            grains = self._grains(rng, start, length, content)
            type_, tail = {"vmfsSparse": ("VMFSSPARSE", ""), "vmfs": ("VMFS", "")}.get(
                self.kind, ("FLAT", " 0") if "Flat" in self.kind else ("SPARSE", "")
            )
            embedded = self.kind == "monolithicSparse"
            lines.append(f'RW {length // SECTOR} {type_} "{_TOP if embedded else file}"{tail}')
            if embedded:
                own = text(self.kind, lines, cid=cid, parent=up)
                files[_TOP], regions[_TOP] = hosted(self.how, length, grains, own)
            elif type_ == "SPARSE":
                files[file], regions[file] = hosted(self.how, length, grains)
            elif type_ == "VMFSSPARSE":
                files[file], regions[file] = cowd(self.grain, length, grains)
            else:
                files[file], regions[file] = bytes(content[start : start + length]), ()
        if _TOP not in files:
            files[_TOP] = text(self.kind, lines, cid=cid, parent=up)
        if up is not None:
            line = f'RW {self.size // SECTOR} FLAT "base-flat.vmdk" 0'
            files[_BASE] = text("monolithicFlat", [line], cid=up, parent=None)
            files["base-flat.vmdk"] = below
        return Fixture(self.name, files, bytes(content), self.grain, regions=regions)

    def _grains(self, rng: random.Random, start: int, length: int, content: bytearray) -> Grains:
        """Choose some grains that are there already, in no order, and put them into ``content``."""
        count = -(-length // self.grain)
        if self.how.on_demand or self.kind == "vmfsSparse":
            count = count * 2 // 5  # so that some tables are not there yet
        grains: Grains = {}
        for number in rng.sample(range(count), count // 5):
            at = start + number * self.grain
            size = min(self.grain, start + length - at)
            data = pattern((1 << 41) + number, size, at)
            content[at : at + size] = data
            grains[number] = data
        return grains


def plans() -> dict[str, Plan]:
    """Return every kind of disk that is written in place, by name."""
    small, large = 2 * MIB + 256 * KIB, 1536 * KIB
    sparse: dict[str, Callable[[bool], Plan]] = {
        "sparse": lambda up: Plan("", "monolithicSparse", small + 3 * SECTOR, parent=up),
        "sparse-64k": lambda up: Plan("", "monolithicSparse", large, 64 * KIB, up, Hosted(64 * KIB)),
        "sparse-v2": lambda up: Plan("", "monolithicSparse", small, parent=up, how=Hosted(zero_grains=True)),
        "sparse-no-rgd": lambda up: Plan("", "monolithicSparse", small, parent=up, how=Hosted(redundant=False)),
        "sparse-on-demand": lambda up: Plan(
            "", "monolithicSparse", small + 2 * MIB, parent=up, how=Hosted(on_demand=True)
        ),
        "split": lambda up: Plan("", "twoGbMaxExtentSparse", small, parent=up, split=768 * KIB),
        "split-v2": lambda up: Plan(
            "", "twoGbMaxExtentSparse", small, parent=up, split=768 * KIB, how=Hosted(zero_grains=True)
        ),
        "cowd": lambda up: Plan("", "vmfsSparse", small, SECTOR, parent=up),
        "cowd-4k": lambda up: Plan("", "vmfsSparse", small, 4 * KIB, parent=up),
    }
    made = {}
    for name, make in sparse.items():
        for up in (False, True):
            full = name + ("-child" if up else "")
            plan = make(up)
            made[full] = Plan(full, plan.kind, plan.size, plan.grain, plan.parent, plan.how, plan.split)
    for name, kind, split in (
        ("flat", "monolithicFlat", 0),
        ("split-flat", "twoGbMaxExtentFlat", 768 * KIB),
        ("vmfs", "vmfs", 0),
    ):
        made[name] = Plan(name, kind, small, split=split)
    return made
