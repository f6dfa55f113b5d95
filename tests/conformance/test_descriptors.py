# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every way a descriptor is written, and every way it names files and parents, opens the same disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
from images import HINTS, NAMES, STYLES, Piece, Style
from vmdkit import opener

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

LAYOUT = "4k:A 4k:-"


def assert_reads(image: Image) -> None:
    with opener.open(image.path) as device:
        assert device.pread(device.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("style", STYLES)
def test_separate_text(style: str, tmp_path: Path) -> None:
    assert_reads(images.monolithic_flat(tmp_path, LAYOUT, style=STYLES[style]))


@pytest.mark.parametrize("style", STYLES)
def test_embedded_text(style: str, tmp_path: Path) -> None:
    assert_reads(images.monolithic_sparse(tmp_path, LAYOUT, style=STYLES[style]))
    assert_reads(images.stream_optimized(tmp_path, LAYOUT, style=STYLES[style], name="stream"))


@pytest.mark.parametrize("encoding", NAMES)
def test_names_in_their_encoding(encoding: str, tmp_path: Path) -> None:
    name = NAMES[encoding]
    assert_reads(images.split_flat(tmp_path, LAYOUT, 4096, name=name, style=Style(encoding=encoding)))


def test_utf8_names_where_no_encoding_is_stated(tmp_path: Path) -> None:
    assert_reads(images.monolithic_flat(tmp_path, LAYOUT, name=NAMES["UTF-8"], style=STYLES["no-encoding"]))


@pytest.mark.parametrize(
    "name", ["with blanks  twice", "par(enthe)sis", "trailing ", "=", "#", "RW 8 FLAT", "it's", "a.b"]
)
def test_odd_names(name: str, tmp_path: Path) -> None:
    assert_reads(images.monolithic_flat(tmp_path, LAYOUT, name=name))


def test_a_renamed_single_file_still_opens(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    image.path = image.path.rename(tmp_path / "renamed.vmdk")
    assert_reads(image)


def test_unknown_keys_and_tracking_are_no_obstacle(tmp_path: Path) -> None:
    image = images.monolithic_flat(
        tmp_path,
        LAYOUT,
        extra=('futureKey="x"', "bareKey=7"),
        ctk="disk-ctk.vmdk",
        version="3",
        ddb=(*images.DDB, ("future.key", "a = b"), ("comment", "")),
    )
    assert_reads(image)


def test_a_descriptor_without_ddb(tmp_path: Path) -> None:
    assert_reads(images.monolithic_flat(tmp_path, LAYOUT, ddb=()))


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("kind", ["hosted", "vmfsSparse", "seSparse"])
def test_parents_are_found(kind: str, hint: str, tmp_path: Path) -> None:
    assert_reads(images.chain(tmp_path, [("flat", "64k:A 64k:B"), (kind, "64k:- 64k:C")], hint=hint))


def test_a_parent_of_another_directory_is_found_where_allowed(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path / "base", "64k:A 64k:B", name="base")
    image = images.monolithic_sparse(tmp_path / "top", "64k:- 64k:C", name="top", parent=base)
    with opener.open(image.path, allow_paths=[str(tmp_path / "base")]) as device:
        assert device.pread(device.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("access", ["RW", "RDONLY"])
@pytest.mark.parametrize("kind", ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"])
def test_access_is_no_obstacle_to_reading(kind: str, access: str, tmp_path: Path) -> None:
    pieces = [Piece(kind, 64 << 10, access), Piece("ZERO", 512), Piece(kind, 512, access), Piece("FLAT")]
    assert_reads(images.assemble(tmp_path, "64k:A 512:B 512:C 4k:D", pieces))


@pytest.mark.parametrize(
    "create_type", ["monolithicFlat", "twoGbMaxExtentFlat", "2GbMaxExtentFlat", "vmfs", "unheardOf"]
)
def test_extents_count_not_the_create_type(create_type: str, tmp_path: Path) -> None:
    assert_reads(images.assemble(tmp_path, LAYOUT, [Piece("FLAT", 4096), Piece("FLAT")], create_type))


def test_an_embedded_text_may_name_further_extents(tmp_path: Path) -> None:
    image = images.monolithic_and_more(tmp_path, "128k:A 64k:B 64k:C", 128 << 10)
    assert_reads(image)
