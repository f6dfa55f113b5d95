# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks inside an OVA: how they are named, what they may name, and what the verbs make of them."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING

import pytest

import images
import ovas
import vmdkit
from images.base import Draft
from vmdkit.checker import check
from vmdkit.errors import FormatError, GateError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

LAYOUT = "64k:A 64k:0 1M:- 64k:b"


@pytest.fixture
def stream(tmp_path: Path) -> Image:
    return images.stream_optimized(tmp_path, LAYOUT, name="one")


@pytest.fixture
def box(tmp_path: Path, stream: Image) -> Path:
    """Make an OVA of two disks: one.vmdk, a stream, and two.vmdk, the same as a sparse disk."""
    sparse = images.monolithic_sparse(tmp_path, LAYOUT, name="two")
    parts = [ovas.Part(image.path.name, image.path.read_bytes(), image.size) for image in (stream, sparse)]
    return ovas.ova(tmp_path / "box.ova", ovas.Ovf(parts))


@pytest.fixture
def single(tmp_path: Path, stream: Image) -> Path:
    return ovas.ova(tmp_path / "Single.OVA", ovas.Ovf([ovas.Part("one.vmdk", stream.path.read_bytes(), stream.size)]))


@pytest.mark.parametrize("name", ["one.vmdk", "two.vmdk", "vmdisk1", "vmdisk2"])
@pytest.mark.parametrize("form", ["{}#{}", "ova://{}#{}"])
def test_by_file_name_or_disk_id(box: Path, stream: Image, name: str, form: str) -> None:
    with vmdkit.open(form.format(box, name)) as disk:
        assert disk.pread(disk.size, 0) == stream.model.pread(stream.size, 0)


def test_the_only_disk(single: Path, stream: Image) -> None:
    with vmdkit.open(single) as disk:
        assert disk.pread(disk.size, 0) == stream.model.pread(stream.size, 0)
        assert disk.name.endswith("Single.OVA#one.vmdk")


def test_which_disk_has_to_be_said(box: Path) -> None:
    with pytest.raises(UsageError, match=r"2 disks in it; name one: \S+box.ova#one.vmdk, \S+box.ova#two.vmdk"):
        vmdkit.open(box)
    with pytest.raises(UsageError, match=r"no member is called 'three\.vmdk'"):
        vmdkit.open(f"{box}#three.vmdk")


def test_raw(box: Path, stream: Image) -> None:
    with vmdkit.open(f"{box}#one.vmdk", raw=True) as window:
        assert window.pread(window.size, 0) == stream.path.read_bytes()
    with vmdkit.open(box, raw=True) as whole:
        assert whole.size == box.stat().st_size


def test_a_file_may_have_such_a_name(tmp_path: Path, stream: Image) -> None:
    path = tmp_path / "x.ova#disk.vmdk"
    path.write_bytes(stream.path.read_bytes())
    with vmdkit.open(path) as disk:
        assert disk.size == stream.size


def test_nothing_is_written(box: Path) -> None:
    with pytest.raises(UnsupportedError, match="what is in an OVA is not changed"):
        vmdkit.open(f"{box}#two.vmdk", writable=True)


def test_what_is_no_ova(tmp_path: Path, stream: Image) -> None:
    path = tmp_path / "x.ova"
    path.write_bytes(stream.path.read_bytes())
    with pytest.raises(FormatError, match="this is no OVA: no tar header"):
        vmdkit.open(path)
    with pytest.raises(FileNotFoundError):
        vmdkit.open(tmp_path / "absent.ova#x")
    ovas.pack(path, [("disk.vmdk", stream.path.read_bytes())])
    with pytest.raises(FormatError, match=r"no \.ovf in it"):
        vmdkit.open(path)
    with vmdkit.open(f"{path}#disk.vmdk") as disk:
        assert disk.size == stream.size
    ovas.pack(path, [("a.ovf", b"<a/>"), ("b.ovf", b"<b/>")])
    with pytest.raises(FormatError, match=r"2 descriptors in it: a\.ovf, b\.ovf"):
        vmdkit.open(path)
    ovas.ova(path, ovas.Ovf())
    with pytest.raises(UsageError, match="there is no disk in it"):
        vmdkit.open(path)


def test_a_packed_member(tmp_path: Path, stream: Image) -> None:
    data = gzip.compress(stream.path.read_bytes())
    path = ovas.ova(tmp_path / "x.ova", ovas.Ovf([ovas.Part("d.vmdk.gz", data, stream.size, compression="gzip")]))
    with pytest.raises(FormatError, match="packed with gzip, and cannot be read in place"):
        vmdkit.open(path)


def test_a_member_that_is_no_disk(single: Path) -> None:
    with pytest.raises(FormatError, match="this member is no VMDK with a descriptor; say --raw"):
        vmdkit.open(f"{single}#box.ovf")


def member_names(tmp_path: Path, line: str, *, more: bool = True) -> Path:
    """Make an OVA whose disk is a flat descriptor with one extent line."""
    draft = Draft(tmp_path, "4k:A", {"name": "flat"})
    text = draft.text("monolithicFlat", (line,), None).render(draft.style)
    members = [("flat.vmdk", text), ("data.bin", draft.model.pread(4096, 0))]
    return ovas.pack(tmp_path / "x.ova", members if more else members[:1])


def test_a_descriptor_may_name_other_members(tmp_path: Path) -> None:
    path = member_names(tmp_path, 'RW 8 FLAT "data.bin" 0')
    with vmdkit.open(f"{path}#flat.vmdk") as disk:
        assert disk.pread(1, 0) == b"A"
    assert not [link for link in os.listdir("/proc/self/fd") if "x.ova" in _target(link)]
    with pytest.raises(UnsupportedError, match="more than one file; of an untrusted image"):
        vmdkit.open(f"{path}#flat.vmdk", untrusted=True)


def _target(link: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{link}")
    except OSError:
        return ""


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "beside", "box.ova", "nbd://h/x"])
def test_a_descriptor_names_nothing_else(tmp_path: Path, name: str) -> None:
    for place in (tmp_path / "beside", tmp_path.parent / "secret"):
        place.write_bytes(bytes(4096))
    path = member_names(tmp_path, f'RW 8 FLAT "{name}" 0')
    with pytest.raises(GateError, match="which is no member of the archive"):
        vmdkit.open(f"{path}#flat.vmdk", allow_paths=[str(tmp_path), "/etc"])
    assert any("no member of the archive" in finding.text for finding in check(f"{path}#flat.vmdk").findings)


def test_a_member_of_two_is_refused(tmp_path: Path, stream: Image) -> None:
    data = stream.path.read_bytes()
    path = ovas.pack(tmp_path / "x.ova", [("d.vmdk", data), ("d.vmdk", data)])
    with pytest.raises(FormatError, match=r"2 members are called 'd\.vmdk'"):
        vmdkit.open(f"{path}#d.vmdk")


def test_check(box: Path) -> None:
    report = check(f"{box}#one.vmdk")
    assert (report.exit_code, report.files) == (0, [f"{box}#one.vmdk"])


def test_a_cut_off_archive(box: Path) -> None:
    with box.open("r+b") as file:
        file.truncate(box.stat().st_size // 2)
    with pytest.raises(FormatError, match="the archive was cut off"):
        vmdkit.open(f"{box}#two.vmdk")
    assert check(f"{box}#two.vmdk").exit_code == 2
