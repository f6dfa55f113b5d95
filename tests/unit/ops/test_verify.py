# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A proof is worth what it can refute: every format is spoiled between copying and reading again."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from vmdkit.converter import FORMATS, Order, convert
from vmdkit.errors import DifferenceError, FormatError, VmdkitError
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.ops.tree import Shape
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.ops.verify import Digesting, drop_cache, has_second_reader, second_reader, verify
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmdkit.device import Device

KIB, MIB = 1 << 10, 1 << 20
SHAPE = Shape()
HOLE = 1 * MIB  # here the source is zero
CONTENT = (
    b"".join(number.to_bytes(8, "little") for number in range(1, 40000)).ljust(MIB, b"\0")
    + bytes(2 * MIB)
    + b"tail" * 100 * KIB
    + b"end " * 128
)


def prove(source: Device, written: Device, zeros: Zeros = Zeros.EXTENTS) -> None:
    """Verify as the command does: the digest of the source, then the second reader."""
    with Digesting(source, SHAPE, zeros) as digesting:
        expected = digesting.digest()
    with second_reader(written) as reader:
        drop_cache(written)
        verify(source, expected, reader, zeros=zeros)


def place(written: Device, offset: int) -> tuple[str, int]:
    """Return the path and offset at which the disk's byte ``offset`` lies."""
    run = next(iter(written.locate(1, offset)))
    assert run.storage is not None
    return run.storage.name, run.at


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def spoiled(kind: str, tmp_path: Path, spoil: Callable[[Device], None], zeros: Zeros = Zeros.EXTENTS) -> VmdkitError:
    """Convert, spoil what was written before it has its name, and return what the proof says."""
    source = MemoryDevice(CONTENT, writable=False)

    def check(source: Device, written: Device) -> None:
        prove(source, written, zeros)  # it is sound
        spoil(written)
        prove(source, written, zeros)

    with pytest.raises(VmdkitError) as caught:
        convert(source, Order(str(tmp_path / "disk.vmdk"), source.size), kind, check=check)
    assert list(tmp_path.iterdir()) == []
    return caught.value


def temporary(written: Device, tmp_path: Path) -> dict[str, str]:
    """Return the paths that files have for now; a raw file is known by its last name."""
    parts = [path for path in tmp_path.iterdir() if path.name.startswith(".vmdkit-")]
    return {written.name: str(parts[0])} if len(parts) == 1 else {}


@pytest.mark.parametrize("zeros", [Zeros.EXTENTS, Zeros.NOBODY])
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("streamoptimized", "tar.gz")])
@pytest.mark.parametrize("offset", [0, 70001, 300 * KIB + 511, 3 * MIB + 7, len(CONTENT) - 1])
def test_a_flipped_bit_is_found(offset: int, kind: str, zeros: Zeros, tmp_path: Path) -> None:
    def spoil(written: Device) -> None:
        path, at = place(written, offset)
        flip(temporary(written, tmp_path).get(path, path), at)

    error = spoiled(kind, tmp_path, spoil, zeros)
    assert isinstance(error, DifferenceError)
    assert error.offset == offset
    good, bad = CONTENT[offset], CONTENT[offset] ^ 1
    assert f"byte {offset} is {bad:#04x}, not {good:#04x}" in str(error)


