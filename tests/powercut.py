# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A file system in memory that can lose its power: what makes and changes disks is run on it and cut off anywhere.

Sure is what a barrier of the file (or directory) covers. Of what came after it each sector is there or not, sizes
come before data, and names change in their order, up to any of them.
"""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.device import Can, Device
from vmdkit.errors import UsageError
from vmdkit.gate import SameDir
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.gate import Gate
    from vmdkit.vmdk.disk import VmdkDisk

SECTOR = 512
_CAN = Can.FLUSH | Can.EXTENTS | Can.WRITE | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM | Can.RESIZE


class Op(NamedTuple):
    """``write``, ``resize``, ``flush`` of a file (by number), or ``name``, ``unname``, ``sync`` of the directory."""

    verb: str
    file: int = 0
    offset: int = 0
    data: bytes = b""
    name: str = ""


class PowerCutError(Exception):
    """The power is gone."""


class MemoryFile(Device):
    """One opening of a file of a PowerFiles."""

    def __init__(self, home: PowerFiles, number: int, name: str) -> None:
        super().__init__(len(home.contents[number]), name=name, can=_CAN)
        self._home, self._number = home, number
        self.content = home.contents[number]

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = memoryview(self.content)[offset : offset + len(view)]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.content[offset : offset + len(view)] = view
        self._home.note(Op("write", self._number, offset, bytes(view)))

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self._pwrite(memoryview(bytes(count)), offset)

    def _trim(self, count: int, offset: int) -> None:
        self._pwrite(memoryview(bytes(count)), offset)

    def _resize(self, size: int, *, reserve: bool) -> None:
        _resize(self.content, size)
        self._home.note(Op("resize", self._number, size))

    def _flush(self) -> None:
        self._home.note(Op("flush", self._number))


class PowerFiles:
    """The file system: one directory, ``/d``. ``limit`` is the operation at which the power goes."""

    def __init__(self, names: dict[str, bytes] | None = None) -> None:
        self.contents: dict[int, bytearray] = {}
        self.names_: dict[str, int] = {}
        for number, (name, data) in enumerate((names or {}).items()):
            self.contents[number], self.names_[name] = bytearray(data), number
        self.log: list[Op] = []
        self.limit = 1 << 60

    def checkpoint(self) -> dict[str, bytes]:
        """Take everything as durable, forget how it came about, and return it."""
        self.log.clear()
        return {name: bytes(self.contents[number]) for name, number in self.names_.items()}

    def note(self, op: Op) -> None:
        if len(self.log) >= self.limit:
            raise PowerCutError
        self.log.append(op)

    # ── Files ────────────────────────────────────────────────────────────────────────────────────────────────

    def open_file(self, path: str, *, writable: bool = False, follow: bool = True, regular: bool = False) -> Device:
        name = self._name(path)
        if name not in self.names_:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return MemoryFile(self, self.names_[name], path)

    def new_file(self, path: str, name: str) -> Device:
        assert self._name(path) not in self.names_
        number = max(self.contents, default=-1) + 1
        self.contents[number] = bytearray()
        self.names_[self._name(path)] = number
        self.note(Op("name", number, name=self._name(path)))
        return MemoryFile(self, number, name)

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        if not replace and self._name(new) in self.names_:
            raise UsageError("it exists; -f overwrites it", path=new)
        number = self.names_.pop(self._name(old))
        self.names_[self._name(new)] = number
        self.note(Op("rename", number, name=self._name(new), data=self._name(old).encode()))

    def remove(self, path: str) -> None:
        name = self._name(path)
        if name not in self.names_:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        del self.names_[name]
        self.note(Op("unname", name=name))

    def sync_directory(self, path: str) -> None:
        self.note(Op("sync"))

    def exists(self, path: str) -> bool:
        return self._name(path) in self.names_

    def real_path(self, path: str) -> str:
        return path

    def names(self, directory: str) -> list[str]:
        return list(self.names_)

    def open_disk(
        self, path: str, *, writable: bool = False, single_link: bool = False, ignore_cid: bool = False
    ) -> VmdkDisk:
        storage = self.open_file(path)
        text = read_descriptor(storage)
        assert text is not None
        options = Options(writable=writable, single_link=single_link, ignore_cid=ignore_cid)
        return open_image(storage, text, self.gate(), options)

    def gate(self) -> Gate:
        return SameDir(self.open_file)

    def _name(self, path: str) -> str:
        home, name = os.path.split(path)
        assert home == "/d", path
        return name

    # ── what a power cut leaves ──────────────────────────────────────────────────────────────────────────────

    def states(self, before: dict[str, bytes], *, each: int = 2, seed: int = 0) -> Iterator[PowerFiles]:
        """Yield what could be left after a cut before each operation: nothing unsure, all of it, ``each`` mixtures."""
        for cut in range(len(self.log) + 1):
            if cut and self.log[cut - 1].verb in ("flush", "sync") and cut > 1 and self.log[cut - 2].verb == "flush":
                continue
            for number in range(each + 2):
                yield self._state(before, cut, number, random.Random(f"{seed} {cut} {number}"))

    def _state(self, before: dict[str, bytes], cut: int, number: int, dice: random.Random) -> PowerFiles:
        left = PowerFiles(before)
        names: list[Op] = []
        pending: dict[int, list[Op]] = {}
        for op in self.log[:cut]:
            if op.verb in ("name", "rename", "unname"):
                names.append(op)
                left.contents.setdefault(op.file, bytearray())
            elif op.verb == "sync":
                left._rename(names, len(names))
                names = []
            elif op.verb == "flush":
                left._apply(op.file, pending.pop(op.file, []), dice, 1.0)
            else:
                pending.setdefault(op.file, []).append(op)
        share = (0.0, 1.0)[number] if number < 2 else dice.choice([0.2, 0.5, 0.8])
        left._rename(names, (0, len(names))[number] if number < 2 else dice.randint(0, len(names)))
        for file, ops in pending.items():
            left._apply(file, ops, dice, share)
        return left

    def _rename(self, ops: list[Op], count: int) -> None:
        for op in ops[:count]:
            if op.verb == "rename":
                self.names_.pop(op.data.decode(), None)
            if op.verb == "unname":
                self.names_.pop(op.name, None)
            else:
                self.names_[op.name] = op.file

    def _apply(self, file: int, ops: list[Op], dice: random.Random, share: float) -> None:
        content = self.contents.setdefault(file, bytearray())
        for op in ops:
            if op.verb == "resize":
                if share >= 1 or dice.random() < share:
                    _resize(content, op.offset)
                continue
            end = op.offset + len(op.data)
            for at in range(op.offset - op.offset % SECTOR, end, SECTOR):
                if share >= 1 or dice.random() < share:
                    low, high = max(at, op.offset), min(at + SECTOR, end)
                    if len(content) < high:
                        _resize(content, high)
                    content[low:high] = op.data[low - op.offset : high - op.offset]


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))
