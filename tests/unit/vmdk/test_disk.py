# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Extents side by side over parents: the read loop, extents, locations, depths, and what each peer gets wrong."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Flat, Hosted, Piece, SeSparse
from model import Model
from vmdkit.device import DEPTH, HOLE_ZERO, Extent, Kind
from vmdkit.errors import CorruptError, VmdkitError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Make

K4 = 4096
K64 = 64 << 10
LAYOUT = "64k:A 64k:- 64k:b 64k:0"


# ── four descriptors that no peer reads right (QEMU, dissect, libvmdk: each shifts, shortens or shows other bytes) ─


def _line(what: str, **facts: int | str) -> Piece:
    return Piece(what, K4, **facts)  # type: ignore[arg-type]


BEHIND = Flat(before=K4)
PEERS_FAIL = {
    "FLAT, ZERO, FLAT at 8": [_line("FLAT"), _line("ZERO"), Piece("FLAT", K4, knobs=BEHIND)],
    "FLAT, FLAT at 8": [_line("FLAT"), Piece("FLAT", K4, knobs=BEHIND)],
    "FLAT, RDONLY FLAT at 8": [_line("FLAT"), Piece("FLAT", K4, "RDONLY", knobs=BEHIND)],
    "FLAT, NOACCESS, FLAT at 8": [_line("FLAT"), _line("FLAT", access="NOACCESS"), Piece("FLAT", K4, knobs=BEHIND)],
}


@pytest.mark.parametrize("name", PEERS_FAIL)
def test_what_peers_read_wrong(name: str, tmp_path: Path) -> None:
    pieces = PEERS_FAIL[name]
    image = images.assemble(tmp_path, " ".join("4k:ABC"[:3] + letter for letter in "ABC"[: len(pieces)]), pieces)
    with vmdkit.open(image.path) as disk:
        assert disk.size == K4 * len(pieces)
        for number, piece in enumerate(pieces):
            if piece.access == "NOACCESS":
                with pytest.raises(VmdkitError, match="marked NOACCESS in the descriptor"):
                    disk.pread(K4, number * K4)
            else:
                wanted = bytes(K4) if piece.kind == "ZERO" else image.model.pread(K4, number * K4)
                assert disk.pread(K4, number * K4) == wanted
                assert any(wanted) == (piece.kind != "ZERO")


# ── the read loop ────────────────────────────────────────────────────────────────────────────────────────────────


def test_reads_at_every_edge_of_extents_and_grains(tmp_path: Path) -> None:
    pieces = [
        Piece("FLAT", K64, knobs=Flat(before=512, after=512)),
        Piece("SPARSE", 3 * 512),
        Piece("ZERO", 512),
        Piece("SPARSE", 2 * K4 + 512, knobs=Hosted(grain=K4, order="reversed", zero_grains=True)),
        Piece("VMFSSPARSE", K64 - 512),
        Piece("SESPARSE", knobs=SeSparse(order="shuffled")),
    ]
    image = images.assemble(tmp_path, "60k:A 10k:b 3k:- 1k:0 60k:C 60k:- 30k:d", pieces)
    whole = image.model.pread(image.size, 0)
    edges = {0, image.size}
    at = 0
    for piece in pieces:
        edges |= {at, at + K4, at + 512}
        at += piece.length
    with vmdkit.open(image.path) as disk:
        assert disk.size == image.size
        assert disk.pread(image.size, 0) == whole
        for edge in sorted(edges):
            for start, end in ((edge - 5, edge), (edge, edge + 5), (edge - 5, edge + 5), (edge - 600, edge + 70_000)):
                start, end = max(start, 0), min(end, image.size)
                if start < end:
                    assert disk.pread(end - start, start) == whole[start:end]


def test_a_buffer_is_filled_whatever_it_held(build: Make) -> None:
    """Zero runs have to be written into the buffer, not skipped."""
    for kind in ("hosted", "hosted-zeros", "flat", "stream-A", "vmfsSparse", "seSparse", "custom"):
        image = build(kind, LAYOUT, name=kind)
        with vmdkit.open(image.path) as disk:
            buf = bytearray(b"\xee" * disk.size)
            disk.pread_into(buf, 0)
            assert buf == image.model.pread(image.size, 0)


def test_zero_runs_longer_than_any_buffer_of_zeros(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "5M:- 64k:A")
    with vmdkit.open(image.path) as disk:
        buf = bytearray(b"\xee" * ((5 << 20) + 100))
        disk.pread_into(buf, 0)
        assert buf == image.model.pread(len(buf), 0)


def test_many_threads_over_a_chain(tmp_path: Path) -> None:
    image = images.chain(
        tmp_path,
        [
            ("split", "1M:A 1M:- 1M:b 1M:C"),
            ("vmfsSparse-4k", "512k:D 1M:- 1M:0 512k:- 1M:e"),
            ("seSparse-odd", "128k:- 64k:F 128k:0 3M:- 704k:g"),
            ("hosted-zeros", "64k:- 64k:0 64k:H 3M:- 832k:-"),
        ],
    )
    wanted = image.model.pread(image.size, 0)
    wrong = []
    with vmdkit.open(image.path) as disk:

        def read(seed: int) -> None:
            for step in range(200):
                count = 1 + step * 97 % 9000
                offset = (step * 7919 + seed * 104729) * 61 % (image.size - count)
                if disk.pread(count, offset) != wanted[offset : offset + count]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ── extents, locations, depths ───────────────────────────────────────────────────────────────────────────────────


