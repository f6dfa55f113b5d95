# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds writing: flags, content ID, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from model import Model
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from pathlib import Path

UNCLEAN = HostedHeader.offset_of("unclean_shutdown")


def cid(path: Path | str) -> str:
    with vmdkit.open(path) as disk:
        return str(disk.facts()["cid"])  # type: ignore[attr-defined]


def test_opening_for_writing_changes_nothing_by_itself(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "1M:A")
    before = image.path.read_bytes()
    vmdkit.open(image.path, writable=True).close()
    assert image.path.read_bytes() == before


def test_the_flag_is_set_while_writing_and_cleared_at_the_end(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "1M:A")
    with vmdkit.open(image.path, writable=True) as disk:
        disk.pwrite(b"x", 0)
        assert image.path.read_bytes()[UNCLEAN] == 1
    assert image.path.read_bytes()[UNCLEAN] == 0


def test_the_content_id_changes_once_for_an_opening(tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, "1M:A")
    first = cid(image.path)
    with vmdkit.open(image.path, writable=True) as disk:
        disk.pwrite(b"x", 0)
        second = cid(image.path)
        disk.pwrite(b"y", 1)
        disk.flush()
        assert cid(image.path) == second != first


def test_a_child_notices_that_its_parent_was_written(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, "1M:A", name="base")
    with vmdkit.open(base.path, writable=True) as disk:
        child = images.monolithic_sparse(tmp_path, Model(base.model.size, base.model), name="child", parent=base)
        disk.pwrite(b"x", 0)
    with pytest.raises(vmdkit.ChainError, match="has changed since"):
        vmdkit.open(child.path)


@pytest.mark.parametrize("build", [images.stream_optimized, images.se_sparse])
def test_what_is_not_written_in_place_is_refused(build: images.table.Build, tmp_path: Path) -> None:
    image = build(tmp_path, "1M:A")
    with pytest.raises(vmdkit.UnsupportedError):
        vmdkit.open(image.path, writable=True)
    with vmdkit.open(image.path) as disk:
        assert not disk.writable


def test_zero_and_rdonly_extents_refuse_to_be_written(tmp_path: Path) -> None:
    pieces = [images.Piece("FLAT", 4096), images.Piece("ZERO", 4096), images.Piece("FLAT", access="RDONLY")]
    image = images.assemble(tmp_path, "4k:A 4k:- 4k:C", pieces)
    with vmdkit.open(image.path, writable=True) as disk:
        disk.pwrite(b"x" * 4096, 0)
        for offset in (4096, 8192):
            with pytest.raises(vmdkit.ReadOnlyError):
                disk.pwrite(b"x", offset)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(4096, 0) == b"x" * 4096
        assert disk.pread(8192, 4096) == image.model.pread(8192, 4096)


def test_copies_that_differ_are_not_written_over(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:B 64k:-")
    image.poke_entry(0, 0, both=False)
    with pytest.raises(vmdkit.CorruptError, match="differ"):
        vmdkit.open(image.path, writable=True)


def test_after_a_crash_copies_are_made_equal_without_loss(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:B 64k:-")
    image.poke_entry(0, 0, both=False)
    image.poke("header.uncleanShutdown", 1)
    with vmdkit.open(image.path, writable=True) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(disk.size, 0)
        disk.pwrite(b"x", 128 << 10)
    for directory in ("primary", "redundant"):
        with vmdkit.open(image.path, directory=directory) as disk:
            assert disk.pread(128 << 10, 0) == image.model.pread(128 << 10, 0)
