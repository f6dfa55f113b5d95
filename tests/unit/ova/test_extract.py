# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Taking files out: only what is named, checked, whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import images
from ovas import Ovf, Part, manifest, ova, pack
from vmdkit.errors import FormatError, GateError, UsageError
from vmdkit.ova.extract import Choice, extract, selected, sizes
from vmdkit.ova.package import Package

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

LAYOUT = "64k:A 64k:0 1M:- 64k:b"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return images.stream_optimized(tmp_path, LAYOUT, name="one")


@pytest.fixture
def box(tmp_path: Path, image: Image) -> Path:
    data = image.path.read_bytes()
    return ova(tmp_path / "box.ova", Ovf([Part("one.vmdk", data, image.size), Part("two.vmdk", data, image.size)]))


def take(box: Path, directory: Path, choice: Choice | None = None) -> list[str]:
    with Package(str(box)) as package:
        steps: list[int] = []
        names = selected(package, choice or Choice())
        written = extract(package, str(directory), choice or Choice(), progress=steps.append)
        assert sum(steps) == sizes(package, names, raw=choice is not None and choice.raw)
    return [os.path.basename(path) for path in written]


def test_everything(box: Path, tmp_path: Path, image: Image) -> None:
    out = tmp_path / "out"
    assert take(box, out) == ["box.ovf", "box.mf", "one.vmdk", "two.vmdk"]
    assert sorted(os.listdir(out)) == ["box.mf", "box.ovf", "one.vmdk", "two.vmdk"]
    assert (out / "two.vmdk").read_bytes() == image.path.read_bytes()


@pytest.mark.parametrize("wanted", ["2", "two.vmdk", "vmdisk2"])
def test_one_disk(box: Path, tmp_path: Path, wanted: str) -> None:
    assert take(box, tmp_path / "out", Choice(disk=wanted)) == ["two.vmdk"]


def test_raw(box: Path, tmp_path: Path, image: Image) -> None:
    assert take(box, tmp_path / "out", Choice(raw=True)) == ["one.raw", "two.raw"]
    assert (tmp_path / "out" / "one.raw").read_bytes() == image.model.pread(image.size, 0)
    assert (tmp_path / "out" / "one.raw").stat().st_blocks * 512 < image.size


@pytest.mark.parametrize("overwrite", [False, True])
def test_raw_disks_whose_names_differ_in_their_ends_only(tmp_path: Path, image: Image, *, overwrite: bool) -> None:
    other = images.stream_optimized(tmp_path / "other", "128k:B 64k:0", name="one")
    parts = [
        Part("one.vmdk", image.path.read_bytes(), image.size),
        Part("one.img", other.path.read_bytes(), other.size),
    ]
    twins = ova(tmp_path / "twins.ova", Ovf(parts))
    out = tmp_path / "out"
    assert take(twins, out, Choice(raw=True, overwrite=overwrite)) == ["one.vmdk.raw", "one.img.raw"]
    assert (out / "one.vmdk.raw").read_bytes() == image.model.pread(image.size, 0)
    assert (out / "one.img.raw").read_bytes() == other.model.pread(other.size, 0)
    assert len(os.listdir(out)) == 2


def test_out_of_a_directory(box: Path, tmp_path: Path, image: Image) -> None:
    take(box, tmp_path / "out")
    assert take(tmp_path / "out", tmp_path / "again", Choice(raw=True, disk="1")) == ["one.raw"]
    assert (tmp_path / "again" / "one.raw").read_bytes() == image.model.pread(image.size, 0)


@pytest.mark.parametrize("wanted", ["3", "0", "x", "999999999999999999999"])
def test_no_such_disk(box: Path, tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match=r"there is no disk .* there are 1 one\.vmdk, 2 two\.vmdk"):
        take(box, tmp_path / "out", Choice(disk=wanted))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(box: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "two.vmdk").write_bytes(b"mine")
    with pytest.raises(UsageError, match="it exists; -f overwrites it"):
        take(box, out)
    assert os.listdir(out) == ["two.vmdk"]
    assert (out / "two.vmdk").read_bytes() == b"mine"
    take(box, out, Choice(overwrite=True))
    assert (out / "two.vmdk").stat().st_size > 4


@pytest.mark.parametrize("raw", [False, True])
def test_a_wrong_digest_leaves_nothing(tmp_path: Path, image: Image, *, raw: bool) -> None:
    data = image.path.read_bytes()
    text = Ovf([Part("one.vmdk", data, image.size), Part("two.vmdk", data, image.size)]).text()
    listed = manifest({"box.ovf": text, "one.vmdk": data, "two.vmdk": data + b"x"})
    files = [("box.ovf", text), ("box.mf", listed), ("one.vmdk", data), ("two.vmdk", data)]
    box = pack(tmp_path / "box.ova", files)
    with pytest.raises(FormatError, match=r"the SHA256 of 'two\.vmdk' is .* damaged or changed"):
        take(box, tmp_path / "out", Choice(raw=raw))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError):
        take(box, tmp_path / "out", Choice(raw=raw))
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["../up.vmdk", "/tmp/up.vmdk", "sub/up.vmdk", "up\\x.vmdk"])
def test_names_that_lead_elsewhere(tmp_path: Path, image: Image, name: str) -> None:
    box = ova(tmp_path / "box.ova", Ovf([Part(name, image.path.read_bytes(), image.size)]), with_manifest=False)
    for choice in (Choice(), Choice(raw=True), Choice(disk="1")):
        with pytest.raises(GateError, match="is not written"):
            take(box, tmp_path / "out", choice)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("up*"))


def test_members_that_nothing_names_stay(tmp_path: Path, image: Image) -> None:
    data = image.path.read_bytes()
    text = Ovf([Part("one.vmdk", data, image.size)]).text()
    box = pack(tmp_path / "box.ova", [("box.ovf", text), ("one.vmdk", data), ("evil", b"x")])
    assert take(box, tmp_path / "out") == ["box.ovf", "one.vmdk"]


def test_a_missing_file(tmp_path: Path) -> None:
    box = pack(tmp_path / "box.ova", [("box.ovf", Ovf([Part("one.vmdk", b"", 1)]).text())])
    with pytest.raises(FormatError, match=r"'one\.vmdk' is not in it, though the descriptor names it"):
        take(box, tmp_path / "out")


def test_the_directory_is_no_directory(box: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(FileExistsError):
        take(box, tmp_path / "out")
