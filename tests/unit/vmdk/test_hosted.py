# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hosted sparse headers and directories: each check at its bound, each message with its place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Hosted, Image
from images.hosted import HEADER
from vmdkit.errors import CorruptError, FormatError, UnsupportedError, VmdkitError
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.hosted import HostedExtent, directory_count, read_header
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from pathlib import Path

K64 = 64 << 10
LAYOUT = "64k:A 64k:- 64k:b 32M:- 64k:D"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return images.monolithic_sparse(tmp_path, LAYOUT)


WRONG = [
    ("magic", b"KDMX", CorruptError, "b'KDMX' where 'KDMV' is due", 0),
    ("magic", b"kdmv", FormatError, "the file is unfinished", 0),
    ("version", 0, UnsupportedError, "version 0 of the sparse format is unknown; 1, 2 and 3 are", None),
    ("version", 4, UnsupportedError, "version 4 of the sparse format is unknown", None),
    ("flags", 3 | 1 << 18, UnsupportedError, "incompatible flags 0x40000", None),
    ("flags", 3 | 1 << 31, UnsupportedError, "incompatible flags 0x80000000", None),
    ("flags", 3 | 1 << 17, CorruptError, "grain markers without compressed grains", 8),
    ("newline", b"\r\n \r", CorruptError, "a text-mode transfer has damaged the file", 73),
    ("newline", b"\n \n\0", CorruptError, "a text-mode transfer has damaged the file", 73),
    ("grainSize", 0, CorruptError, "a grain of 0 bytes; a power of two from 512 is due", 20),
    ("grainSize", 3, CorruptError, "a grain of 1536 bytes", 20),
    ("grainSize", 127, CorruptError, "a grain of 65024 bytes", 20),
    ("grainSize", 1 << 22, CorruptError, "a grain of 2147483648 bytes", 20),
    ("grainSize", 1 << 63, CorruptError, "a power of two from 512 is due", 20),
    ("numGTEsPerGT", 0, CorruptError, "0 entries in a grain table; 512 are due", 44),
    ("numGTEsPerGT", 511, CorruptError, "511 entries in a grain table; 512 are due", 44),
    ("numGTEsPerGT", 513, CorruptError, "513 entries in a grain table; 512 are due", 44),
    ("numGTEsPerGT", 1 << 31, CorruptError, "entries in a grain table; 512 are due", 44),
]


@pytest.mark.parametrize(("field", "value", "kind", "text", "offset"), WRONG)
def test_header_fields(
    field: str, value: int | bytes, kind: type[VmdkitError], text: str, offset: int | None, image: Image
) -> None:
    image.poke(f"header.{field}", value)
    storage = MemoryDevice(image.path.read_bytes(), name="x.vmdk")
    with pytest.raises(kind) as caught:
        read_header(storage)
    assert text in str(caught.value)
    assert caught.value.path == "x.vmdk"
    assert caught.value.offset == offset
    if offset is not None:
        assert offset == HEADER[field][0]


def test_the_offset_of_a_footer_counts_from_the_file(image: Image) -> None:
    image.poke("header.grainSize", 3)
    with pytest.raises(CorruptError) as caught:
        read_header(MemoryDevice(bytes(1024) + image.path.read_bytes()), 1024)
    assert caught.value.offset == 1024 + 20


@pytest.mark.parametrize("size", [0, 1, 4, 511])
def test_less_than_a_header(size: int, image: Image) -> None:
    with pytest.raises(CorruptError, match="the file is shorter than a header"):
        read_header(MemoryDevice(image.path.read_bytes()[:size]))


def test_newline_bytes_are_looked_at_only_where_the_flag_says_so(image: Image) -> None:
    image.poke("header.newline", bytes(4))
    image.poke("header.flags", 2)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(512, 0) == image.model.pread(512, 0)


@pytest.mark.parametrize("flags", [1 << 3, 1 << 9, 1 << 15])
def test_unknown_compatible_flags_are_read(flags: int, tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT, Hosted(flags=flags))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(512, 0) == image.model.pread(512, 0)


@pytest.mark.parametrize("grain", [512, 1024, 4096, K64, 1 << 20, 8 << 20])
def test_grains_of_any_power_of_two(grain: int, tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "4k:A 60k:- 64k:b 1k:C", Hosted(grain=grain))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


# ── directories ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("capacity", "count"),
    [(0, 0), (512, 1), (32 << 20, 1), ((32 << 20) + 512, 2), (128 << 40, 1 << 22)],
)
def test_how_many_tables(capacity: int, count: int) -> None:
    assert directory_count(HostedHeader(capacity=capacity), "x") == count


@pytest.mark.parametrize("capacity", [(128 << 40) + 512, 1 << 62, 512 * ((1 << 64) - 1)])
def test_more_tables_than_any_disk_has(capacity: int) -> None:
    with pytest.raises(CorruptError, match="4194304 are the most") as caught:
        directory_count(HostedHeader(capacity=capacity), "x")
    assert caught.value.offset == 12


@pytest.mark.parametrize("sector", [0, 1 << 40, (1 << 64) - 1])
def test_a_directory_outside_the_file(sector: int, image: Image) -> None:
    image.poke("header.gdOffset", sector)
    with pytest.raises(CorruptError, match="the grain directory has 2 entries and cannot lie at"):
        vmdkit.open(image.path)


