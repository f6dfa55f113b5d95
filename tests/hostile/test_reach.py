# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a hostile image may reach: itself and what lies beside it. A canary stands everywhere else.

Rows A1 to A5 of the attack table: extent names, parent hints, symbolic links, FIFOs, devices, guest data that look
like an image. Each is tried through every door: an extent line of each kind, an embedded descriptor, a parent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from vmdkit.errors import FormatError, GateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = b"the canary sings"
SIZE = 4096


@dataclass
class House:
    """``inner`` holds the image; what lies around it must never be seen."""

    inner: Path
    secret: Path
    disk: Path


@pytest.fixture
def house(tmp_path: Path) -> House:
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret", inner / "sub" / "secret", tmp_path / "inner-2", tmp_path / "secret.vmdk"):
        place.write_bytes(CANARY * (SIZE // len(CANARY)))
    (inner / "link").symlink_to("../secret")
    (inner / "far").symlink_to(tmp_path / "secret")
    (inner / "dir").symlink_to("..")
    (inner / "self").symlink_to("self")
    (inner / "fd").symlink_to("/proc/self/fd/0")
    os.mkfifo(inner / "pipe")
    sparse = images.monolithic_sparse(tmp_path, "4k:S", name="sparse")  # an image outside: no less forbidden
    with sparse.path.open("r+b") as file:
        file.seek(sparse.fields["grain[0]"].offset)
        file.write(CANARY * (SIZE // len(CANARY)))
    return House(inner, tmp_path / "secret", inner / "disk.vmdk")


def names(house: House) -> list[str]:
    secret, outside = str(house.secret), house.secret.parent
    return [
        secret,
        f"/{secret}",
        f"{house.inner}/../secret",
        "../secret",
        "./../secret",
        "sub/../../secret",
        "sub/secret",
        "..//secret",
        "../inner/../secret",
        "../inner-2",
        "..\\secret",
        "sub\\secret",
        "link",
        "far",
        "dir/secret",
        "self",
        "fd",
        "pipe",
        "sub",
        ".",
        "..",
        "",
        " ",
        "link ",
        "%2e%2e/secret",
        "..%2fsecret",
        "~/secret",
        "$HOME/secret",
        "*",
        "/dev/zero",
        "/dev/stdin",
        "/dev/fd/0",
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/self/cwd/secret",
        "/proc/self/root" + secret,
        "file://" + secret,
        "file:" + secret,
        "nbd://localhost/x",
        "nbd+unix:///x?socket=/tmp/x",
        "http://localhost:1/x",
        'json:{"driver":"file","filename":"' + secret + '"}'.replace('"', "'"),
        "fat:rw:" + str(outside),
        "raw:../secret",
        "C:\\secret",
        "C:/secret",
        "\\\\localhost\\c$\\secret",
        "\\\\.\\PhysicalDrive0",
        "../sparse.vmdk",
        str(outside / "sparse.vmdk"),
        "../secret.vmdk",
        "x" * 300,
        "x/" * 2000 + "x",
    ]


def text(create_type: str, *rows: str, parent: str = "ffffffff") -> bytes:
    head = ["# Disk DescriptorFile", "version=1", 'encoding="UTF-8"', "CID=00000001", f"parentCID={parent}"]
    return "\n".join([*head, f'createType="{create_type}"', *rows, ""]).encode("utf-8", "surrogateescape")


def by_line(kind: str) -> Callable[[House, str], None]:
    def write(house: House, name: str) -> None:
        house.disk.write_bytes(text("custom", f'RW 8 {kind} "{name}"' + (" 0" if kind == "FLAT" else "")))

    return write


def by_embedded_text(house: House, name: str) -> None:
    """A sparse file whose header has no capacity, and whose text names another file."""
    image = images.monolithic_sparse(house.inner, "4k:-", name=house.disk.stem)
    image.put_text(text("monolithicFlat", f'RW 8 FLAT "{name}" 0'))
    image.poke("header.capacity", 0)


def by_second_line(house: House, name: str) -> None:
    image = images.monolithic_sparse(house.inner, "4k:-", name=house.disk.stem)
    image.put_text(text("monolithicSparse", f'RW 8 SPARSE "{house.disk.name}"', f'RW 8 FLAT "{name}" 0'))


def by_parent(house: House, name: str) -> None:
    image = images.monolithic_sparse(house.inner, "4k:-", name=house.disk.stem)
    row = f'RW 8 SPARSE "{house.disk.name}"'
    image.put_text(text("monolithicSparse", f'parentFileNameHint="{name}"', row, parent="00000001"))


DOORS: dict[str, Callable[[House, str], None]] = {
    **{kind: by_line(kind) for kind in ("FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE")},
    "embedded": by_embedded_text,
    "second line": by_second_line,
    "parent": by_parent,
}
OPTIONS: list[dict[str, bool]] = [
    {},
    {"untrusted": True},
    {"salvage": True, "ignore_cid": True, "ignore_journal": True},
    {"single_link": True},
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_outside_is_ever_shown(door: str, house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in names(house):
        house.disk.unlink(missing_ok=True)
        try:
            DOORS[door](house, name)
        except ValueError:
            continue  # longer than the embedded text may be
        for options in OPTIONS:
            try:
                with vmdkit.open(house.disk, **options) as disk:  # type: ignore[arg-type]
                    assert door == "parent"
                    assert options.get("single_link")
                    data = disk.pread(disk.size, 0)
                    assert CANARY not in data
                    assert not any(data)
            except (vmdkit.VmdkitError, OSError) as error:
                assert str(house.disk) in str(error) or str(house.inner) in str(error)  # noqa: PT017
                assert CANARY.decode() not in str(error)  # noqa: PT017
            assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("door", DOORS)
def test_the_same_doors_open_for_what_lies_beside(door: str, house: House) -> None:
    """The test above proves nothing if nothing could be opened at all."""
    kind = {"VMFSSPARSE": "vmfsSparse", "SESPARSE": "seSparse", "SPARSE": "split", "parent": "hosted"}.get(door, "flat")
    image = images.SUBFORMATS[kind].build(house.inner, "4k:A", name="beside", cid=1)
    target = image.path if door == "parent" else image.parts[0].path
    DOORS[door](house, target.name)
    with vmdkit.open(house.disk) as disk:
        wanted = image.model.pread(SIZE, 0)
        assert disk.pread(SIZE, disk.size - SIZE) == wanted


def test_allowed_directories_and_no_others(house: House) -> None:
    outside = house.secret.parent
    by_line("FLAT")(house, str(house.secret))
    with pytest.raises(GateError):
        vmdkit.open(house.disk, allow_paths=[str(house.inner / "sub")])
    with vmdkit.open(house.disk, allow_paths=[str(outside)]) as disk:
        assert disk.pread(SIZE, 0).startswith(CANARY)
    by_line("FLAT")(house, "pipe")
    with pytest.raises(GateError, match="no regular file"):
        vmdkit.open(house.disk, allow_paths=[str(outside)])
    by_line("FLAT")(house, "/dev/zero")
    with pytest.raises(GateError, match="no regular file"):
        vmdkit.open(house.disk, allow_paths=["/dev"])
    for name in ("/proc/self/root/etc/passwd", "self"):
        by_line("FLAT")(house, name)
        with pytest.raises((GateError, OSError)):
            vmdkit.open(house.disk, allow_paths=[str(outside), "/proc"])


def test_a_parent_of_a_parent_is_judged_from_its_own_directory(house: House) -> None:
    store = house.inner / "store"
    base = images.monolithic_sparse(store, "4k:A", name="base")
    one = images.monolithic_sparse(store, "4k:-", name="one", parent=base)
    top = images.monolithic_sparse(house.inner, "4k:-", name="top", parent=one, hint="store/one.vmdk")
    with pytest.raises(GateError):
        vmdkit.open(top.path)
    with vmdkit.open(top.path, allow_paths=[str(store)]) as disk:
        assert disk.pread(SIZE, 0) == base.model.pread(SIZE, 0)
    one.poke_text('"base.vmdk"', '"../disk.vmdk"')
    by_line("FLAT")(house, "../secret")
    with pytest.raises((GateError, vmdkit.ChainError)):
        vmdkit.open(top.path, allow_paths=[str(store)])


# ── guest data that look like an image ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("create_type", ["monolithicFlat", "vmfs", "custom", "fullDevice"])
def test_flat_data_are_never_taken_for_an_image(create_type: str, house: House) -> None:
    """The guest writes a descriptor, or a whole sparse image, into its first sectors."""
    evil = images.monolithic_sparse(house.inner, "4k:E", name="evil")
    for guest in (text("custom", 'RW 8 FLAT "sub/secret" 0'), evil.path.read_bytes()):
        data = house.inner / "disk-flat.vmdk"
        data.write_bytes(guest.ljust(1 << 20, b"\0"))
        for kind in ("FLAT", "VMFS"):
            row = f'RW 2048 {kind} "{data.name}"' + (" 0" if kind == "FLAT" else "")
            house.disk.write_bytes(text(create_type, row))
            for path in (house.disk, data):
                with vmdkit.open(path) as disk:
                    assert disk.size == 1 << 20
                    assert disk.pread(512, 0) == guest.ljust(512, b"\0")[:512]


def test_raw_disks_are_not_taken_for_descriptors(house: House) -> None:
    raw = house.inner / "raw.img"
    raw.write_bytes(text("custom", 'RW 8 FLAT "disk-flat.vmdk" 0').ljust(2 << 20, b"\0"))
    with pytest.raises(FormatError, match="a descriptor has at most 1048576 bytes"):
        vmdkit.open(raw)


def test_a_parent_is_not_probed_as_raw(house: House) -> None:
    (house.inner / "base.img").write_bytes(CANARY * 256)
    by_parent(house, "base.img")
    with pytest.raises(FormatError, match="a parent has to be a VMDK"):
        vmdkit.open(house.disk)


# ── nothing is written ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["hosted", "split", "flat", "vmfsSparse", "seSparse", "stream-A"])
def test_opening_for_reading_changes_nothing(kind: str, tmp_path: Path) -> None:
    image = images.chain(tmp_path, [(kind, "64k:A 64k:-"), ("hosted", "64k:- 64k:B")])

    def state() -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for entry in os.scandir(tmp_path):
            status = entry.stat()
            with open(entry.path, "rb") as file:
                found[entry.name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, file.read())
        return found

    before = state()
    with vmdkit.open(image.path) as disk:
        disk.pread(disk.size, 0)
        list(disk.extents())
        disk.flush()
        disk.facts()  # type: ignore[attr-defined]
        with pytest.raises(vmdkit.ReadOnlyError):
            disk.pwrite(b"x", 0)
        with pytest.raises(vmdkit.ReadOnlyError):
            disk.trim(512, 0)
    assert state() == before
    os.chmod(tmp_path, 0o500)
    try:
        vmdkit.open(image.path).close()
    finally:
        os.chmod(tmp_path, 0o700)
