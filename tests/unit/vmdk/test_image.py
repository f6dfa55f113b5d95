# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptors put together to disks: what each line opens, what is refused, and that nothing stays open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Piece, Stream
from images.damage import DAMAGE, REFUSES
from images.refused import REFUSED
from vmdkit.errors import (
    ChainError,
    CorruptError,
    DescriptorError,
    FormatError,
    GateError,
    UnsupportedError,
    VmdkitError,
)
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.image import FileKind, classify, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Make

LAYOUT = "64k:A 64k:- 64k:b 64k:0"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# ── what a file is ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"KDMV", FileKind.HOSTED),
        (b"kdmv", FileKind.HOSTED),
        (b"COWD" + bytes(100), FileKind.COWD),
        (bytes.fromhex("bebafeca00000000"), FileKind.SESPARSE),
        (bytes.fromhex("bebafeca01000000"), FileKind.UNKNOWN),
        (b"# Disk DescriptorFile\n", FileKind.TEXT),
        (b"#" * 5000 + b"\ncreateType=x\n", FileKind.TEXT),
        (b"#" * 5000 + b"\0\ncreateType=x\n", FileKind.UNKNOWN),
        (b"", FileKind.UNKNOWN),
        (b"KDM", FileKind.UNKNOWN),
        (bytes(8192), FileKind.UNKNOWN),
        (b"QFI\xfb", FileKind.UNKNOWN),
    ],
)
def test_classify(head: bytes, kind: FileKind) -> None:
    assert classify(MemoryDevice(head)) is kind