def test_a_directory_cut_off_by_the_end(image: Image) -> None:
    os.truncate(image.path, image.fields["gd"].offset + 7)
    with pytest.raises(CorruptError, match="cannot lie at"):
        vmdkit.open(image.path)
    os.truncate(image.path, image.fields["gd"].offset + 8)
    with vmdkit.open(image.path) as disk, pytest.raises(CorruptError, match="directory entry 0"):
        disk.pread(1, 0)


def test_a_fresh_disk_of_a_few_sectors(tmp_path: Path) -> None:
    """No tables at all: the file ends behind its directory, shorter than one table."""
    knobs = Hosted(descriptor=0, rgd=False, on_demand=True, grain=512)
    image = images.split_sparse(tmp_path, "64k:-", knobs)
    os.truncate(image.parts[0].path, 1024)
    with vmdkit.open(image.path) as disk:
        assert not any(disk.pread(disk.size, 0))


def test_only_what_the_capacity_needs_is_looked_at(image: Image) -> None:
    """Garbage in the directory's last sector behind its entries means nothing."""
    gd = image.fields["gd"]
    with image.path.open("r+b") as file:
        file.seek(gd.offset + gd.size)
        file.write(b"\xff" * (512 - gd.size))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(3 * K64, 0) == image.model.pread(3 * K64, 0)
        assert disk.facts()["doubts"] == []  # type: ignore[attr-defined]


# ── pointers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pointers_at_each_bound(image: Image) -> None:
    low, eof = image.peek("header.overHead"), image.path.stat().st_size // 512
    for value, readable in ((low, True), (low - 1, False), (eof - 128, True), (eof - 1, True), (eof, False)):
        image.poke_entry(2, value)
        with vmdkit.open(image.path) as disk:
            if readable:
                count = min(K64, (eof - value) * 512)
                wanted = image.path.read_bytes()[value * 512 : value * 512 + count]
                assert disk.pread(K64, 2 * K64) == wanted + bytes(K64 - count)
            else:
                with pytest.raises(CorruptError, match="entry 2 of table 0 points outside the grains") as caught:
                    disk.pread(1, 3 * K64 - 1)
                assert caught.value.offset == image.fields["gt[0]"].offset + 8
                assert disk.pread(2 * K64, 0) == image.model.pread(2 * K64, 0)


@pytest.mark.parametrize("overhead", [0, 1, 1 << 40, (1 << 64) - 1])
def test_an_overhead_that_cannot_be_forbids_nothing_but_the_header(overhead: int, image: Image) -> None:
    image.poke("header.overHead", overhead)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(3 * K64, 0) == image.model.pread(3 * K64, 0)
    image.poke_entry(2, 1)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(512, 2 * K64) == image.path.read_bytes()[512:1024]


@pytest.mark.parametrize("keep", [1, 511, 512, 513, K64 - 1])
def test_what_a_short_last_grain_lacks_is_zero(keep: int, image: Image) -> None:
    place = image.fields["grain[514]"] if "grain[514]" in image.fields else image.fields["grain[515]"]
    grain = next(number for number in (514, 515) if f"grain[{number}]" in image.fields)
    os.truncate(image.path, place.offset + keep)
    wanted = image.model.pread(keep, grain * K64) + bytes(K64 - keep)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(K64, grain * K64) == wanted
        for at in (keep - 1, keep, keep + 1):
            if 0 <= at < K64:
                assert disk.pread(1, grain * K64 + at) == wanted[at : at + 1]
        assert "1 grains are cut off by the end of the file" in str(next(disk.examine()))  # type: ignore[attr-defined]
        assert sum(run.length for run in disk.extents()) == disk.size


def test_zero_grains_hide_the_parent(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, "64k:A 64k:B 64k:C", name="base")
    child = images.monolithic_sparse(tmp_path, "64k:- 64k:0 64k:D", Hosted(zero_grains=True), name="c", parent=base)
    assert child.peek("gt[0]", 1) == 1
    with vmdkit.open(child.path) as disk:
        assert disk.pread(disk.size, 0) == child.model.pread(child.size, 0)
        assert [tuple(run) for run in disk.extents()] == [(0, K64, 0), (K64, K64, 3), (2 * K64, K64, 0)]
        assert [tuple(run) for run in disk.extents(context="qemu:allocation-depth")] == [
            (0, K64, 2),
            (K64, 2 * K64, 1),
        ]


# ── facts and doubts ─────────────────────────────────────────────────────────────────────────────────────────────


def test_facts(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT, Hosted(unclean=True, version=3))
    with open_file(str(image.path)) as storage:
        extent = HostedExtent(storage, read_header(storage), kind="SPARSE")
        facts = extent.facts()
        assert (facts["version"], facts["grain"], facts["flags"], facts["unclean"]) == (3, K64, "0x3", True)
        texts = [str(doubt) for doubt in extent.doubts]
    assert "not closed cleanly" in texts[0]
    assert "version 3 without compression" in texts[1]
    assert all(str(image.path) in text for text in texts)
