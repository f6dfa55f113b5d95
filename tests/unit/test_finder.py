# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""From a path to its descriptor: in the file, beside it, or nowhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from vmdkit import finder
from vmdkit.errors import FormatError, GateError
from vmdkit.gate import Allow, Deny, SameDir
from vmdkit.storage.file import FileDevice

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = "64k:A 64k:- 64k:b"
PROBE = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 8 FLAT "other" 0\n'


@pytest.mark.parametrize("kind", ["split", "split-flat", "flat", "vmfs", "vmfsSparse", "seSparse", "partitionedDevice"])
def test_an_extent_file_leads_to_its_disk(kind: str, tmp_path: Path) -> None:
    image = {**images.SUBFORMATS, **images.PATCHED}[kind].build(tmp_path, LAYOUT)
    for part in image.parts:
        if part.path.suffix != ".vmdk":
            continue  # a name that says nothing
        with vmdkit.open(part.path) as disk:
            assert disk.name == str(image.path)
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_the_descriptor_may_have_another_name(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, LAYOUT)
    (tmp_path / "a.vmdk").write_bytes(b"# Disk DescriptorFile\nRW 1 ZERO\n")
    (tmp_path / "b.VMDK").write_bytes(b"no descriptor\n")
    (tmp_path / "c.vmdk").mkdir()
    os.mkfifo(tmp_path / "d.vmdk")
    (tmp_path / "e.vmdk").symlink_to("nothing")
    (tmp_path / "f.vmdk").write_bytes(b"# Disk DescriptorFile\nRW 16\n")
    image.path.rename(tmp_path / "renamed.vmdk")
    before = len(os.listdir("/proc/self/fd"))
    with vmdkit.open(image.parts[0].path) as disk:
        assert disk.name == str(tmp_path / "renamed.vmdk")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = images.split_sparse(tmp_path, LAYOUT)
    monkeypatch.chdir(tmp_path)
    for path in ("disk.vmdk", "disk-s001.vmdk", "./disk-s001.vmdk"):
        with vmdkit.open(path) as disk:
            assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("kind", ["split", "vmfsSparse", "seSparse"])
def test_an_extent_file_alone_is_said_to_be_one(kind: str, tmp_path: Path) -> None:
    image = images.SUBFORMATS[kind].build(tmp_path, LAYOUT)
    image.path.unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        FormatError, match="this is an extent of a VMDK, and no descriptor beside it names it"
    ) as caught:
        vmdkit.open(image.parts[0].path)
    assert caught.value.path == str(image.parts[0].path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("data", [b"", b"raw", bytes(4096), b"QFI\xfb" + bytes(512)])
def test_what_is_no_vmdk(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="this is no VMDK") as caught:
        vmdkit.open(path)
    assert ("it is empty" in str(caught.value)) == (data == b"")
    with vmdkit.open(path, raw=True) as device:
        assert device.pread(device.size, 0) == data


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.vmdk", "none-flat.vmdk", "none-s001.vmdk"):
        with pytest.raises(FileNotFoundError, match=name):
            vmdkit.open(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        vmdkit.open(tmp_path / "no-directory" / "none-flat.vmdk")


@pytest.mark.parametrize("name", ["x-flat.vmdk", "x-f001.vmdk", "x-000001-flat.vmdk", "X-FLAT.VMDK", "x-pt.vmdk"])
@pytest.mark.parametrize("text", [True, False])
def test_a_flat_extent_is_never_probed(name: str, text: bool, tmp_path: Path) -> None:
    """Its first bytes are the guest's, who would name a file beside it."""
    (tmp_path / "other").write_bytes(b"secret!!" * 512)
    path = tmp_path / name
    if text:
        path.write_bytes(PROBE)
    else:
        image = images.monolithic_sparse(tmp_path, LAYOUT, name="evil")
        image.put_text(PROBE)
        image.path.rename(path)
    for untrusted in (False, True):
        with pytest.raises(FormatError, match="named like a file of raw bytes"):
            vmdkit.open(path, untrusted=untrusted)
    (tmp_path / "evil.vmdk").write_bytes(PROBE.replace(b'"other"', f'"{name}"'.encode()))
    with vmdkit.open(path) as disk:  # a descriptor names it, so its bytes are bytes
        assert disk.pread(4, 0) == path.read_bytes()[:4]


def test_untrusted_looks_at_no_neighbour(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, LAYOUT)
    with pytest.raises(FormatError, match="no descriptor beside it"):
        vmdkit.open(image.parts[0].path, untrusted=True)


def test_a_neighbour_that_cannot_be_read_is_passed_over_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.split_sparse(tmp_path, LAYOUT)
    (tmp_path / "bad.vmdk").write_bytes(b"x")
    image.path.rename(tmp_path / "zz.vmdk")
    real = FileDevice._pread_into

    def broken(self: FileDevice, view: memoryview, offset: int) -> None:
        if self.name.endswith("bad.vmdk"):
            raise OSError(5, "Input/output error", self.name)
        real(self, view, offset)

    monkeypatch.setattr(FileDevice, "_pread_into", broken)
    before = len(os.listdir("/proc/self/fd"))
    vmdkit.open(image.parts[0].path).close()
    (tmp_path / "zz.vmdk").unlink()
    with pytest.raises(FormatError, match="no descriptor beside it"):
        vmdkit.open(image.parts[0].path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_not_more_neighbours_than_a_datastore_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "_MOST_NEIGHBOURS", 5)
    for number in range(50):
        (tmp_path / f"{number}.vmdk").write_bytes(b"")
    assert len(list(finder._neighbours(str(tmp_path / "x-s001.vmdk")))) <= 6


def test_gates(tmp_path: Path) -> None:
    assert isinstance(finder.gate_for(untrusted=True, allow_paths=["/"]), Deny)
    assert isinstance(finder.gate_for(untrusted=False, allow_paths=[]), SameDir)
    assert isinstance(finder.gate_for(untrusted=False, allow_paths=[str(tmp_path)]), Allow)


def test_a_file_that_leads_elsewhere_may_be_named_by_the_user(tmp_path: Path) -> None:
    """Links are refused inside images only."""
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    (tmp_path / "link.vmdk").symlink_to(image.path)
    vmdkit.open(tmp_path / "link.vmdk").close()
    with pytest.raises(GateError, match="no regular file"):
        vmdkit.open(tmp_path)
