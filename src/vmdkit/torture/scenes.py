# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The operations that are tortured, and what each owes while it runs.

========= =====================================================================================================
create    the disk is not there, or is whole; one that it replaces is there, gone, or replaced
snapshot  the disk reads as before; the child is not there, or reads the same
commit    the child reads as before (or, where it is to go, its parent does); an interrupted commit can be repeated
rebase    the child reads as before
resize    the disk has its old size or its new one, and reads as before as far as it goes
compact   the disk reads as before
repair    the disk reads as before; an interrupted repair can be repeated (damage.py)
========= =====================================================================================================

And everything can be opened for writing afterwards, and checks without error.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmdkit import maker
from vmdkit.errors import VmdkitError
from vmdkit.torture import reader
from vmdkit.torture.damage import repairs
from vmdkit.torture.fixtures import pattern
from vmdkit.torture.harness import Finding
from vmdkit.torture.operations import MemoryFiles, Operation
from vmdkit.torture.workload import Driver, actions, run
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.torture.harness import Files
    from vmdkit.torture.operations import Owed

_SIZE = 2 * MIB + 256 * KIB
_DISK, _CHILD, _OTHER = "disk.vmdk", "child.vmdk", "other.vmdk"
UNREADABLE, CHANGED, REFUSED = "unreadable", "content changed", "recovery refused"
_SUBFORMATS = ("monolithicSparse", "twoGbMaxExtentSparse", "monolithicFlat", "vmfsSparse")


class _Clock:
    def tick(self) -> int:
        return 1


def _write(files: MemoryFiles, name: str, seed: int, count: int = 12) -> bytes:
    """Write a disk at random; return what it holds then."""
    with files.open_disk(name, writable=True) as disk:
        driver = Driver(disk, _Clock(), disk.pread(disk.size, 0), seed)
        run(driver, actions(disk.size, 4 * KIB, count, f"{name} {seed}"))
        disk.flush()
        return bytes(disk.pread(disk.size, 0))


