# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every damage, refusal and cut of tests/images: no wrong byte, no foreign exception, no waste of time or memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

import images
from images.damage import ANY, CAREFUL, DAMAGE, FAILS, READS, REFUSES, cuts, truncate
from images.refused import READ_ONLY, REFUSED
from vmdkit import opener
from vmdkit.errors import VmdkitError

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image
    from vmdkit.device import Device

STEP = 64 << 10
SECONDS = 20.0  # many times what any of them takes, many times less than a loop without end
MEMORY = 64 << 20
# Found, reported, not yet mended.


def judge(device: Device, image: Image) -> set[str]:
    """Read all of a device in steps; return what came of it: ``good``, ``wrong``, ``raised``, ``overlooked``."""
    if device.size != image.size:
        return {"wrong"}
    came = set()
    for offset in range(0, image.size, STEP):
        count = min(STEP, image.size - offset)
        is_bad = any(offset < at + length and at < offset + count for at, length in image.bad)
        try:
            good = device.pread(count, offset) == image.model.pread(count, offset)
        except VmdkitError:
            came.add("raised as due" if is_bad else "raised")
        else:
            came.add("overlooked" if is_bad else "good" if good else "wrong")
    return came


def outcome(image: Image) -> str:
    try:
        device = opener.open(image.path)
    except (VmdkitError, OSError):
        return REFUSES
    with device:
        assert all(run.length for run in device.extents())
        assert all(run.length for run in device.locate())
        came = judge(device, image)
    if came <= {"good"}:
        return READS
    return FAILS if came <= {"good", "raised as due"} else f"{sorted(came)}"


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    demand = DAMAGE[name].outcome
    began = time.monotonic()
    came = outcome(image)
    assert time.monotonic() - began < SECONDS
    if demand == CAREFUL:
        assert came in {READS, REFUSES, FAILS}
    elif demand != ANY:
        assert came == demand


@pytest.mark.parametrize("name", [n for n in DAMAGE if "huge" in n or "^" in n or "bomb" in n or "beyond" in n])
def test_damage_takes_little_memory(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    tracemalloc.start()
    try:
        outcome(image)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_be_refused(name: str, tmp_path: Path) -> None:
    image = REFUSED[name](tmp_path)
    with pytest.raises(VmdkitError) as caught:
        opener.open(image.path)
    assert len(caught.value.message) > 20  # it says why


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_can_be_read_but_not_written(name: str, tmp_path: Path) -> None:
    image = READ_ONLY[name](tmp_path)
    with opener.open(image.path) as device:
        assert device.pread(image.size, 0) == image.model.pread(image.size, 0)
    with pytest.raises(VmdkitError):
        opener.open(image.path, writable=True)


@pytest.mark.parametrize(
    "kind", ["hosted", "hosted-on-demand", "split", "stream-A", "stream-B", "stream-QEMU", "vmfsSparse", "seSparse"]
)
def test_a_cut_file_gives_no_wrong_byte(kind: str, tmp_path: Path) -> None:
    """Cut a file at every structure: each read raises, or is right, or (a short last grain) lacks only zeros."""
    sound = images.SUBFORMATS[kind].build(tmp_path / "sound", "64k:A 64k:b 64k:- 12k:C 33M:- 8k:D 56k:0")
    for number, size in enumerate(cuts(sound)):
        image = sound.copy_to(tmp_path / str(number))
        truncate(image, size)
        try:
            device = opener.open(image.path)
        except VmdkitError:
            continue
        with device:
            for offset in range(0, image.size, STEP):
                count = min(STEP, image.size - offset)
                try:
                    read = device.pread(count, offset)
                except VmdkitError:
                    continue
                due = image.model.pread(count, offset)
                if read != due:
                    assert is_short_grain(device, bytes(read), due, offset), (size, offset)


def is_short_grain(device: Device, read: bytes, due: bytes, offset: int) -> bool:
    """Tell whether a read differs only by zeros that stand for what lies behind the end of the file."""
    at = 0
    for run in device.locate(len(read), offset):
        part = slice(at, at + run.length)
        if read[part] != due[part] and any(read[part]):
            return False
        at += run.length
    return True


def test_noaccess_fails_and_its_neighbours_do_not(tmp_path: Path) -> None:
    pieces = [
        images.Piece("FLAT", 4096),
        images.Piece("FLAT", 4096, access="NOACCESS"),
        images.Piece("FLAT", access="RDONLY"),
    ]
    image = images.assemble(tmp_path, "4k:A 4k:B 4k:C", pieces)
    with opener.open(image.path) as device:
        assert device.pread(4096, 0) == image.model.pread(4096, 0)
        assert device.pread(4096, 8192) == image.model.pread(4096, 8192)
        for offset, length in image.noaccess:
            with pytest.raises(VmdkitError):
                device.pread(1, offset)
            with pytest.raises(VmdkitError):
                device.pread(length + 2, offset - 1)
