# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What an image may name: every known attack, at the gate itself and through real files."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import GateError
from vmdkit.gate import Allow, Deny, Gate, SameDir
from vmdkit.storage.file import open_file

if TYPE_CHECKING:
    from pathlib import Path

OUTSIDE = [
    "/etc/passwd",
    "//etc/passwd",
    "../secret",
    "a/../../secret",
    "./disk.vmdk",
    "sub/disk.vmdk",
    "sub/",
    "/dev/zero",
    "/proc/self/mem",
    "/proc/self/fd/0",
    ".",
    "..",
    "C:/disk.vmdk",
    "c:../disk/x",
]
ADDRESSES = [
    "nbd://localhost/x",
    "nbd:localhost:10809",
    "json:{}",
    "fd:3",
    "file:disk.vmdk",
    "file:///etc/passwd",
    "http://host/x",
    "HTTPS://host/x",
    "vsan://5d1b2c57",
    "fat:rw:x",
]
NO_NAMES = ["", "a\0b", "\0", "a\nb", "a\x01b", "a\x1fb", "\t", "x" * 4097, "ä" * 2049]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with an image in it, and a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "disk-flat.vmdk").write_bytes(b"A" * 512)
    return inner


@pytest.mark.parametrize("name", OUTSIDE)
def test_same_directory_refuses_what_is_no_bare_name(home: Path, name: str) -> None:
    with pytest.raises(GateError, match="which lies outside its own directory") as caught:
        SameDir(open_file).open(name, str(home / "disk.vmdk"))
    assert repr(name) in str(caught.value)
    assert caught.value.path == str(home / "disk.vmdk")


@pytest.mark.parametrize("gate", [SameDir(open_file), Allow(open_file, ["/"])], ids=["SameDir", "Allow"])
@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_are_never_followed(gate: Gate, name: str) -> None:
    with pytest.raises(GateError, match="addresses inside an image are not followed"):
        gate.open(name, "/tmp/disk.vmdk")


@pytest.mark.parametrize("gate", [SameDir(open_file), Allow(open_file, ["/"])], ids=["SameDir", "Allow"])
@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused(gate: Gate, name: str) -> None:
    with pytest.raises(GateError, match="which is no file name") as caught:
        gate.open(name, "/tmp/disk.vmdk")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [r"..\secret", r"C:\disk.vmdk", r"\\.\PhysicalDrive0", "C:disk.vmdk"])
def test_names_of_windows_are_only_bare_names_here(home: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        SameDir(open_file).open(name, str(home / "disk.vmdk"))


def test_same_directory_opens_a_neighbour(home: Path) -> None:
    with SameDir(open_file).open("disk-flat.vmdk", str(home / "disk.vmdk")) as device:
        assert device.pread(4, 0) == b"AAAA"
        assert not device.writable
    with SameDir(open_file).open("disk-flat.vmdk", str(home / "disk.vmdk"), writable=True) as device:
        assert device.writable


def test_a_neighbour_of_a_relative_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    gates: list[Gate] = [SameDir(open_file), Allow(open_file, [])]
    for gate in gates:
        with gate.open("disk-flat.vmdk", "disk.vmdk") as device:
            assert device.size == 512


def test_names_of_any_bytes(home: Path) -> None:
    name = os.fsdecode(b"d\xefsk-flat.vmdk")
    (home / name).write_bytes(b"B" * 512)
    with SameDir(open_file).open(name, str(home / "disk.vmdk")) as device:
        assert device.pread(1, 0) == b"B"


def _link(path: Path) -> None:
    path.symlink_to("../secret")


def _link_beside(path: Path) -> None:
    path.symlink_to("disk-flat.vmdk")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [_link, _link_beside, os.mkfifo, os.mkdir, _socket])
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.timeout(5)
def test_same_directory_opens_regular_files_only(home: Path, make: object, writable: bool) -> None:
    assert callable(make)
    make(home / "x.vmdk")
    with pytest.raises((GateError, IsADirectoryError)):
        SameDir(open_file).open("x.vmdk", str(home / "disk.vmdk"), writable=writable)


def test_no_device_in_the_same_directory() -> None:
    with pytest.raises(GateError, match="the image names 'zero': it is no regular file"):
        SameDir(open_file).open("zero", "/dev/disk.vmdk")
    with pytest.raises(GateError, match="symbolic link"):
        SameDir(open_file).open("0", "/proc/self/fd/disk.vmdk")


@pytest.mark.parametrize("name", ["disk-flat.vmdk", "/etc/passwd", "", "nbd://x"])
def test_deny_opens_nothing(home: Path, name: str) -> None:
    for verb in (Deny().open, Deny().resolve):
        with pytest.raises(GateError, match="opening further files is not allowed"):
            verb(name, str(home / "disk.vmdk"))


# ── Allow ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_allow_opens_its_own_directory_and_the_named_ones(home: Path) -> None:
    base = str(home / "disk.vmdk")
    store = home.parent / "store"
    store.mkdir()
    (store / "base.vmdk").write_bytes(b"C")
    gate = Allow(open_file, [str(store)])
    for name in ("disk-flat.vmdk", "./disk-flat.vmdk", "../store/base.vmdk", str(store / "base.vmdk")):
        gate.open(name, base).close()
    for name in ("../secret", str(home.parent / "secret"), "/etc/passwd", "../store/../secret", "../store", "..", "."):
        with pytest.raises(GateError, match="below no allowed directory"):
            gate.open(name, base)


def test_allow_is_not_fooled_by_a_name_that_begins_alike(home: Path) -> None:
    (home.parent / "inner-2").mkdir()
    (home.parent / "inner-2" / "x").write_bytes(b"")
    with pytest.raises(GateError, match="below no allowed directory"):
        Allow(open_file, []).open("../inner-2/x", str(home / "disk.vmdk"))


def test_allow_judges_where_links_lead(home: Path) -> None:
    base = str(home / "disk.vmdk")
    (home / "out").symlink_to("../secret")
    (home / "up").symlink_to("..")
    (home / "in").symlink_to("disk-flat.vmdk")
    gate = Allow(open_file, [])
    for name in ("out", "up/secret"):
        with pytest.raises(GateError, match="below no allowed directory"):
            gate.open(name, base)
    with gate.open("in", base) as device:
        assert device.name == str(home / "disk-flat.vmdk")


def test_allowed_directories_may_be_links(home: Path) -> None:
    (home.parent / "alias").symlink_to("inner")
    gate = Allow(open_file, [str(home.parent / "alias")])
    gate.open(str(home / "disk-flat.vmdk"), str(home.parent / "other.vmdk")).close()


@pytest.mark.timeout(5)
def test_allow_refuses_what_can_block(home: Path) -> None:
    os.mkfifo(home / "pipe")
    for devices in (False, True):
        with pytest.raises(GateError, match="no regular file"):
            Allow(open_file, [], devices=devices).open("pipe", str(home / "disk.vmdk"))
    with pytest.raises(GateError, match="no regular file"):
        Allow(open_file, ["/dev"], devices=True).open("/dev/zero", str(home / "disk.vmdk"))


def test_the_root_allows_everything_below_it() -> None:
    with Allow(open_file, ["/"]).open("/etc/passwd", "/tmp/disk.vmdk") as device:
        assert device.size > 0


def test_names_that_the_file_system_cannot_spell(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="which is no file name"):
        SameDir(open_file).open("\ud800.vmdk", "/tmp/disk.vmdk")
