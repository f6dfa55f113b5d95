# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Parents: how they are found, what is checked, and what the caller may wave through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import HINTS, Image
from images.damage import DAMAGE
from vmdkit.errors import ChainError, FormatError, GateError
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk import chain

if TYPE_CHECKING:
    from pathlib import Path

K64 = 64 << 10


def pair(directory: Path, hint: str = "relative", **facts: int) -> Image:
    base = images.monolithic_sparse(directory, "64k:A 64k:B", name="base")
    return images.monolithic_sparse(directory, "64k:- 64k:C", name="child", parent=base, hint=hint, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("hint", [*HINTS, "base.vmdk", "./base.vmdk", "..\\machine\\base.vmdk", "a/b\\c/base.vmdk"])
def test_a_parent_beside_its_child_is_found_by_any_hint(hint: str, tmp_path: Path) -> None:
    image = pair(tmp_path, hint)
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("parent", [*images.SUBFORMATS, *images.PATCHED])
@pytest.mark.parametrize("child", ["hosted", "split", "vmfsSparse", "seSparse"])
def test_any_parent_under_any_child(parent: str, child: str, tmp_path: Path) -> None:
    image = images.chain(tmp_path, [(parent, "64k:A 64k:b 64k:- 64k:0"), (child, "32k:- 64k:C 160k:-")])
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)
        assert sum(run.length for run in disk.extents()) == disk.size


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parent-itself", "the chain of parents comes back to this file"),
        ("parent-loop", "the chain of parents comes back to this file"),
        ("parent-cid", "has changed since: content ID 12345678"),
        ("parent-cid-wrong", "77777777 is due; reading both together would mix two states"),
        ("parent-capacity", "has 131072 bytes, this link 196608; all links of a chain are of one size"),
        ("parent-lost", "its parent 'base.vmdk' is not there"),
        ("parent-too-deep", "the chain of parents has more than 64 links"),
    ],
)
def test_what_is_wrong_with_a_chain(name: str, text: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    with pytest.raises(ChainError) as caught:
        vmdkit.open(image.path)
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["parent-itself", "parent-loop", "parent-too-deep"])
def test_some_things_cannot_be_waved_through(name: str, tmp_path: Path) -> None:
    with pytest.raises(ChainError):
        vmdkit.open(DAMAGE[name].build(tmp_path).path, ignore_cid=True)


def test_a_loop_of_three(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted", "64k:A"), ("hosted", "64k:-"), ("hosted", "64k:-")])
    layers = list(image.layers())
    base = layers[-1]
    base.put_text(base.text.but(parent_cid=image.text.cid, hint=image.path.name).render(base.style))
    for layer in layers:
        with pytest.raises(ChainError, match="comes back"):
            vmdkit.open(layer.path)


def test_a_loop_through_another_name_of_the_same_file(tmp_path: Path) -> None:
    image = pair(tmp_path)
    assert image.parent is not None
    image.parent.path.unlink()
    image.parent.path.hardlink_to(image.path)
    with pytest.raises(ChainError, match="comes back"):
        vmdkit.open(image.path, ignore_cid=True)


def test_as_deep_as_allowed(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted-4k", "4k:A 4k:B")] + [("hosted-4k", "4k:- 4k:-")] * (chain.DEEPEST - 1))
    with vmdkit.open(image.path) as disk:
        assert disk.pread(8192, 0) == image.model.pread(8192, 0)
        assert next(disk.extents(context="qemu:allocation-depth")).flags == chain.DEEPEST
    one_more = images.monolithic_sparse(tmp_path, "4k:- 4k:-", name="top", parent=image)
    with pytest.raises(ChainError, match="more than 64 links"):
        vmdkit.open(one_more.path)
    with vmdkit.open(one_more.path, single_link=True) as disk:
        assert not any(disk.pread(8192, 0))


def test_ignore_cid_takes_another_parent(tmp_path: Path) -> None:
    image = pair(tmp_path, parent_cid=0x77777777)
    with vmdkit.open(image.path, ignore_cid=True) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("kind", ["hosted", "flat", "stream-A", "vmfsSparse", "seSparse"])
@pytest.mark.parametrize("layout", ["64k:A", "64k:A 64k:B 64k:C 64k:D"])
def test_ignore_cid_takes_a_parent_of_another_size(kind: str, layout: str, tmp_path: Path) -> None:
    """What a smaller one lacks is zero; of a larger one the rest is not seen."""
    base = images.SUBFORMATS[kind].build(tmp_path, layout, name="base")
    child = images.monolithic_sparse(tmp_path, "32k:- 32k:E 64k:- 64k:F", name="child", parent=base)
    with pytest.raises(ChainError, match="all links of a chain are of one size"):
        vmdkit.open(child.path)
    with vmdkit.open(child.path, ignore_cid=True) as disk:
        assert disk.size == 3 * K64
        wanted = child.model.pread(child.size, 0)
        assert disk.pread(disk.size, 0) == wanted
        used = bytearray(b"\xee" * disk.size)
        disk.pread_into(used, 0)
        assert used == wanted
        for offset in (K64 - 5, K64, 2 * K64 - 5):
            assert disk.pread(10, offset) == wanted[offset : offset + 10]
        assert sum(run.length for run in disk.extents()) == disk.size
        assert sum(run.length for run in disk.extents(context="qemu:allocation-depth")) == disk.size
        assert sum(place.length for place in disk.locate()) == disk.size
        for run in disk.extents():
            if run.flags:
                assert not any(disk.pread(run.length, run.offset))


def test_one_link_alone(tmp_path: Path) -> None:
    image = pair(tmp_path)
    assert image.parent is not None
    image.parent.path.unlink()
    with vmdkit.open(image.path, single_link=True) as disk:
        assert disk.pread(2 * K64, 0) == bytes(K64) + image.model.pread(K64, K64)
        assert "the parent was left out" in disk.doubts[0].text  # type: ignore[attr-defined]


def test_a_parent_has_to_be_a_vmdk(tmp_path: Path) -> None:
    image = pair(tmp_path)
    assert image.parent is not None
    image.parent.path.write_bytes(bytes(2 * K64))
    with pytest.raises(FormatError, match="a parent has to be a VMDK, and this is none"):
        vmdkit.open(image.path)


def test_no_hint(tmp_path: Path) -> None:
    image = pair(tmp_path)
    image.poke_text('parentFileNameHint="base.vmdk"\n', "")
    with pytest.raises(ChainError, match="does not say which"):
        vmdkit.open(image.path)


@pytest.mark.parametrize("hint", ["..", ".", "/", "\\", "dir/", "nbd://x/", "x/..", "\\\\.\\pipe\\x"])
def test_hints_that_are_no_files(hint: str, tmp_path: Path) -> None:
    image = pair(tmp_path, hint)
    with pytest.raises((ChainError, GateError)):
        vmdkit.open(image.path)


def test_a_refused_hint_is_said_where_nothing_better_is_found(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path / "store", "64k:A", name="base")
    child = images.monolithic_sparse(tmp_path / "vm", "64k:-", name="child", parent=base, hint="absolute")
    with pytest.raises(GateError, match="lies outside its own directory"):
        vmdkit.open(child.path)


def test_identity_of_what_has_no_descriptor() -> None:
    assert chain.identify(MemoryDevice(b"", name="this")) == "this"
