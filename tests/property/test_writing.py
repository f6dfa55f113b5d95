# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Random operations on every writable subformat, with and without a parent, against plain bytes.

VMDKIT_OPERATIONS sets how many operations a disk sees (default 120; some twenty disks).
"""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images.table import SUBFORMATS
from model import Model

if TYPE_CHECKING:
    from pathlib import Path

    from images.base import Image
    from vmdkit.device import Device

OPERATIONS = int(os.environ.get("VMDKIT_OPERATIONS", "120"))
LAYOUT = "200k:A 64k:0 1M:- 512:B 64k:C 63k:- 40M:- 100k:D"
LENGTHS = (1, 512, 4096, 65536, 100_000, 300_000, 3 << 20)
REFUSED = {"hosted-v3", "hosted-256-entries", "seSparse", "seSparse-odd"}
WRITABLE = [name for name in SUBFORMATS if name not in REFUSED and not name.startswith(("stream", "seSparse"))]
CHILDREN = [name for name in WRITABLE if SUBFORMATS[name].child]


def make(directory: Path, name: str, *, parent: bool) -> Image:
    if not parent:
        return SUBFORMATS[name].build(directory, LAYOUT)
    base = images.monolithic_sparse(directory, LAYOUT, name="base")
    return SUBFORMATS[name].build(directory, Model(base.model.size, base.model), name="child", parent=base)


class Walk:
    """One disk under random operations, and the bytes that it has to hold."""

    def __init__(self, device: Device, seed: str) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.bytes = bytearray(device.pread(device.size, 0))

    def step(self) -> None:
        choice = self.random.choice
        count = min(choice(LENGTHS), len(self.bytes))
        offset = self.random.randrange(len(self.bytes) - count + 1)
        if self.random.random() < 0.5:
            offset = min(offset & ~0xFFFF, len(self.bytes) - count)
        verb = choice(("write", "write", "write", "zero", "keep", "trim", "flush", "read", "fua"))
        here = slice(offset, offset + count)
        if verb in ("write", "fua"):
            data = self.random.randbytes(count)
            self.device.pwrite(data, offset, fua=verb == "fua")
            self.bytes[here] = data
        elif verb in ("zero", "keep"):
            self.device.zero(count, offset, no_hole=verb == "keep")
            self.bytes[here] = bytes(count)
        elif verb == "trim":
            self.device.trim(count, offset)
            self.trimmed(offset, count)
        elif verb == "flush":
            self.device.flush()
        else:
            assert self.device.pread(count, offset) == self.bytes[here]

    def trimmed(self, offset: int, count: int) -> None:
        """What was trimmed reads as zero or as before, never as something else."""
        now = self.device.pread(count, offset)
        for at in range(0, count, 512):
            part = now[at : at + 512]
            before = self.bytes[offset + at : offset + at + len(part)]
            assert part == before or all(new in (0, old) for new, old in zip(part, before, strict=True))
        self.bytes[offset : offset + count] = now


@pytest.mark.parametrize("parent", [False, True], ids=["base", "child"])
@pytest.mark.parametrize("name", WRITABLE)
def test_random_operations(name: str, parent: bool, tmp_path: Path) -> None:
    if parent and name not in CHILDREN:
        pytest.skip("this subformat cannot have a parent")
    image = make(tmp_path, name, parent=parent)
    device = vmdkit.open(image.path, writable=True)
    walk = Walk(device, f"{name} {parent}")
    for number in range(OPERATIONS):
        walk.step()
        if number % 60 == 59:
            walk.device.close()
            walk.device = vmdkit.open(image.path, writable=True)
            assert walk.device.pread(walk.device.size, 0) == walk.bytes
    walk.device.close()
    assert_equal_through_every_copy(image, walk.bytes)
    if parent:
        with vmdkit.open(tmp_path / "base.vmdk") as base:
            assert base.pread(base.size, 0) == Model(LAYOUT).pread(base.size, 0)


def assert_equal_through_every_copy(image: Image, due: bytearray) -> None:
    for directory in ("primary", "redundant"):
        try:
            device = vmdkit.open(image.path, directory=directory)
        except vmdkit.UnsupportedError:
            continue  # this subformat has one copy only
        with device:
            assert device.pread(device.size, 0) == due
            assert sum(run.length for run in device.extents()) == device.size


@pytest.mark.parametrize("parent", [False, True], ids=["base", "child"])
@pytest.mark.parametrize("name", ["hosted", "hosted-zeros", "vmfsSparse", "split"])
def test_two_writers_of_one_grain_lose_nothing(name: str, parent: bool, tmp_path: Path) -> None:
    image = make(tmp_path, name, parent=parent)
    with vmdkit.open(image.path, writable=True) as device:
        due = bytearray(device.pread(device.size, 0))
        begin, piece, writers = 2 << 20, 512, 8
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for index in range(number, 2048, writers):
                    device.pwrite(bytes([1 + number]) * piece, begin + index * piece)
                    if index % 512 == number:
                        device.flush()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for index in range(2048):
            at = begin + index * piece
            due[at : at + piece] = bytes([1 + index % writers]) * piece
        assert device.pread(device.size, 0) == due
    assert_equal_through_every_copy(image, due)


def test_space_of_trimmed_grains_is_used_again(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "16M:-")
    with vmdkit.open(image.path, writable=True) as device:
        for _ in range(20):
            device.pwrite(b"x" * (4 << 20), 0)
            device.flush()
            device.trim(4 << 20, 0)
            device.flush()
    assert os.path.getsize(image.path) < (4 << 20) * 4


def test_a_writer_that_fails_says_so_ever_after(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "1M:-")
    device = vmdkit.open(image.path, writable=True)
    device.pwrite(b"x" * 4096, 0)
    file = device.extent_files[0].storage  # type: ignore[attr-defined]
    os.close(file.fileno())
    with pytest.raises(OSError, match="Bad file"):
        device.flush()
    with pytest.raises(vmdkit.VmdkitError, match="nothing more is written"):
        device.pwrite(b"y" * 4096, 0)
    with pytest.raises(OSError, match="Bad file"):
        device.close()
