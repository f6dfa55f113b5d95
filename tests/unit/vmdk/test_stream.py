# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""streamOptimized: footers, grains, the cache, and salvage of what a transfer left."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import STREAMS, Stream
from images.stream import FOOTER, marker
from layout import fill
from vmdkit.errors import CorruptError, FormatError
from vmdkit.storage.file import open_file
from vmdkit.vmdk.hosted import read_header
from vmdkit.vmdk.packed import PackedGrains
from vmdkit.vmdk.stream import StreamExtent

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

K64 = 64 << 10
LAYOUT = "64k:A 64k:b 64k:- 64k:C 64k:0 32M:- 64k:d 64k:E 1k:F"
GRAINS = (0, 1, 3, 517, 518, 519)


def open_extent(image: Image, *, salvage: bool = False) -> StreamExtent:
    storage = open_file(str(image.path))
    return StreamExtent(storage, read_header(storage), kind="SPARSE", salvage=salvage)


# ── sound streams ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", STREAMS)
def test_each_layout(name: str, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, STREAMS[name])
    with vmdkit.open(image.path) as disk:
        assert disk.size == image.size
        for grain in (*GRAINS, 2, 4, 516):
            for offset, count in ((0, K64), (0, 1), (K64 - 1, 1), (511, 2), (K64 - 512, 1024)):
                at = grain * K64 + offset
                count = min(count, image.size - at)
                if count > 0:
                    assert disk.pread(count, at) == image.model.pread(count, at)
        assert disk.pread(5 * K64, 0) == image.model.pread(5 * K64, 0)
        assert disk.doubts == []  # type: ignore[attr-defined]


def test_a_grain_that_is_packed_short_ends_in_zeros(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "64k:A 1k:b", Stream(short_last=True))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(K64 + 1024, 0) == image.model.pread(K64 + 1024, 0)
        assert disk.pread(1023, K64 + 1) == image.model.pread(1023, K64 + 1)


def test_a_buffer_that_held_something_else_is_filled_to_its_end(tmp_path: Path) -> None:
    import zlib

    image = images.stream_optimized(
        tmp_path, "128k:A", Stream(packed={0: zlib.compress(b"short"), 1: zlib.compress(b"")})
    )
    with vmdkit.open(image.path) as disk:
        for count in (K64, 100):  # around the cache, and through it
            buf = bytearray(b"\xff" * count)
            disk.pread_into(buf, 0)
            assert buf == b"short" + bytes(count - 5)
            disk.pread_into(buf, K64)
            assert buf == bytes(count)


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = images.stream_optimized(tmp_path, "5M:A", Stream(grain=1 << 20))
    extent = open_extent(image)
    inflated: list[int] = []
    real = PackedGrains._inflate

    def noted(self: PackedGrains, raw: memoryview, at: int, address: int, start: int) -> bytearray:
        inflated.append(start >> 20)
        return real(self, raw, at, address, start)

    monkeypatch.setattr(PackedGrains, "_inflate", noted)
    view = memoryview(bytearray(512))
    for start in (0, 1, 2, 3, 4, 4, 3, 1, 0, 1, 2):  # it holds four
        extent.inflate_into(view, start << 20)
        assert view == image.model.pread(512, start << 20)
    assert inflated == [0, 1, 2, 3, 4, 0, 2]
    inflated.clear()
    whole = memoryview(bytearray(1 << 20))
    for _ in range(2):
        extent.inflate_into(whole, 2 << 20)
    assert inflated == []  # a whole grain is used where it is kept
    for _ in range(2):
        extent.inflate_into(whole, 4 << 20)
    assert inflated == [4, 4]  # but it is not kept
    extent.close()