def lose(path: str) -> None:
    """Clear the entry of the grain at 64 KiB in the first table of a sparse file, and in its copy."""
    with open(path, "r+b") as file:
        head = file.read(512)
        if head[:4] == b"KDMV":
            directories, grain = struct.unpack_from("<QQ", head, 48), struct.unpack_from("<Q", head, 20)[0]
        else:
            directories, grain = struct.unpack_from("<I", head, 20), struct.unpack_from("<I", head, 16)[0]
        for directory in directories:
            file.seek(directory * 512)
            (table,) = struct.unpack("<I", file.read(4))
            file.seek(table * 512 + 4 * (64 * KIB // 512 // grain))
            file.write(bytes(4))


@pytest.mark.parametrize("kind", ["monolithicsparse", "twogbmaxextentsparse", "vmfssparse"])
def test_a_grain_that_its_table_has_lost_is_found(kind: str, tmp_path: Path) -> None:
    def spoil(written: Any) -> None:
        lose(written.extent_files[0].storage.name)

    error = spoiled(kind, tmp_path, spoil)
    assert isinstance(error, DifferenceError)
    assert error.offset == 64 * KIB + next(at for at, byte in enumerate(CONTENT[64 * KIB :]) if byte)


@pytest.mark.parametrize("kind", ["raw", "monolithicflat", "vmfs"])
def test_what_lies_in_a_hole_is_found(kind: str, tmp_path: Path) -> None:
    def spoil(written: Any) -> None:
        paths = [str(path) for path in tmp_path.iterdir() if path.stat().st_size >= len(CONTENT)]
        with open(paths[0], "r+b") as file:
            file.seek(HOLE + 5)
            file.write(b"!")

    assert spoiled(kind, tmp_path, spoil).offset == HOLE + 5


@pytest.mark.parametrize("kind", ["raw", "monolithicsparse", "vmfs", "vmfssparse"])
def test_a_file_that_is_cut_off_is_found(kind: str, tmp_path: Path) -> None:
    def spoil(written: Any) -> None:
        path = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1024)

    assert spoiled(kind, tmp_path, spoil).offset is not None


def test_a_copy_may_be_longer_where_it_is_zero() -> None:
    source = MemoryDevice(b"odd")
    expected = tree_hash(source)
    assert verify(source, expected, MemoryDevice(b"odd".ljust(512, b"\0"))).size == 512
    with pytest.raises(DifferenceError, match="byte 300 is 0x61, not 0x00"):
        verify(source, expected, MemoryDevice(b"odd".ljust(300, b"\0") + b"a"))


def test_a_copy_may_not_be_shorter() -> None:
    source = MemoryDevice(bytes(1024))
    with pytest.raises(DifferenceError, match="it has 1023 bytes, its source 1024") as caught:
        verify(source, tree_hash(source), MemoryDevice(bytes(1023)))
    assert caught.value.offset == 1023


def test_a_source_that_has_changed_since() -> None:
    source = MemoryDevice(b"a" * 200000)
    expected = tree_hash(source)
    source.pwrite(b"b", 100000)
    copy = MemoryDevice(source.pread(source.size, 0))
    with pytest.raises(DifferenceError, match="65536 bytes at 65536 differ, though read again both are the same"):
        verify(source, expected, copy)


def test_errors_of_the_source_are_raised_when_the_digest_is_wanted(pieces: Any) -> None:
    source = FaultDevice(pieces([(4 * MIB, b"A")]), [Fault("read", 3 * MIB, 1)])
    with Digesting(source, SHAPE) as digesting, pytest.raises(OSError, match="Input/output error") as caught:
        digesting.digest()
    assert caught.value.__notes__ == [f"in the {MIB} bytes at {3 * MIB:#x} of the disk"]


def test_a_digest_nobody_waits_for_ends(pieces: Any) -> None:
    reached = threading.Event()

    class Slow(pieces):  # type: ignore[misc]
        def _pread_into(self, view: memoryview, offset: int) -> None:
            reached.wait(5)
            super()._pread_into(view, offset)

    source = Slow([(200 * MIB, b"A")])
    with Digesting(source, SHAPE):
        reached.set()
    assert sum(count for _, count in source.reads) < 100 * MIB


def test_progress_covers_both() -> None:
    source = MemoryDevice(CONTENT)
    steps: list[int] = []
    with Digesting(source, SHAPE) as digesting:
        expected = digesting.digest(steps.append)
    verify(source, expected, MemoryDevice(CONTENT), progress=steps.append)
    assert sum(steps) == 2 * len(CONTENT)


def test_the_second_reader_knows_a_child(tmp_path: Path) -> None:
    base = str(tmp_path / "base.vmdk")
    convert(MemoryDevice(CONTENT), Order(base, len(CONTENT)), "monolithicSparse")
    changed = CONTENT[:500000] + b"changed" + CONTENT[500007:]
    checked = []

    def check(source: Device, written: Device) -> None:
        prove(source, written)
        checked.append(True)

    with vmdkit.open(base) as parent:
        order = Order(str(tmp_path / "child.vmdk"), len(CONTENT), parent=parent)  # type: ignore[arg-type]
        convert(MemoryDevice(changed), order, "monolithicSparse", check=check)
    assert checked


def test_the_second_reader_knows_only_what_we_write(pieces: Any) -> None:
    assert not has_second_reader(pieces([(10, b"A")]))


def test_what_the_second_reader_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    vmdkit.create(str(path), MIB)
    with path.open("r+b") as file:
        file.seek(72)
        file.write(b"\1")  # unclean
    with vmdkit.open(str(path)) as disk, pytest.raises(FormatError, match="not those of a disk that was closed"):
        second_reader(disk)
