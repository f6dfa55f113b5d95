# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Flags and sizes that follow from a device, and the names of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmdkit.device import BlockSize
from vmdkit.errors import UsageError
from vmdkit.filters.fault import FaultDevice
from vmdkit.nbd.export import Export, Exports
from vmdkit.nbd.protocol import ExportFlag, Mode
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

F = ExportFlag


def test_reading_never_offers_to_write() -> None:
    flags = Export(MemoryDevice(1)).flags(Mode.STRUCTURED)
    assert flags & (F.READ_ONLY | F.CAN_MULTI_CONN | F.SEND_DF)
    assert not flags & (F.SEND_WRITE_ZEROES | F.SEND_TRIM | F.SEND_FUA | F.SEND_FAST_ZERO)


def test_writing_always_offers_zeroes() -> None:
    flags = Export(FaultDevice(MemoryDevice(1), []), read_only=False).flags(Mode.SIMPLE)
    assert flags & F.SEND_WRITE_ZEROES
    assert not flags & (F.READ_ONLY | F.SEND_DF | F.CAN_MULTI_CONN)


def test_a_device_that_cannot_write_is_read_only() -> None:
    assert Export(MemoryDevice(1, writable=False), read_only=False).flags(Mode.SIMPLE) & F.READ_ONLY


@pytest.mark.parametrize(
    ("size", "device", "told"),
    [
        (MIB, (1, 4096, 32 * MIB), (1, 4096, 32 * MIB)),
        (MIB, (512, 64 << 10, 64 * MIB), (512, 64 << 10, 32 * MIB)),
        (MIB, (1, 1, MIB), (1, 512, MIB)),
        (MIB, (4096, 512, 10000), (4096, 4096, 8192)),
        (3 * MIB, (128 << 10, 128 << 10, MIB), (1, 128 << 10, MIB)),  # the protocol knows no larger minimum than 64 KiB
    ],
)
def test_block_sizes(size: int, device: tuple[int, int, int], told: tuple[int, int, int]) -> None:
    assert Export(MemoryDevice(size, block_size=BlockSize(*device))).block_size() == told


def test_shareable(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(100))
    with open_file(str(path)) as reading, open_file(str(path), writable=True) as writing, MemoryDevice(1) as memory:
        assert Export(reading).shareable()
        assert Export(writing, read_only=False).shareable()
        assert not Export(memory, read_only=False).shareable()
        assert not Export(memory).shareable()  # somebody else in this process may write to it


def test_names() -> None:
    a, b = Export(MemoryDevice(1), "a"), Export(MemoryDevice(1), "b")
    exports = Exports([a, b])
    assert [exports.get(name) for name in ("", "a", "b", "c")] == [a, a, b, None]
    unnamed = Export(MemoryDevice(1))
    assert Exports([a, unnamed]).get("") is unnamed


@pytest.mark.parametrize("name", ["x" * 4097, "ä" * 2049, "a\0b"])
def test_names_that_cannot_be_said(name: str) -> None:
    with pytest.raises(UsageError, match="no name for NBD"):
        Exports([Export(MemoryDevice(1), name)])


def test_names_must_differ() -> None:
    with pytest.raises(UsageError, match="two exports"):
        Exports([Export(MemoryDevice(1), "a"), Export(MemoryDevice(1), "a")])
    with pytest.raises(UsageError, match="at least one"):
        Exports([])