def test_many_threads_read_one_stream(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "8M:A", Stream(level=1))
    wanted = image.model.pread(image.size, 0)
    wrong = []
    with vmdkit.open(image.path) as disk:

        def read(seed: int) -> None:
            for step in range(300):
                offset = (step * 7919 + seed * 104729) * 512 % (image.size - 3000)
                if disk.pread(3000, offset) != wanted[offset : offset + 3000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_grain_that_says_it_belongs_elsewhere(name: str, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, STREAMS[name])
    image.poke("grain[1].lba", 0)
    with vmdkit.open(image.path) as disk:
        with pytest.raises(
            CorruptError, match="the marker says the grain belongs at 0x0, the table says 0x10000"
        ) as caught:
            disk.pread(1, K64)
        assert caught.value.offset == image.fields["grain[1].lba"].offset
        assert disk.pread(K64, 0) == image.model.pread(K64, 0)


@pytest.mark.parametrize("size", [0, 1, 2 * K64 + 513, 0xFFFFFFFF])
def test_a_grain_of_a_length_that_cannot_be(size: int, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    image.poke("grain[1].size", size)
    with vmdkit.open(image.path) as disk:
        with pytest.raises(CorruptError, match="compressed grain: ") as caught:
            disk.pread(1, K64)
        assert caught.value.offset == image.fields["grain[1].lba"].offset
        assert disk.pread(K64, 3 * K64) == image.model.pread(K64, 3 * K64)


# ── footers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _doubts(image: Image) -> str:
    with vmdkit.open(image.path) as disk:
        assert disk.pread(5 * K64, 0) == image.model.pread(5 * K64, 0)
        return str([str(doubt) for doubt in disk.doubts])  # type: ignore[attr-defined]


@pytest.mark.parametrize("padding", [0, 1, 511, 512, 4096, 60 << 10])
def test_a_footer_before_zeros(padding: int, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    os.truncate(image.path, image.path.stat().st_size + padding)
    assert ("something follows it" in _doubts(image)) == (padding > 0)


def test_a_footer_without_end_of_stream(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, Stream(end="no-eos"))
    assert "the footer is not the last sector but one" in _doubts(image)


def test_a_footer_is_not_believed_when_more_than_zeros_follow(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    with image.path.open("ab") as file:
        file.write(bytes(1000) + b"x")
    with pytest.raises(FormatError, match="the stream has no footer"):
        vmdkit.open(image.path)


def test_a_guest_cannot_plant_a_footer(tmp_path: Path) -> None:
    """A stored (incompressible) grain holds the guest's own sectors; in a cut stream one may look like a footer."""
    image = images.stream_optimized(tmp_path, "64k:A 64k:B 64k:C", Stream(level=0))
    with image.path.open("r+b") as file:
        head = bytearray(file.read(512))
        head[56:64] = (1).to_bytes(8, "little")  # its directory: what the guest likes
        file.seek(image.fields["grain[1].data"].offset - 12 + 120 * 512)
        file.write(marker(FOOTER, 1) + bytes(head))
        file.truncate(image.fields["grain[2].data"].offset + 2000)
    with pytest.raises(FormatError, match="the stream has no footer"):
        vmdkit.open(image.path)


@pytest.mark.parametrize("field", ["capacity", "grainSize", "version", "numGTEsPerGT", "flags"])
def test_a_footer_that_is_not_the_headers_is_refused(field: str, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    image.poke(f"footer.{field}", {"flags": 0x30003, "grainSize": 8}.get(field, 1))
    with pytest.raises(CorruptError, match=" in the footer and "):
        vmdkit.open(image.path)


def test_the_header_is_right_where_it_has_a_directory(tmp_path: Path) -> None:
    """Layout B has no footer, whatever the last grain looks like."""
    image = images.stream_optimized(tmp_path, LAYOUT, Stream(footer=False, eos=False))
    with image.path.open("ab") as file:
        file.write(marker(FOOTER, 1) + image.path.read_bytes()[:512] + bytes(512))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(5 * K64, 0) == image.model.pread(5 * K64, 0)


# ── salvage ──────────────────────────────────────────────────────────────────────────────────────────────────────

ODD = {
    "progress": replace(STREAMS["A"], progress=1, progress_value=7),
    "unknown": replace(STREAMS["A"], unknown=True),
    "tight": replace(STREAMS["A"], overhead=None),
    "stored": replace(STREAMS["A"], level=0),
}
WALKED = {name: knobs for name, knobs in {**STREAMS, **ODD}.items() if knobs.markers}


@pytest.mark.parametrize("name", WALKED)
def test_salvage_of_a_whole_stream_finds_everything(name: str, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, WALKED[name])
    with vmdkit.open(image.path, salvage=True) as disk:
        for grain in (*GRAINS, 2, 4, 516):
            count = min(K64, image.size - grain * K64)
            assert disk.pread(count, grain * K64) == image.model.pread(count, grain * K64)
        assert list(disk.extents(5 * K64)) == list(vmdkit.open(image.path).extents(5 * K64))
        (doubt,) = disk.doubts  # type: ignore[attr-defined]
        assert "salvaged 6 grains" in doubt.text


@pytest.mark.parametrize("name", ["A", "ESX", "OPEN", "QEMU", "progress", "unknown", "stored"])
def test_salvage_of_a_cut_stream_gives_what_is_there_and_nothing_else(name: str, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path / "whole", LAYOUT, WALKED[name])
    ends = {grain: sum(image.fields[f"grain[{grain}].data"][1:3]) for grain in GRAINS}
    whole = image.path.stat().st_size
    cuts = {whole - 1, whole - 512, whole - 1024}
    for end in ends.values():
        cuts |= {end - 1, end, end + 1, -(-end // 512) * 512 + 1, end - 300}
    for cut in sorted(cuts):
        path = tmp_path / "cut.vmdk"
        path.write_bytes(image.path.read_bytes()[:cut])
        with vmdkit.open(path, salvage=True) as disk:
            for grain, end in ends.items():
                count = min(K64, image.size - grain * K64)
                wanted = image.model.pread(count, grain * K64) if end <= cut else bytes(count)
                assert disk.pread(count, grain * K64) == wanted, (cut, grain)
            assert "salvaged" in str(disk.doubts[-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [512, 1024, 5 * 512])
@pytest.mark.parametrize("lost", ["grain[1]", "grain[3]"])
def test_salvage_steps_over_sectors_that_were_lost(lost: str, first: int, tmp_path: Path) -> None:
    """A disk that could not be read whole leaves zeros; two empty sectors are not yet the end of the stream."""
    image = images.stream_optimized(tmp_path, LAYOUT, Stream(level=0))
    grain = int(lost[6:-1])
    begin = image.fields[f"{lost}.data"].offset - 12
    end = -(-sum(image.fields[f"{lost}.data"][1:3]) // 512) * 512
    with image.path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(end - begin))
    with vmdkit.open(image.path, salvage=True) as disk:
        for number in GRAINS:
            count = min(K64, image.size - number * K64)
            wanted = bytes(count) if number == grain else image.model.pread(count, number * K64)
            assert disk.pread(count, number * K64) == wanted
        assert f"{end - begin} bytes of zeros were stepped over" in str(disk.doubts[-1])  # type: ignore[attr-defined]
    with image.path.open("r+b") as file:  # and the padding before the first grain may be long
        rest = image.path.read_bytes()[128 * 512 :]
        file.seek(128 * 512)
        file.write(bytes(first) + rest)
    with vmdkit.open(image.path, salvage=True) as disk:
        assert disk.pread(K64, 0) == image.model.pread(K64, 0)


def test_salvage_of_a_file_with_a_hole_behind_it(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    os.truncate(image.path, 1 << 40)
    with vmdkit.open(image.path, salvage=True) as disk:
        assert disk.pread(K64, 0) == image.model.pread(K64, 0)
        assert "the end-of-stream marker was reached" in str(disk.doubts[-1])  # type: ignore[attr-defined]


def test_salvage_needs_markers(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, STREAMS["BARE"])
    with pytest.raises(FormatError, match="no grain markers"):
        vmdkit.open(image.path, salvage=True)


def test_salvage_stops_at_a_marker_that_cannot_be(tmp_path: Path) -> None:
    for field, value, reason in (
        ("lba", 3, "a grain claims to belong at 0x600"),
        ("lba", 1 << 50, "where none can be"),
        ("size", 200_000, "a marker speaks of 200000 bytes, so it is none"),
        ("size", 0, "speaks of"),
    ):
        image = images.stream_optimized(tmp_path / f"{field}{value}", LAYOUT)
        image.poke(f"grain[3].{field}", value)
        with vmdkit.open(image.path, salvage=True) as disk:
            assert disk.pread(K64, K64) == image.model.pread(K64, K64)
            assert not any(disk.pread(K64, 3 * K64))
            assert reason in str(disk.doubts[-1])  # type: ignore[attr-defined]


def test_salvage_uses_the_first_of_two_grains_for_one_place(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "64k:A 64k:B 64k:C")
    image.poke("grain[1].lba", 0)
    with vmdkit.open(image.path, salvage=True) as disk:
        assert disk.pread(K64, 0) == fill("A", K64, 0)
        assert not any(disk.pread(K64, K64))


@pytest.mark.parametrize("capacity", [1 << 40, 1 << 50, (1 << 64) - 1])
def test_salvage_allocates_nothing_for_a_capacity_that_cannot_be(capacity: int, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    image.poke("header.capacity", capacity)
    with pytest.raises(CorruptError, match="grain tables; 4194304 are the most"):
        vmdkit.open(image.path, salvage=True)


def test_salvage_of_a_header_alone(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT)
    os.truncate(image.path, 128 * 512)
    with vmdkit.open(image.path, salvage=True) as disk:
        assert not any(disk.pread(5 * K64, 0))
        assert "salvaged 0 grains; the file ends here" in str(disk.doubts[-1])  # type: ignore[attr-defined]


# ── the redundant directory ──────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_may_have_a_redundant_directory_too(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, LAYOUT, STREAMS["QEMU"])
    image.poke("gt[0]", 0, 1)
    with vmdkit.open(image.path) as disk:
        assert not any(disk.pread(K64, K64))
    with vmdkit.open(image.path, directory="redundant") as disk:
        assert disk.pread(K64, K64) == image.model.pread(K64, K64)


def test_no_redundant_directory_is_said(tmp_path: Path) -> None:
    for name in ("A", "B"):
        image = images.stream_optimized(tmp_path, LAYOUT, STREAMS[name], name=name)
        with pytest.raises(vmdkit.UnsupportedError, match="no redundant grain directory to follow"):
            vmdkit.open(image.path, directory="redundant")
