# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks to measure with: half full, in runs of 64 KiB to 4 MiB, as a disk in use is."""

from __future__ import annotations

import compileall
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
GRAIN = 64 * KIB
FOLDERS = ("/usr/bin", "/usr/lib", "/usr/share")  # what is on the system disk of a guest, too


def compile_package() -> None:
    """Write the bytecode that pip writes on installation; a checkout may lack it, and then every start compiles."""
    compileall.compile_dir(Path(__file__).parents[1] / "src" / "vmdkit", quiet=1)


def noise() -> Iterator[bytes]:
    """Yield grains of random bytes, without end: for what is not to be compressed."""
    while True:
        yield os.urandom(GRAIN)


def files() -> Iterator[bytes]:
    """Yield grains of programs, libraries and texts of this system, in an order of no meaning, without end."""
    paths = sorted(os.path.join(top, name) for folder in FOLDERS for top, _, names in os.walk(folder) for name in names)
    random.Random(9).shuffle(paths)
    rest = b""
    while True:
        for path in paths:
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                rest += file.read(MIB)
            for at in range(0, len(rest) - GRAIN + 1, GRAIN):
                yield rest[at : at + GRAIN]
            rest = rest[len(rest) - len(rest) % GRAIN :]


def half_full(path: Path, size: int, content: Iterator[bytes]) -> None:
    """Write a raw disk of ``size`` bytes of which half is data, on grain boundaries."""
    dice = random.Random(7)
    with path.open("wb") as file:
        file.truncate(size)
        offset = 0
        while offset < size:
            count = min(dice.randrange(1, 65) * GRAIN, size - offset)
            if dice.random() < 0.49:
                file.seek(offset)
                file.writelines(next(content) for _ in range(count // GRAIN))
            offset += count
