# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Cut the power of repair: files that were damaged before, whose disk reads the same while they are mended.

======== ==========================================================================================
differ   entries that the redundant tables lack
shared   two entries that lead to one grain; each is to have its own
missing  a table that only the primary directory points at
free     COWD's freeSector too low
======== ==========================================================================================
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmdkit.errors import VmdkitError
from vmdkit.torture.fixtures import plans
from vmdkit.torture.harness import Finding
from vmdkit.torture.operations import MemoryFiles, Operation
from vmdkit.units import SECTOR
from vmdkit.vmdk.check import check_file
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.repair_cowd import mend_cowd
from vmdkit.vmdk.repair_hosted import mend_hosted
from vmdkit.vmdk.repair_steps import Staged, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.torture.harness import Files
    from vmdkit.torture.operations import Owed

    Damage = Callable[[bytearray], None]

_TOP, _DELTA = "disk.vmdk", "disk-e001.vmdk"
_ENTRY = struct.Struct("<I")
_FREE_AT, _GD_AT = 28, 4 * SECTOR  # of COWD
_SOME = 7  # every so many entries


def _tables(raw: bytearray, *, redundant: bool) -> int:
    """Return where a hosted directory is."""
    rgd, gd = struct.unpack_from("<QQ", raw, 48)
    return int(rgd if redundant else gd) * SECTOR


def _first_table(raw: bytearray, directory: int) -> int:
    return int(_ENTRY.unpack_from(raw, directory)[0]) * SECTOR


def _differ(raw: bytearray) -> None:
    table = _first_table(raw, _tables(raw, redundant=True))
    for entry in range(0, SECTOR, _SOME):
        _ENTRY.pack_into(raw, table + entry * _ENTRY.size, 0)
    raw[72] = 1  # not closed cleanly, as a crash leaves such tables


def _share(raw: bytearray, tables: list[int]) -> None:
    """Let some empty entries lead to the grains of others."""
    used = [at for at in range(SECTOR) if _ENTRY.unpack_from(raw, tables[0] + 4 * at)[0]]
    empty = [at for at in range(SECTOR) if at not in used]
    for one, other in list(zip(used, empty, strict=False))[:5]:
        (sector,) = _ENTRY.unpack_from(raw, tables[0] + 4 * one)
        for table in tables:
            _ENTRY.pack_into(raw, table + 4 * other, sector)


def _shared(raw: bytearray) -> None:
    _share(raw, [_first_table(raw, _tables(raw, redundant=redundant)) for redundant in (False, True)])


def _missing(raw: bytearray) -> None:
    _ENTRY.pack_into(raw, _tables(raw, redundant=True), 0)
    raw[72] = 1


def _cowd_shared(raw: bytearray) -> None:
    _share(raw, [_first_table(raw, _GD_AT)])


def _cowd_free(raw: bytearray) -> None:
    _ENTRY.pack_into(raw, _FREE_AT, _ENTRY.unpack_from(raw, _FREE_AT)[0] // 2)


def _repair(plan: str, name: str, damage: Damage) -> Operation:
    file = _DELTA if plan.startswith("cowd") else _TOP

    def content(files: MemoryFiles) -> bytes:
        with files.open_disk(_TOP) as disk:
            return bytes(disk.pread(disk.size, 0))

    def mend(files: MemoryFiles) -> None:
        with Staged(files.open_file(file, writable=True), commit=True) as storage:
            (mend_cowd if plan.startswith("cowd") else mend_hosted)(storage, Steps())

    def prepare(files: MemoryFiles, seed: int) -> Owed:
        for made, raw in plans()[plan].make(seed).files.items():
            with files.new_file(made, made) as storage:
                changed = bytearray(raw)
                if made == file:
                    damage(changed)
                storage.resize(len(changed))
                storage.pwrite(changed, 0)
        held = content(files)

        def owed(left: Files) -> Iterator[Finding]:
            again = MemoryFiles(left)
            for when in ("", "after another repair: "):
                try:
                    if content(again) != held:
                        yield Finding("content changed", f"{when}{_TOP} does not read as before")
                    if not when:
                        mend(again)
                except (VmdkitError, OSError) as error:
                    yield Finding("unreadable", f"{when}{error}")
                    return
            with again.open_file(file) as storage:
                checked = check_file(storage)
            bad = (Severity.ERROR, Severity.REPAIRABLE)
            if checked is None or any(one.severity in bad for one in checked.findings):
                yield Finding("recovery refused", "another repair leaves something to be repaired")

        return owed

    return Operation(f"repair {plan} {name}", prepare, mend)


def repairs() -> list[Operation]:
    """Return every repair that is tortured."""
    hosted = [
        _repair(plan, damage.__name__.strip("_"), damage)
        for plan in ("sparse", "sparse-child")
        for damage in (_differ, _shared)
    ]
    return [
        *hosted,
        _repair("sparse-on-demand", "missing", _missing),
        _repair("cowd-child", "shared", _cowd_shared),
        _repair("cowd", "free", _cowd_free),
    ]
