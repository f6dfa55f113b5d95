# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""COWD and seSparse: headers, journals, and the two images of which every number is known."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Cowd, SeSparse
from images.recipes import COWD_SECTORS, SE_GRAINS
from vmdkit.errors import CorruptError, FormatError, UnsupportedError, VmdkitError

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = "4k:A 4k:- 4k:b 4k:0 20M:- 4k:C"


def test_the_known_cowd(tmp_path: Path) -> None:
    image = images.cowd_8m(tmp_path)
    assert (image.peek("header.freeSector"), image.peek("gd", 1), image.peek("gd", 0)) == (39, 5, 0)
    with vmdkit.open(image.path) as disk:
        for sector, letter in COWD_SECTORS.items():
            assert disk.pread(512, sector * 512)[:1] == letter.encode()
        assert [run[:2] for run in disk.extents(context="qemu:allocation-depth")] == [
            (0, 4106 * 512),
            (4106 * 512, 1024),
            (4108 * 512, (16384 - 4108) * 512),
        ]


def test_the_known_sesparse(tmp_path: Path) -> None:
    image = images.sesparse_100m(tmp_path)
    assert image.peek(*image.entry(4)) == 0x3001000000000001
    with vmdkit.open(image.path) as disk:
        for grain, what in SE_GRAINS.items():
            data = disk.pread(4096, grain * 4096)
            assert data == image.model.pread(4096, grain * 4096)
            assert data[:1] == (b"\0" if what == "0" else what.encode())
        assert disk.pread(7 * 4096, 0) == image.model.pread(7 * 4096, 0)


COWD_WRONG = [
    ("version", 2, UnsupportedError, "version 2 of the COWD format is unknown; 1 is", None),
    ("grainSize", 0, CorruptError, "a grain of 0 bytes; a power of two up to 1048576 is due", 16),
    ("grainSize", 3, CorruptError, "a grain of 1536 bytes", 16),
    ("grainSize", 4096, CorruptError, "a grain of 2097152 bytes", 16),
    ("gdOffset", 0, CorruptError, "the directory of 11 entries cannot lie at 0x0 of this file", 20),
    ("gdOffset", 0xFFFFFFFF, CorruptError, "cannot lie at 0x1fffffffe00", 20),
    ("numGDEntries", 10, CorruptError, "10 directory entries; the capacity needs 11", 24),
    ("numGDEntries", 0, CorruptError, "0 directory entries; the capacity needs 11", 24),
    ("numSectors", 0xFFFFFFFF, CorruptError, "11 directory entries; the capacity needs 1048576", 24),
]


@pytest.mark.parametrize(("field", "value", "kind", "text", "offset"), COWD_WRONG)
def test_cowd_header(
    field: str, value: int, kind: type[VmdkitError], text: str, offset: int | None, tmp_path: Path
) -> None:
    image = images.vmfs_sparse(tmp_path, LAYOUT)
    image.poke(f"header.{field}", value)
    with pytest.raises(kind) as caught:
        vmdkit.open(image.path)
    assert text in str(caught.value)
    assert caught.value.path == str(image.parts[0].path)
    assert caught.value.offset == offset


@pytest.mark.parametrize("grain", [512, 1024, 4096, 1 << 20])
def test_cowd_grains(grain: int, tmp_path: Path) -> None:
    image = images.vmfs_sparse(tmp_path, LAYOUT, Cowd(grain=grain, order="shuffled"))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_cowd_without_anything_written(tmp_path: Path) -> None:
    """Header and directory, and not one table: what a snapshot is when it was just taken."""
    base = images.monolithic_flat(tmp_path, "8M:A", name="base")
    child = images.vmfs_sparse(tmp_path, "8M:-", name="child", parent=base)
    assert child.parts[0].path.stat().st_size == 2560
    with vmdkit.open(child.path) as disk:
        assert disk.pread(1 << 20, 7 << 20) == base.model.pread(1 << 20, 7 << 20)
        assert next(disk.extents(context="qemu:allocation-depth")).flags == 2


def test_cowd_entries_behind_its_end_or_in_its_header(tmp_path: Path) -> None:
    image = images.vmfs_sparse(tmp_path, LAYOUT)
    eof = image.parts[0].path.stat().st_size // 512
    for value, readable in ((4, False), (5, True), (eof - 1, True), (eof, False), (0xFFFFFFFF, False)):
        image.poke_entry(0, value)
        with vmdkit.open(image.path) as disk:
            if readable:
                assert disk.pread(512, 0) == image.parts[0].path.read_bytes()[value * 512 :][:512]
            else:
                with pytest.raises(CorruptError, match="entry 0 of table 0"):
                    disk.pread(1, 0)
            assert disk.pread(512, 512) == image.model.pread(512, 512)