def test_extents_of_a_chain_and_their_depths(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:A 64k:- 64k:B 64k:-", name="base")
    middle = images.vmfs_sparse(tmp_path, Model("64k:- 64k:C 64k:- 64k:-", base.model), name="middle", parent=base)
    top = images.monolithic_sparse(
        tmp_path, Model("64k:- 64k:- 64k:0 64k:-", middle.model), Hosted(zero_grains=True), name="top", parent=middle
    )
    with vmdkit.open(top.path) as disk:
        assert list(disk.extents()) == [
            Extent(0, 2 * K64, 0),
            Extent(2 * K64, 2 * K64, HOLE_ZERO),
        ]
        assert list(disk.extents(context=DEPTH)) == [
            Extent(0, K64, 3),
            Extent(K64, K64, 2),
            Extent(2 * K64, K64, 1),
            Extent(3 * K64, K64, 3),
        ]
        places = list(disk.locate())
        assert [(place.offset, place.kind, place.depth) for place in places] == [
            (0, Kind.DATA, 2),
            (K64, Kind.DATA, 1),
            (2 * K64, Kind.ZERO, 0),
            (3 * K64, Kind.HOLE, 2),
        ]
        for place in places:
            if place.storage is not None:
                assert place.storage.pread(place.length, place.at) == disk.pread(place.length, place.offset)


def test_what_no_link_holds_is_at_no_depth(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted", "128k:-"), ("hosted", "64k:A 64k:-")])
    with vmdkit.open(image.path) as disk:
        assert [run[2] for run in disk.extents(context=DEPTH)] == [1, 0]
        assert [place.kind for place in disk.locate()] == [Kind.DATA, Kind.HOLE]


@pytest.mark.parametrize("kind", [*images.SUBFORMATS, *images.PATCHED])
def test_locations_hold_what_reading_gives(kind: str, build: Make) -> None:
    image = build(kind, "64k:A 100k:- 28k:b 512:0 64k:C 100k:0 15k:-")
    with vmdkit.open(image.path) as disk:
        assert disk.size == image.size
        end = 0
        for place in disk.locate():
            assert place.offset == end
            end += place.length
            data = disk.pread(place.length, place.offset)
            if place.kind is Kind.DATA:
                assert place.storage is not None
                assert place.storage.pread(place.length, place.at) == data
            elif place.kind in (Kind.ZERO, Kind.HOLE):
                assert not any(data)
        assert end == disk.size
        for run in disk.extents():
            if run.flags & 2:
                assert not any(disk.pread(run.length, run.offset))


def test_parts_that_cannot_be_read_are_data_of_unknown_place(tmp_path: Path) -> None:
    image = images.assemble(
        tmp_path, LAYOUT, [Piece("FLAT", K64), Piece("ZERO", K64, access="NOACCESS"), Piece("FLAT")]
    )
    os.truncate(image.parts[1].path, K64)
    with vmdkit.open(image.path) as disk:
        assert [place.kind for place in disk.locate()] == [Kind.DATA, Kind.UNKNOWN, Kind.DATA, Kind.UNKNOWN]
        assert [run.flags for run in disk.extents()] == [0]


# ── flat files that are too short ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("before", [0, 512])
@pytest.mark.parametrize("held", [0, 1, 511, 512, K64, 4 * K64 - 1])
def test_what_a_flat_file_lacks_cannot_be_read(before: int, held: int, tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, LAYOUT, Flat(before=before))
    os.truncate(image.parts[0].path, before + held)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(held, 0) == image.model.pread(held, 0)
        for offset in (held, max(held - 1, 0), image.size - 2):
            with pytest.raises(CorruptError, match="the file ends before this part of the disk") as caught:
                disk.pread(2 if offset < image.size - 1 else 1, offset)
            assert caught.value.path == str(image.parts[0].path)
        assert f"the file ends {image.size - held} bytes early" in disk.doubts[0].text  # type: ignore[attr-defined]


def test_a_flat_extent_that_begins_behind_its_file(tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, LAYOUT)
    image.poke_text('flat.vmdk" 0', f'flat.vmdk" {1 << 40}')
    with vmdkit.open(image.path) as disk, pytest.raises(CorruptError):
        disk.pread(1, 0)


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_facts_and_files(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("flat", LAYOUT), ("split", "128k:- 128k:A")], ctk="x-ctk.vmdk")
    with vmdkit.open(image.path) as disk:
        facts = disk.facts()  # type: ignore[attr-defined]
        assert facts["subformat"] == "twoGbMaxExtentSparse"
        assert facts["size"] == 4 * K64
        assert facts["allocated"] == 2 * K64
        assert facts["parent"] == str(image.parent.path if image.parent else None)
        assert facts["parent_hint"] == "disk.vmdk"
        assert facts["cid"] == f"{image.text.cid:08x}"
        assert facts["adapter"] == "lsilogic"
        assert facts["hardware_version"] == "14"
        assert facts["change_tracking"] == "x-ctk.vmdk"
        assert facts["doubts"] == []
        assert [extent["type"] for extent in facts["extents"]] == ["SPARSE"]
        assert disk.files == [str(path) for path in image.files]  # type: ignore[attr-defined]


def test_reading_after_the_end(build: Make) -> None:
    image = build("custom", LAYOUT)
    disk = vmdkit.open(image.path)
    runs = disk.extents()
    disk.close()
    with pytest.raises(vmdkit.UsageError, match="closed"):
        disk.pread(1, 0)
    with pytest.raises((vmdkit.UsageError, OSError)):
        list(runs)
