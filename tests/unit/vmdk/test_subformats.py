# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables: it opens and reads, or is refused with its own sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Piece
from vmdkit.errors import UnsupportedError
from vmdkit.vmdk.subformats import EXTENT_TYPES, SUBFORMATS

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = "64k:A 64k:- 64k:b"
PUBLISHED = (
    "monolithicSparse monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat 2GbMaxExtentSparse 2GbMaxExtentFlat "
    "streamOptimized fullDevice partitionedDevice custom vmfs vmfsThin vmfsThick vmfsPreallocated "
    "vmfsEagerZeroedThick vmfsSparse seSparse vmfsSeSparse vmfsRDM vmfsRDMP vmfsRawDeviceMap "
    "vmfsPassthroughRawDeviceMap vmfsRaw vsanSparse"
)
TYPES = {"FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "VMFSRDM", "VMFSRAW", "SESPARSE", "VSANSPARSE"}


def test_every_published_name_has_a_row() -> None:
    assert {name.lower() for name in PUBLISHED.split()} == set(SUBFORMATS)
    assert set(EXTENT_TYPES) >= TYPES


@pytest.mark.parametrize("key", SUBFORMATS)
def test_each_create_type(key: str, tmp_path: Path) -> None:
    row = SUBFORMATS[key]
    assert key == row.name.lower()
    assert row.doc
    image = images.assemble(tmp_path, LAYOUT, [Piece("FLAT", 65536), Piece("SPARSE")], row.name)
    if row.refusal:
        with pytest.raises(UnsupportedError) as caught:
            vmdkit.open(image.path)
        assert str(caught.value) == f"{image.path}: {row.name}: {row.refusal}"
        return
    for name in (row.name, row.name.upper(), key):
        image.put_text(image.text.but(create_type=name).render(image.style))
        with vmdkit.open(image.path) as disk:
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)
            assert disk.doubts == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["holographic", "", "vmfs "])
def test_an_unknown_create_type_is_read_by_its_extents_and_doubted(name: str, tmp_path: Path) -> None:
    image = images.assemble(tmp_path, LAYOUT, [Piece("FLAT")], name)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)
        assert f"createType {name!r} is unknown" in disk.doubts[0].text  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", EXTENT_TYPES)
def test_each_extent_type(key: str, tmp_path: Path) -> None:
    row = EXTENT_TYPES[key]
    assert key == row.name
    assert bool(row.driver) != bool(row.refusal)
    image = images.assemble(tmp_path, LAYOUT, [Piece(key)])
    if row.refusal:
        with pytest.raises(UnsupportedError) as caught:
            vmdkit.open(image.path)
        assert str(caught.value) == f"{image.path}: {key}: {row.refusal}"
        return
    for word in (key, key.lower()):
        image.put_text(image.text.render(image.style).replace(f" {key} ".encode(), f" {word} ".encode()))
        with vmdkit.open(image.path) as disk:
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("word", ["HOLOGRAM", "FLATS", "VMFSTHIN", "0", "SPARSE2"])
def test_an_unknown_extent_type_is_never_skipped(word: str, tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, LAYOUT)
    image.poke_text(" FLAT ", f" {word} ")
    with pytest.raises(UnsupportedError, match=f"extent type '{word}' is unknown \\(descriptor line 10\\)"):
        vmdkit.open(image.path)


def test_vsan_objects_are_no_files(tmp_path: Path) -> None:
    image = images.vmfs(tmp_path, LAYOUT)
    image.poke_text("disk-flat.vmdk", "vsan://5d1b2c57-0d1e-4a7c-8f0a-246e962f4850")
    with pytest.raises(UnsupportedError, match="vSAN objects, which no file holds"):
        vmdkit.open(image.path)