def _make(files: MemoryFiles, name: str, subformat: str, seed: int, parent: str | None = None) -> bytes:
    """Make a disk, write it, and return what it holds."""
    grain = None if "Flat" in subformat or subformat == "vmfsSparse" else 4 * KIB
    zeroed = subformat == "monolithicSparse" and parent is not None
    maker.create(
        name, _SIZE, parent=parent, files=files, subformat=subformat, grain=grain,
        **({"zeroed_grain": True} if zeroed else {}),
    )  # fmt: skip
    if parent is None:
        with files.open_disk(name, writable=True) as disk:
            disk.pwrite(pattern(1 << 40, _SIZE // 2, 0), 0)
    return _write(files, name, seed)


def _read(files: Files, name: str) -> Iterator[bytes | Finding]:
    """Yield what either reader finds through either copy of the tables, or the finding that it cannot be read."""
    for redundant in (False, True):
        try:
            yield bytes(reader.read(files, name, redundant=redundant).content)
        except (reader.UnreadableError, KeyError, ValueError, struct.error) as error:
            yield Finding(UNREADABLE, f"{name}: {error or type(error).__name__}")
    try:
        with MemoryFiles(files).open_disk(name) as disk:
            yield bytes(disk.pread(disk.size, 0))
    except (VmdkitError, OSError) as error:
        yield Finding(UNREADABLE, f"{name}: {error}")


def _ours(files: Files, name: str, wanted: bytes) -> list[Finding]:
    """Find where our own reader does not read what is wanted."""
    try:
        with MemoryFiles(files).open_disk(name) as disk:
            same = disk.pread(disk.size, 0) == wanted
    except (VmdkitError, OSError) as error:
        return [Finding(UNREADABLE, f"{name}: {error}")]
    return [] if same else [Finding(CHANGED, f"{name} reads otherwise")]


def _holds(files: Files, name: str, *wanted: bytes) -> Iterator[Finding]:
    """Find where a disk reads as none of ``wanted``, or cannot be opened for writing."""
    for found in _read(files, name):
        if isinstance(found, Finding):
            yield found
            return
        if found not in wanted:
            at = next((at for at in range(len(wanted[0])) if found[at : at + 1] != wanted[0][at : at + 1]), 0)
            yield Finding(CHANGED, f"{name} has {len(found)} bytes, and differs from {at:#x} on")
            return
    try:
        with MemoryFiles(files).open_disk(name, writable=True) as disk:
            disk.pwrite(b"x", 0)
    except (VmdkitError, OSError) as error:
        yield Finding(REFUSED, f"{name}: {error}")


# ── the operations ───────────────────────────────────────────────────────────────────────────────────────────────


def _create(subformat: str) -> Operation:
    def prepare(files: MemoryFiles, seed: int) -> Owed:
        old = _make(files, _DISK, subformat, seed)

        def owed(left: Files) -> Iterator[Finding]:
            if _DISK in left:
                yield from _holds(left, _DISK, bytes(_SIZE), old)

        return owed

    def work(files: MemoryFiles) -> None:
        maker.create(_DISK, _SIZE, files=files, subformat=subformat, overwrite=True)

    return Operation(f"create {subformat}", prepare, work)


def _snapshot(subformat: str) -> Operation:
    def prepare(files: MemoryFiles, seed: int) -> Owed:
        held = _make(files, _DISK, subformat, seed)

        def owed(left: Files) -> Iterator[Finding]:
            if _CHILD in left:
                yield from _holds(left, _CHILD, held)
            yield from _holds(left, _DISK, held)

        return owed

    return Operation(f"snapshot {subformat}", prepare, lambda files: _quietly(maker.snapshot, files, _DISK, _CHILD))


def _quietly(work: Callable[..., object], files: MemoryFiles, *names: str, **options: bool) -> None:
    work(*names, files=files, **options)


def _commit(parent: str, child: str, *, keep: bool = False, delete: bool = False) -> Operation:
    def again(left: Files) -> Iterator[Finding]:
        """Finish an interrupted commit, and look again."""
        files = MemoryFiles(left)
        try:
            maker.commit(_CHILD, keep=keep, delete=delete, files=files)
        except (VmdkitError, OSError) as error:
            yield Finding(REFUSED, f"the commit cannot be repeated: {error}")
            return
        yield from owed_by(dict(files.snapshot()))

    def owed_by(left: Files) -> Iterator[Finding]:
        yield from _holds(left, _CHILD if _CHILD in left else _DISK, held[0])

    held: list[bytes] = []

    def prepare(files: MemoryFiles, seed: int) -> Owed:
        _make(files, _DISK, parent, seed)
        held[:] = [_make(files, _CHILD, child, seed + 1, _DISK)]

        def owed(left: Files) -> Iterator[Finding]:
            found = list(owed_by(left))
            if _CHILD not in left:
                yield from found
            elif found and found[0].kind == UNREADABLE:
                # The parent has its new content ID, and the child does not know yet: others may refuse, we read on.
                yield from _ours(left, _CHILD, held[0]) or again(left)
            else:
                yield from found or again(left)

        return owed

    how = " delete" if delete else " keep" if keep else ""
    return Operation(
        f"commit {child} to {parent}{how}",
        prepare,
        lambda files: _quietly(maker.commit, files, _CHILD, keep=keep, delete=delete),
    )


def _rebase(subformat: str, *, alone: bool = False) -> Operation:
    def prepare(files: MemoryFiles, seed: int) -> Owed:
        _make(files, _DISK, "monolithicSparse", seed)
        _make(files, _OTHER, "monolithicFlat", seed + 7)
        held = _make(files, _CHILD, subformat, seed + 1, _DISK)
        return lambda left: _holds(left, _CHILD, held)

    def work(files: MemoryFiles) -> None:
        maker.rebase(_CHILD, None if alone else _OTHER, files=files)

    return Operation(f"rebase {subformat}{' to none' if alone else ''}", prepare, work)


def _resize(subformat: str, size: int, *, shrink: bool = False) -> Operation:
    def prepare(files: MemoryFiles, seed: int) -> Owed:
        old = _make(files, _DISK, subformat, seed)
        new = old[:size].ljust(size, b"\0")
        return lambda left: _holds(left, _DISK, old, new)

    def work(files: MemoryFiles) -> None:
        maker.resize(_DISK, size, shrink=shrink, files=files)

    return Operation(f"resize {subformat} to {size // KIB}k", prepare, work)


def _compact(subformat: str) -> Operation:
    def prepare(files: MemoryFiles, seed: int) -> Owed:
        held = bytearray(_make(files, _DISK, subformat, seed))
        with files.open_disk(_DISK, writable=True) as disk:  # grains of zeros, which are to go
            for at in range(64 * KIB, len(held) // 2, 160 * KIB):
                disk.pwrite(bytes(24 * KIB), at)
                held[at : at + 24 * KIB] = bytes(24 * KIB)
        return lambda left: _holds(left, _DISK, bytes(held))

    return Operation(f"compact {subformat}", prepare, lambda files: _quietly(maker.compact, files, _DISK))


def operations() -> dict[str, Operation]:
    """Return every operation, by name."""
    made = [_create(one) for one in _SUBFORMATS]
    made += [_snapshot(one) for one in _SUBFORMATS]
    for child in ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"):
        made += [_commit("monolithicSparse", child), _commit("monolithicFlat", child, delete=True)]
        made += [_rebase(child), _rebase(child, alone=True)]
    made.append(_commit("twoGbMaxExtentSparse", "monolithicSparse", keep=True))
    for one in _SUBFORMATS:
        made += [_resize(one, 5 * MIB), _resize(one, 70 * MIB), _resize(one, MIB, shrink=True), _compact(one)]
    made += repairs()
    return {one.name: one for one in made}
