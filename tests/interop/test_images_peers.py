# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The builders of tests/images against independent readers: an oracle has to be checked by somebody.

No peer reads everything right, so each is asked only for what it is known to read: qemu-img knows few createTypes,
drops extents that are RDONLY or ZERO, and takes grains without markers for bare deflate; 7-Zip needs a footer in
streams, 512 entries in tables, and knows no deltas; libvmdk refuses grains below 8 KiB and seSparse.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

import images
from images import CHILDREN, PATCHED, STYLES, SUBFORMATS, VMFS_TYPES, Flat, Hosted, Piece
from images.base import HINTS
from images.damage import DAMAGE
from images.recipes import COWD_SECTORS, SE_GRAINS
from layout import SECTOR, fill
from require import requires

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

LAYOUTS: Final = {
    "mixed": "64k:A 64k:0 64k:- 32k:B 32k:- 128k:c 4k:D 4k:0 4k:- 1M:- 3M:E 60k:- 512:F",
    "tables": "15M:- 1M:- 128k:A 16M:- 512:b 33M:- 64k:C 1M:0",
    "empty": "1M:-",
    "one sector": "512:A",
}
NOT_QEMU: Final = {"stream-BARE", "fullDevice", *PATCHED, *VMFS_TYPES} - {"vmfs"}
IN_7ZIP: Final = ("hosted", "split", "flat", "vmfs", "stream-A", "stream-ESX", "stream-OLD", "stream-p", "stream-e")
NOT_7ZIP: Final = {
    "vmfsSparse",
    "vmfsSparse-4k",
    "hosted-256-entries",
    "hosted-short",
}  # the last is read, but warned of
NOT_LIBVMDK: Final = {"hosted-4k", "hosted-on-demand", "hosted-reversed", "hosted-256-entries", "seSparse"}


def qemu(image: Image, out: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", image.path, out], check=True)
    return out.read_bytes()


def seven(image: Image) -> bytes:
    return subprocess.run(["7zz", "x", "-tvmdk", "-so", image.path], check=True, capture_output=True).stdout


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", [kind for kind in SUBFORMATS if kind not in NOT_QEMU])
def test_qemu_reads_the_model(kind: str, layout: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = SUBFORMATS[kind].build(tmp_path, layout)
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", [kind for kind in SUBFORMATS if kind.startswith(IN_7ZIP) and kind not in NOT_7ZIP])
def test_7zip_reads_the_model(kind: str, layout: str, tmp_path: Path) -> None:
    requires("7zz")
    image = SUBFORMATS[kind].build(tmp_path, layout)
    assert seven(image) == image.model.pread(image.size, 0)


def test_7zip_reads_full_devices(tmp_path: Path) -> None:
    requires("7zz")
    image = images.full_device(tmp_path, LAYOUTS["mixed"])
    assert seven(image) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("kind", [k for k in {**SUBFORMATS, **PATCHED} if not k.startswith(tuple(NOT_LIBVMDK))])
def test_libvmdk_knows_the_facts(kind: str, tmp_path: Path) -> None:
    requires("vmdkinfo")
    image = {**SUBFORMATS, **PATCHED}[kind].build(tmp_path, LAYOUTS["mixed"])
    told = subprocess.run(["vmdkinfo", image.path], check=True, capture_output=True, text=True).stdout
    assert f"({image.size} bytes)" in told
    assert re.search(rf"Content identifier:\s+0x{image.text.cid:08x}", told)
    assert re.search(rf"Number of extents:\s+{len(image.text.lines)}\n", told)


@pytest.mark.parametrize("top", CHILDREN)
@pytest.mark.parametrize("base", ["flat", "hosted", "split-zeros", "stream-A"])
def test_qemu_reads_chains(top: str, base: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    links = [(base, "64k:A 64k:B 64k:- 64k:C 64k:D 20k:E"), (top, "64k:- 4k:F 60k:- 64k:0 64k:0 32k:- 32k:0 20k:-")]
    image = images.chain(tmp_path, links)
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


def test_qemu_reads_a_long_chain(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    whole = "2M:- 128k:{} 4M:- 64k:{} 1M:-"
    links = [("vmfs", whole.format("A", "-")), ("vmfsSparse", whole.format("-", "B")), ("hosted", "7360k:-")]
    links += [("seSparse-odd", "2112k:- 32k:0 32k:C 5184k:-"), ("hosted-zeros", "1984k:- 64k:0 64k:D 5248k:-")]
    image = images.chain(tmp_path, links)
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


@pytest.mark.parametrize("hint", sorted(set(HINTS) - {"backslash", "basename", "windows"}))
def test_qemu_follows_hints(hint: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = images.chain(tmp_path, [("flat", "64k:A 64k:B"), ("hosted", "64k:- 64k:C")], hint=hint)
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


def test_qemu_reads_offsets_and_split_text(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    pieces = [Piece("FLAT", 64 << 10, knobs=Flat(before=8192, after=512)), Piece("SPARSE", knobs=Hosted(grain=8192))]
    image = images.assemble(tmp_path, "100k:A 28k:B 1M:C", pieces, "twoGbMaxExtentSparse")
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


# qemu takes other first keys for raw, and an extent twice whose line follows an empty line.
NOT_QEMU_STYLES: Final = {
    "encoding-first",
    "blanks",
    "lower",
    "lower-values",
    "indented",
    "no-comments",
    "crlf-no-comments",
}


@pytest.mark.parametrize("style", sorted(set(STYLES) - NOT_QEMU_STYLES))
def test_qemu_reads_text_styles(style: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = images.monolithic_flat(tmp_path, "4k:A 4k:-", style=STYLES[style])
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)


def test_cowd_recipe(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = images.cowd_8m(tmp_path)
    assert (image.peek("header.freeSector"), image.peek("gd", 1), image.peek("gt[1]", 10)) == (39, 5, 37)
    read = qemu(image, tmp_path / "out")
    for sector, letter in COWD_SECTORS.items():
        assert read[sector * SECTOR : (sector + 1) * SECTOR] == fill(letter, SECTOR, sector * SECTOR)
    assert read == image.model.pread(image.size, 0)


def test_sesparse_recipe(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = images.sesparse_100m(tmp_path)
    name, index = image.entry(4)
    assert image.peek(name, index) == 0x3001000000000001
    assert image.peek("gd", 1) == 0x1000000000000001
    assert [image.peek(f"header.{name}Offset") for name in ("grainDirectory", "backMap", "grains")] == [
        4096,
        10240,
        12288,
    ]
    read = qemu(image, tmp_path / "out")
    for grain, letter in SE_GRAINS.items():
        assert read[grain * 4096 : (grain + 1) * 4096] == fill(letter, 4096, grain * 4096)
    assert read == image.model.pread(image.size, 0)


# Damage that these readers survive: the bytes must be those the model says.
@pytest.mark.parametrize(
    "name",
    [
        "rgt-lacks-grain",
        "gt-lacks-grain",
        "rgt-swapped",
        "gte-duplicate",
        "leaked-tail-grain",
        "gde-0",
        "last-grain-short",
        "unclean",
        "descriptor-area-tight",
        "stream-b-no-eos",
        "cowd-unclean",
        "extent-long",
    ],
)
def test_qemu_reads_through_damage(name: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = DAMAGE[name].build(tmp_path)
    assert qemu(image, tmp_path / "out") == image.model.pread(image.size, 0)
