# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The one door: what may be given, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import images
import vmdkit
from vmdkit.errors import FormatError, GateError, UnsupportedError, UsageError


@pytest.mark.parametrize("address", ["nbd://localhost/x", "HTTP://h/x", "nbd+unix:///x?socket=y", "file:///disk.vmdk"])
def test_addresses(address: str) -> None:
    with pytest.raises(UnsupportedError, match="addresses; give a path"):
        vmdkit.open(address)


@pytest.mark.parametrize("name", ["a:b.vmdk", "c:disk.vmdk", "x:/y.vmdk"])
def test_colons_in_paths(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    images.monolithic_sparse(tmp_path, "64k:A", name="disk").path.rename(path)
    with vmdkit.open(path) as disk:
        assert disk.size == 65536


def test_copies_of_the_tables() -> None:
    with pytest.raises(UsageError, match="directory is 'first'; 'primary' or 'redundant' are the copies there are"):
        vmdkit.open("disk.vmdk", directory="first")


def test_path_likes(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A")
    for path in (image.path, str(image.path)):
        with vmdkit.open(path) as disk:
            assert disk.name == str(image.path)


def test_raw_is_never_guessed(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A")
    with vmdkit.open(image.path, raw=True) as device:
        assert device.pread(4, 0) == b"KDMV"
        assert not device.writable
    with vmdkit.open(image.path, raw=True, writable=True) as device:
        assert device.writable


def test_allowed_directories(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path / "store", "64k:A", name="base")
    child = images.monolithic_sparse(tmp_path / "here", "64k:-", name="child", parent=base, hint="absolute")
    with pytest.raises(GateError, match="allow that directory if you trust the image"):
        vmdkit.open(child.path)
    with vmdkit.open(child.path, allow_paths=[str(tmp_path / "store")]) as disk:
        assert disk.pread(65536, 0) == base.model.pread(65536, 0)
    with pytest.raises(GateError, match="below no allowed directory"):
        vmdkit.open(child.path, allow_paths=[str(tmp_path / "stor")])


def test_errors_say_which_file(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted", "64k:A"), ("vmfsSparse", "64k:-"), ("seSparse", "64k:-")])
    middle = next(iter(image.layers())).parent
    assert middle is not None
    middle.poke("header.version", 9)
    with pytest.raises(UnsupportedError) as caught:
        vmdkit.open(image.path)
    assert caught.value.path == str(middle.parts[0].path)
    image.poke("header.magic", b"XXXXXXXX")
    with pytest.raises(FormatError) as other:
        vmdkit.open(image.path)
    assert other.value.path == str(image.parts[0].path)


def test_importing_is_cheap() -> None:
    """Nobody who asks for a name waits for numpy."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, vmdkit; print('numpy' in sys.modules, 'deflate' in sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(vmdkit.__file__).parents[1],
    )
    assert done.stdout.split()[0] == "False"
