# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Devices that the tests of the programs walk, read and break."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmdkit.device import HOLE_ZERO, Can, Device, Kind, Location
from vmdkit.storage.file import FileDevice, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Pieces(Device):
    """Data and holes by list; remembers what was read, and fails where it is told to."""

    def __init__(self, pieces: list[tuple[int, bytes | None]], fail_at: int = -1) -> None:
        self.data = bytearray().join(bytes(length) if data is None else data * length for length, data in pieces)
        self.runs: list[tuple[int, int, int]] = []
        offset = 0
        for length, data in pieces:
            length *= len(data or b"0")
            self.runs.append((offset, length, HOLE_ZERO if data is None else 0))
            offset += length
        self.fail_at = fail_at
        self.reads: list[tuple[int, int]] = []
        super().__init__(len(self.data), name="pieces", can=Can.EXTENTS)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self.reads.append((offset, len(view)))
        if offset <= self.fail_at < offset + len(view):
            raise OSError(5, "Input/output error")
        view[:] = self.data[offset : offset + len(view)]

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        for start, length, flags in self.runs:
            low, high = max(start, offset), min(start + length, offset + count)
            if low < high:
                yield low, high - low, flags


class Mapped(Pieces):
    """Pieces whose data lie verbatim in a file, as the grains of a sparse disk do."""

    def __init__(self, pieces: list[tuple[int, bytes | None]], path: Path) -> None:
        super().__init__(pieces)
        self.places: dict[int, int] = {}
        with path.open("wb") as file:
            file.write(b"header")
            for start, length, flags in self.runs:
                if not flags:
                    self.places[start] = file.tell()
                    file.write(self.data[start : start + length])
        self.storage = open_file(str(path))

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        for start, length, flags in self._extents(count, offset, ""):
            if flags:
                yield Location(start, length, Kind.HOLE)
            else:
                at = next(place + start - begin for begin, place in reversed(self.places.items()) if begin <= start)
                yield Location(start, length, Kind.DATA, self.storage, at)

    def _close(self) -> None:
        self.storage.close()


@pytest.fixture
def pieces() -> type[Pieces]:
    return Pieces


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Callable[[list[tuple[int, bytes | None]]], Mapped]]:
    made: list[Mapped] = []

    def make(pieces: list[tuple[int, bytes | None]]) -> Mapped:
        made.append(Mapped(pieces, tmp_path / f"mapped{len(made)}"))
        return made[-1]

    yield make
    for device in made:
        device.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Callable[[int], FileDevice]]:
    """Make files of zeros to write to."""
    made: list[FileDevice] = []

    def make(size: int) -> FileDevice:
        path = str(tmp_path / f"target{len(made)}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(fd, size)
        made.append(FileDevice(fd, path, writable=True))
        return made[-1]

    yield make
    for device in made:
        device.close()
