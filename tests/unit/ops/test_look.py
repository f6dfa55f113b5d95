# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.ops import look
from vmdkit.ops.look import zeros_in_file

if TYPE_CHECKING:
    from pathlib import Path

K = 1024


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    fds = []

    def make(data: bytes) -> int:
        (tmp_path / "file").write_bytes(data)
        fds.append(os.open(tmp_path / "file", os.O_RDONLY))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def test_blocks_of_the_disk_not_of_the_file(opened: Any) -> None:
    """Bytes from 3 KiB of a file lie at 6 KiB of a disk, whose blocks of 4 KiB are 2 KiB off those of the file."""
    fd = opened(b"h" * 3 * K + b"A" * 2 * K + bytes(4 * K) + b"B" * 4 * K + bytes(3 * K))
    assert list(zeros_in_file(fd, 3 * K, 13 * K, 6 * K, 4 * K)) == [
        (6 * K, 2 * K, 0),
        (8 * K, 4 * K, 1),
        (12 * K, 4 * K, 0),
        (16 * K, 3 * K, 1),
    ]


@pytest.mark.parametrize("where", [0, 7, 8, 2048, 4095])
def test_one_byte_makes_a_block_data(where: int, opened: Any) -> None:
    block = bytearray(4 * K)
    block[where] = 1
    fd = opened(bytes(4 * K) + bytes(block) + bytes(4 * K))
    assert list(zeros_in_file(fd, 0, 12 * K, 0, 4 * K)) == [(0, 4 * K, 1), (4 * K, 4 * K, 0), (8 * K, 4 * K, 1)]


def test_a_short_file_is_data(opened: Any) -> None:
    fd = opened(bytes(4 * K + 3))
    assert list(zeros_in_file(fd, 0, 12 * K, 0, 4 * K)) == [(0, 4 * K, 1), (4 * K, 8 * K, 0)]


def test_little_is_read(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fd, read, told = opened(b"A" * 64 * K), [], []
    pread, advise = os.pread, os.posix_fadvise

    def watched(fd: int, count: int, at: int) -> bytes:
        read.append(count)
        return pread(fd, count, at)

    def noted(fd: int, at: int, count: int, what: int) -> None:
        told.append((at, count))
        advise(fd, at, count, what)

    monkeypatch.setattr(os, "pread", watched)
    monkeypatch.setattr(os, "posix_fadvise", noted)
    monkeypatch.setattr(look, "_WINDOW", 16 * K)
    assert list(zeros_in_file(fd, 0, 64 * K, 0, 4 * K)) == [(0, 64 * K, 0)]
    assert sum(read) == 16 * 8
    assert told == [(0, 32 * K), (32 * K, 16 * K), (48 * K, 16 * K), (64 * K, 0)]
