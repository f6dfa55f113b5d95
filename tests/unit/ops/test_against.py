# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdkit
from vmdkit.ops.against import Need, differing
from vmdkit.ops.copy import CopyOptions, copy
from vmdkit.ops.zeros import different_runs
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

K = 1024


def test_a_snapshot_and_its_base_are_one_where_they_share(tmp_path: Path) -> None:
    base, child = str(tmp_path / "base.vmdk"), str(tmp_path / "child.vmdk")
    vmdkit.create(base, 1 << 20, subformat="monolithicFlat")
    with vmdkit.open(base, writable=True) as disk:
        disk.pwrite(b"A" * 256 * K, 0)
    vmdkit.create(child, parent=base)
    with vmdkit.open(child, writable=True) as disk:
        disk.pwrite(b"B" * 64 * K, 64 * K)
        disk.pwrite(b"C" * 64 * K, 512 * K)
    with vmdkit.open(child) as source, vmdkit.open(base) as below:
        found = [(segment.offset, segment.length, need) for segment, need in differing(source, below)]
        assert found == [
            (0, 64 * K, Need.SAME),
            (64 * K, 64 * K, Need.COMPARE),
            (128 * K, 128 * K, Need.SAME),
            (256 * K, 256 * K, Need.SAME),
            (512 * K, 64 * K, Need.COPY),
            (576 * K, 448 * K, Need.SAME),
        ]
        assert next(segment.offset for segment, _ in differing(source, below, 100 * K)) == 100 * K


class Noted(MemoryDevice):
    """Says which bytes were written or zeroed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.changed: list[tuple[int, int]] = []

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.changed.append((offset, len(view)))
        super()._pwrite(view, offset)


def test_only_what_differs_is_written(pieces: Any) -> None:
    base = MemoryDevice(b"A" * 64 * K, writable=False)
    source = MemoryDevice(b"A" * 10 * K + b"B" + b"A" * (22 * K - 1) + b"C" * 2 * K + bytes(4 * K) + b"A" * 26 * K)
    made = Noted(b"A" * 64 * K)
    copy(source, made, CopyOptions(block=4 * K), base=base)
    assert made.pread(64 * K, 0) == source.pread(64 * K, 0)
    assert sorted(made.changed) == [(8 * K, 4 * K), (32 * K, 8 * K)]


sector = st.sampled_from([b"A" * 512, b"\0" * 512, b"B" * 512])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sector, sector), min_size=1, max_size=40), st.sampled_from([0, 512, 4096]))
def test_any_two_disks(pairs: list[tuple[bytes, bytes]], block: int) -> None:
    source, base = (MemoryDevice(b"".join(side), writable=False) for side in zip(*pairs, strict=True))
    made = MemoryDevice(base.pread(base.size, 0))
    copy(source, made, CopyOptions(block=block), base=base)
    assert made.pread(made.size, 0) == source.pread(source.size, 0)


@pytest.mark.parametrize("offset", [0, 512, 1536])
def test_blocks_begin_where_the_disk_has_them(offset: int) -> None:
    one, two = bytearray(8192), bytearray(8192)
    one[3000] = 1
    found = list(different_runs(one, two, 8192, 2048, offset))
    start = (3000 + offset) // 2048 * 2048 - offset
    assert found == [(max(start, 0), 2048 if start >= 0 else 2048 + start)]