def test_an_extent_has_no_descriptor(tmp_path: Path) -> None:
    for number, image in enumerate(
        [
            images.split_sparse(tmp_path, "64k:A"),
            images.vmfs_sparse(tmp_path, "64k:A", name="cowd"),
            images.se_sparse(tmp_path, "64k:A", name="se"),
        ]
    ):
        device = MemoryDevice(image.parts[0].path.read_bytes(), name=str(number))
        assert read_descriptor(device) is None


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_name_in_a_monolithic_file_is_ignored(build: Make, tmp_path: Path) -> None:
    for kind in ("hosted", "stream-A", "stream-ESX"):
        image = build(kind, LAYOUT, name=kind)
        image.path.rename(tmp_path / "renamed.vmdk")
        with vmdkit.open(tmp_path / "renamed.vmdk") as disk:
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_a_monolithic_file_may_have_further_extents(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    (tmp_path / "more.vmdk").write_bytes(b"M" * 1024)
    row = image.text.lines[0]
    image.put_text(image.text.but(lines=(row, 'RW 2 FLAT "more.vmdk" 0', "RW 1 ZERO")).render(image.style))
    with vmdkit.open(image.path) as disk:
        assert disk.size == image.size + 1536
        assert disk.pread(1536, image.size) == b"M" * 1024 + bytes(512)


def test_an_extent_is_opened_by_what_it_is_not_by_what_its_line_says(tmp_path: Path) -> None:
    for create_type, kind, knobs in (
        ("seSparse", "SESPARSE", images.Cowd()),
        ("vmfsSparse", "VMFSSPARSE", images.SeSparse()),
        ("custom", "SPARSE", images.Cowd()),
        ("custom", "SESPARSE", images.Hosted()),
        ("custom", "SPARSE", Stream()),
    ):
        where = tmp_path / f"{kind}-{type(knobs).__name__}"
        where.mkdir()
        image = images.assemble(where, LAYOUT, [Piece(kind, knobs=knobs)], create_type)
        with vmdkit.open(image.path) as disk:
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_access_changes_nothing_for_readers_but_noaccess(tmp_path: Path) -> None:
    pieces = [
        Piece("FLAT", 65536, access="RDONLY"),
        Piece("SPARSE", 65536, access="NOACCESS"),
        Piece("SPARSE", access="RDONLY"),
    ]
    image = images.assemble(tmp_path, LAYOUT, pieces)
    image.parts[1].path.unlink()  # nobody looks
    with vmdkit.open(image.path) as disk:
        for offset in (0, 131072, 196608):
            assert disk.pread(65536, offset) == image.model.pread(65536, offset)
        for offset in (65535, 65536, 131071):
            with pytest.raises(VmdkitError, match="marked NOACCESS"):
                disk.pread(2, offset)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_with_the_file_and_a_reason(name: str, tmp_path: Path) -> None:
    image = REFUSED[name](tmp_path)
    before = open_files()
    with pytest.raises((UnsupportedError, FormatError)) as caught:
        vmdkit.open(image.path)
    assert str(tmp_path) in str(caught.value)
    assert len(caught.value.message) > 30
    assert open_files() == before


def test_a_line_of_no_length_opens_nothing(tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, LAYOUT)
    image.poke_text("RW 512", 'RW 0 FLAT "not there" 0\nNOACCESS 0 ZERO\nRW 512')
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize(("more", "size"), [(128, 393216), (-128, 262144)])
def test_the_lines_are_what_the_disk_is(build: Make, more: int, size: int) -> None:
    for kind in ("hosted", "vmfsSparse", "seSparse", "stream-A"):
        image = build(kind, LAYOUT + " 64k:C", name=kind)
        image.poke_text("RW 640 ", f"RW {640 + more} ")
        with vmdkit.open(image.path) as disk:
            assert disk.size == size
            held = min(size, image.size)
            assert disk.pread(held, 0) == image.model.pread(held, 0)
            assert "its header has 327680 bytes, its line in the descriptor" in str(disk.doubts[0])  # type: ignore[attr-defined]
            if size > held:
                with pytest.raises(CorruptError, match="65536 bytes more than its header has"):
                    disk.pread(1, held)
                assert sum(run.length for run in disk.extents()) == size


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_untrusted_opens_single_files_only(build: Make) -> None:
    for kind in ("hosted", "stream-A", "stream-B"):
        with vmdkit.open(build(kind, LAYOUT, name=kind).path, untrusted=True) as disk:
            disk.pread(512, 0)
    for kind in ("flat", "split", "vmfs", "vmfsSparse", "seSparse", "custom", "partitionedDevice"):
        image = build(kind, LAYOUT, name=kind)
        with pytest.raises(UnsupportedError, match="of an untrusted image only monolithicSparse and streamOptimized"):
            vmdkit.open(image.path, untrusted=True)


def test_untrusted_never_leaves_its_file(build: Make, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret!!" * 64)
    image = build("hosted", LAYOUT, name="one")
    for lines in (('RW 1 FLAT "secret" 0',), ('RW 1 SPARSE "secret"', 'RW 1 FLAT "secret" 0')):
        image.put_text(image.text.but(lines=lines).render(image.style))
        with pytest.raises((GateError, UnsupportedError)):
            vmdkit.open(image.path, untrusted=True)
    flat = images.monolithic_flat(tmp_path, LAYOUT, name="two")
    flat.poke_text("monolithicFlat", "monolithicSparse")
    with pytest.raises(GateError, match="not allowed"):
        vmdkit.open(flat.path, untrusted=True)
    base = build("hosted", LAYOUT, name="base")
    child = build("hosted", "256k:-", name="child", parent=base)
    with pytest.raises(UnsupportedError, match="not opened for an untrusted image"):
        vmdkit.open(child.path, untrusted=True)


def test_the_redundant_directory_is_followed_if_asked(build: Make, tmp_path: Path) -> None:
    image = DAMAGE["rgt-lacks-grain"].build(tmp_path)
    with vmdkit.open(image.path) as one, vmdkit.open(image.path, directory="redundant") as other:
        assert one.pread(65536, 65536) == image.model.pread(65536, 65536)
        assert not any(other.pread(65536, 65536))
    with pytest.raises(UnsupportedError, match="no redundant grain directory to follow"):
        vmdkit.open(build("hosted-no-rgd", LAYOUT, name="no-rgd").path, directory="redundant")


# ── nothing stays open ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in DAMAGE if DAMAGE[name].outcome == REFUSES])
def test_refused_images_leave_no_file_open(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    before = open_files()
    with pytest.raises((VmdkitError, OSError)) as caught:
        vmdkit.open(image.path).close()
    assert open_files() == before
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in DAMAGE if DAMAGE[name].outcome != REFUSES])
def test_opened_images_leave_no_file_open(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    before = open_files()
    try:
        vmdkit.open(image.path).close()
    except (VmdkitError, OSError):
        pass
    assert open_files() == before


@pytest.mark.parametrize("kind", [*images.SUBFORMATS, *images.PATCHED])
def test_closing_closes_every_file(kind: str, build: Make) -> None:
    base = build(kind, LAYOUT, name="base")
    links = [base]
    for child in ("hosted", "vmfsSparse", "seSparse"):
        links.append(build(child, "256k:-", name=f"{child}-child", parent=links[-1]))
    before = open_files()
    with vmdkit.open(links[-1].path) as disk:
        assert open_files() >= before + 4
        disk.pread(disk.size, 0)
    assert open_files() == before


def _no_parent(tmp_path: Path) -> Path:
    base = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    one = images.split_sparse(tmp_path, "256k:-", name="one", parent=base)
    base.path.unlink()
    return one.path


def _parent_is_raw(tmp_path: Path) -> Path:
    base = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    one = images.split_sparse(tmp_path, "256k:-", name="one", parent=base)
    base.path.write_bytes(bytes(262144))
    return one.path


def _grandparent_lost(tmp_path: Path) -> Path:
    base = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    one = images.split_sparse(tmp_path, "256k:-", name="one", parent=base)
    two = images.split_sparse(tmp_path, "256k:-", name="two", parent=one)
    base.path.unlink()
    return two.path


def _cid(tmp_path: Path) -> Path:
    base = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    return images.split_sparse(tmp_path, "256k:-", name="one", parent=base, parent_cid=5).path


@pytest.mark.parametrize("make", [_no_parent, _parent_is_raw, _grandparent_lost, _cid])
def test_chains_that_fail_leave_no_file_open(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    before = open_files()
    with pytest.raises((ChainError, FormatError)):
        vmdkit.open(path)
    assert open_files() == before


def test_an_extent_whose_header_holds_nothing_is_closed_too(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, "64k:A 64k:B", split=65536)
    image.poke("1/header.capacity", 0)
    before = open_files()
    with vmdkit.open(image.path) as disk:
        assert disk.pread(65536, 0) == image.model.pread(65536, 0)
        with pytest.raises(CorruptError, match="65536 bytes more than its header has"):
            disk.pread(1, 65536)
    assert open_files() == before


# ── nothing is skipped ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["SPARSE", "VMFSSPARSE", "SESPARSE"])
def test_an_offset_into_a_sparse_file_has_no_meaning(kind: str, tmp_path: Path) -> None:
    image = images.assemble(tmp_path, LAYOUT, [Piece(kind, tail=" 0")])
    with vmdkit.open(image.path) as disk:
        assert disk.pread(65536, 0) == image.model.pread(65536, 0)
    image.poke_text('vmdk" 0', 'vmdk" 128')
    with pytest.raises(DescriptorError, match=f"an offset into a {kind} extent has no meaning") as caught:
        vmdkit.open(image.path)
    assert caught.value.line > 0


def test_a_flat_file_may_serve_two_lines_a_sparse_file_may_not(tmp_path: Path) -> None:
    flat = images.assemble(tmp_path, LAYOUT, [Piece("FLAT", 131072), Piece("FLAT", file="e2.raw")])
    flat.poke_text('"e2.raw" 0', '"disk-e001.vmdk" 0')
    with vmdkit.open(flat.path) as disk:
        assert disk.pread(131072, 131072) == disk.pread(131072, 0) == flat.model.pread(131072, 0)
    for name in ("disk2-e001.vmdk", "link.vmdk"):
        sparse = images.assemble(
            tmp_path / name, LAYOUT, [Piece("SPARSE", 131072), Piece("SPARSE", file="e2.raw")], name="disk2"
        )
        (tmp_path / name / "link.vmdk").hardlink_to(tmp_path / name / "disk2-e001.vmdk")
        sparse.poke_text("e2.raw", name)
        with pytest.raises(DescriptorError, match="two lines name the same sparse file") as caught:
            vmdkit.open(sparse.path)
        assert caught.value.line > 0


def test_a_parent_without_content_id_is_still_a_parent(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, LAYOUT, name="base")
    child = images.monolithic_sparse(tmp_path, "256k:-", name="child", parent=base)
    child.poke_text(f"parentCID={child.text.parent_cid:08x}\n", "")
    with pytest.raises(ChainError, match="no parentCID"):
        vmdkit.open(child.path)
    with vmdkit.open(child.path, ignore_cid=True) as disk:
        assert disk.pread(65536, 0) == base.model.pread(65536, 0)


def test_a_hint_without_a_parent_is_doubted(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT, extra=('parentFileNameHint="base.vmdk"',))
    with vmdkit.open(image.path) as disk:
        assert "parentFileNameHint 'base.vmdk' is not followed" in str(disk.doubts[0])  # type: ignore[attr-defined]


def test_extents_behind_the_end_of_the_text_are_not_skipped(tmp_path: Path) -> None:
    flat = images.monolithic_flat(tmp_path, LAYOUT)
    flat.poke_text("RW 512", 'RW 256 FLAT "disk-flat.vmdk" 0\n\0RW 256')
    with pytest.raises(DescriptorError, match="extents stand behind a NUL"):
        vmdkit.open(flat.path)


@pytest.mark.parametrize("kind", ["flat", "hosted"])
@pytest.mark.parametrize("rest", [b"", b"\n", b'"\n', b'7"\n', bytes(400)])
def test_what_qemu_leaves_behind_is_no_doubt(rest: bytes, kind: str, build: Make) -> None:
    """Its content ID has no leading zeros; of a longer text the last bytes remain behind the NUL."""
    image = build(kind, LAYOUT)
    image.put_text(image.text.but(ddb=(("toolsVersion", "2147483647"),)).render(image.style) + b"\0" + rest)
    with vmdkit.open(image.path) as disk:
        assert disk.doubts == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["flat", "hosted"])
def test_text_behind_its_end_is_doubted(kind: str, build: Make) -> None:
    image = build(kind, LAYOUT)
    image.put_text(image.text.render(image.style) + b"\0\0what an editor left")
    with vmdkit.open(image.path) as disk:
        assert disk.size == image.size
        assert "19 bytes follow the end of the descriptor" in str(disk.doubts[0])  # type: ignore[attr-defined]


def test_text_that_fills_its_area_is_doubted(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    text = image.text.render(image.style)
    image.put_text(text + b"#" * (10239 - len(text)) + b"\n")
    with vmdkit.open(image.path) as disk:
        assert "fills its area to the last byte" in str(disk.doubts[0])  # type: ignore[attr-defined]


def test_a_descriptor_file_is_small(tmp_path: Path) -> None:
    """Or it is a raw disk in whose first sector the guest wrote text."""
    image = images.monolithic_flat(tmp_path, LAYOUT)
    os.truncate(image.path, 1 << 20)
    vmdkit.open(image.path).close()
    os.truncate(image.path, (1 << 20) + 1)
    with pytest.raises(DescriptorError, match="a descriptor has at most 1048576 bytes"):
        vmdkit.open(image.path)
