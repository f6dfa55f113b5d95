# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The one door: what may be given, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from vmdkit import opener
from vmdkit.errors import FormatError, GateError, UnsupportedError, UsageError
from vmdkit.options import OpenOptions
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from vmdkit.device import Device


@pytest.mark.parametrize("address", ["HTTP://h/x", "file:///disk.vmdk", "vpx://h/x", "x+y-z.2:///disk.vmdk"])
def test_addresses_of_no_known_scheme(address: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no disks are opened by \S+:// addresses; "):
        vmdkit.open(address)


def test_a_scheme_is_opened_by_what_the_table_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, OpenOptions]] = []

    def open_made(location: str, options: OpenOptions) -> Device:
        asked.append((location, options))
        return MemoryDevice(b"bytes")

    module = ModuleType("made_for_this_test")
    module.open_made = open_made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(opener.SCHEMES, "made+up", "made_for_this_test:open_made [extra]")
    with vmdkit.open("Made+Up://host/x", writable=True, allow_paths=["/a"]) as disk:
        assert disk.pread(5, 0) == b"bytes"
    assert asked == [("Made+Up://host/x", OpenOptions(writable=True, allow_paths=("/a",)))]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opener.SCHEMES, "far", "vmdkit_is_without_this.disk:open_far [far]")
    with pytest.raises(UnsupportedError, match=r"vmdkit_is_without_this .*pip install 'vmdkit\[far\]'") as caught:
        vmdkit.open("far://x")
    assert caught.value.path == "far://x"


@pytest.mark.parametrize("scheme", opener.SCHEMES)
def test_the_table_names_what_exists(scheme: str) -> None:
    module, _, function = opener.SCHEMES[scheme].partition(" ")[0].partition(":")
    assert callable(getattr(import_module(module), function))


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