def test_cowd_doubts(tmp_path: Path) -> None:
    image = images.vmfs_sparse(tmp_path, LAYOUT, Cowd(unclean=True))
    os.truncate(image.parts[0].path, image.parts[0].path.stat().st_size - 512)
    with vmdkit.open(image.path) as disk:
        texts = [doubt.text for doubt in disk.doubts]  # type: ignore[attr-defined]
    assert "not closed cleanly" in texts[0]
    assert "bytes in use; the file has" in texts[1]


@pytest.mark.parametrize("kind", ["vmfsSparse", "seSparse"])
@pytest.mark.parametrize("size", [0, 1, 8, 100, 511, 512, 1023, 2047])
def test_files_shorter_than_their_header(kind: str, size: int, tmp_path: Path) -> None:
    image = images.SUBFORMATS[kind].build(tmp_path, LAYOUT)
    os.truncate(image.parts[0].path, size)
    with pytest.raises(FormatError) as caught:
        vmdkit.open(image.path)
    assert caught.value.path == str(image.parts[0].path)


SE_WRONG = [
    ("header.version", 0x0000000200000000, UnsupportedError, "version 0x200000000 of the seSparse format", None),
    ("header.flags", 1, UnsupportedError, "seSparse flags 0x1 are unknown", None),
    ("header.grainSize", 16, CorruptError, "a grain of 8192 bytes; 4096 are due", 24),
    ("header.grainTableSize", 63, CorruptError, "a grain table of 32256 bytes; 32768 are due", 32),
    ("header.capacity", 1 << 62, CorruptError, "directory entries are due for", 128),
    ("header.capacity", (1 << 64) - 1, CorruptError, "directory entries are due for", 128),
    ("header.grainDirectorySize", 0, CorruptError, "2 directory entries are due", 128),
    ("header.grainDirectoryOffset", (1 << 64) - 1, CorruptError, "2 directory entries are due", 128),
    ("header.grainTablesOffset", 1 << 62, CorruptError, "lies behind the end of the file", 144),
    ("header.grainsOffset", (1 << 64) - 1, CorruptError, "lies behind the end of the file", 192),
    ("header.volatileHeaderOffset", (1 << 64) - 1, CorruptError, "the volatile header lies behind", 80),
    ("volatile.magic", 0xCAFEBABE, CorruptError, "0xcafebabe where 0xcafecafe is due", 512),
    ("volatile.replayJournal", 1, UnsupportedError, "its journal has not been replayed", 512 + 24),
    ("volatile.replayJournal", 1 << 63, UnsupportedError, "its journal has not been replayed", 512 + 24),
]


@pytest.mark.parametrize(("field", "value", "kind", "text", "offset"), SE_WRONG)
def test_sesparse_headers(
    field: str, value: int, kind: type[VmdkitError], text: str, offset: int | None, tmp_path: Path
) -> None:
    image = images.se_sparse(tmp_path, LAYOUT)
    image.poke(field, value)
    with pytest.raises(kind) as caught:
        vmdkit.open(image.path)
    assert text in str(caught.value)
    assert caught.value.path == str(image.parts[0].path)
    assert caught.value.offset == offset


def test_a_waiting_journal_may_be_ignored_and_stays_a_doubt(tmp_path: Path) -> None:
    image = images.se_sparse(tmp_path, LAYOUT, SeSparse(replay=1))
    with vmdkit.open(image.path, ignore_journal=True) as disk:
        assert disk.pread(16384, 0) == image.model.pread(16384, 0)
        assert "its journal has not been replayed" in disk.doubts[0].text  # type: ignore[attr-defined]


def test_unmapped_grains_are_zero_and_not_the_parents(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:P", name="base")
    for unmapped in ("none", "all", "odd"):
        child = images.se_sparse(
            tmp_path, "16k:0 16k:- 16k:C 16k:0", SeSparse(unmapped=unmapped), name=unmapped, parent=base
        )
        with vmdkit.open(child.path) as disk:
            assert disk.pread(65536, 0) == child.model.pread(65536, 0)


@pytest.mark.parametrize("value", [77, 4 << 60, 8 << 60, 15 << 60, (1 << 64) - 1, 3 << 60 | 1 << 47, (1 << 60) - 1])
def test_sesparse_entries_that_cannot_be(value: int, tmp_path: Path) -> None:
    image = images.se_sparse(tmp_path, LAYOUT)
    image.poke_entry(2, value)
    with vmdkit.open(image.path) as disk:
        with pytest.raises(CorruptError, match="entry 2 of table 0") as caught:
            disk.pread(1, 2 * 4096)
        assert caught.value.offset == image.fields["gt[0]"].offset + 16
        assert disk.pread(4096, 0) == image.model.pread(4096, 0)
        assert disk.pread(4096, 3 * 4096) == bytes(4096)
