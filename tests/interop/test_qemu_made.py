# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Images that qemu-img makes, in every subformat it can write: read and mapped as qemu itself does it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

import vmdkit
from layout import fill
from require import requires
from vmdkit.device import Device, Kind

if TYPE_CHECKING:
    from pathlib import Path

K64, MIB, GIB = 64 << 10, 1 << 20, 1 << 30
SUBFORMATS: Final = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)
SPARSE: Final = ("monolithicSparse", "twoGbMaxExtentSparse")
OPTIONS: Final = {
    "monolithicSparse": ["zeroed_grain=on", "compat6=on", "adapter_type=lsilogic", "hwversion=14"],
    "twoGbMaxExtentSparse": ["zeroed_grain=on"],
    "monolithicFlat": ["adapter_type=buslogic"],
    "streamOptimized": ["compat6=on"],
}
SIZES: Final = (512, 4096, K64, K64 + 512, MIB - 512, 3 * MIB + 1536, 32 * MIB, 32 * MIB + 512)


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def source(path: Path, size: int) -> bytes:
    """Write a raw disk: data at both ends and about every boundary of a table, zeros that are data, and holes."""
    pieces = [(0, "A", 700), (size - 512, "b", 512), (K64 - 512, "C", 1024), (32 * MIB - 1024, "d", 2048)]
    pieces += [(size // 2 // 512 * 512, "E", K64), (5 * K64, "0", K64)]
    with path.open("wb") as file:
        file.truncate(size)
        for offset, letter, count in pieces:
            if 0 <= offset < size:
                file.seek(offset)
                file.write(fill(letter, min(count, size - offset), offset))
    return path.read_bytes() if size <= 64 * MIB else b""


def by_qemu(path: Path, out: Path) -> bytes:
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, out)
    return out.read_bytes()


def assert_mapped_alike(disk: Device, path: Path) -> None:
    """Compare with ``qemu-img map``: where zeros are, how deep data lie, and at which place of which file.

    qemu knows whether a run reads as zeros, and we know it at least as often; where both know the place of data, it
    must be the same.
    """
    theirs: list[dict[str, Any]] = json.loads(run("qemu-img", "map", "-f", "vmdk", "--output=json", path))
    assert sum(entry["length"] for entry in theirs) == disk.size
    ours = list(disk.extents())
    assert sum(extent.length for extent in ours) == disk.size
    places = list(disk.locate())
    for entry in theirs:
        start, end = entry["start"], entry["start"] + entry["length"]
        inside = [extent for extent in ours if extent.offset < end and start < extent.offset + extent.length]
        zeros = [bool(extent.flags & 2) for extent in inside]
        assert all(zero == entry["zero"] for zero in zeros), (entry, inside)
        if entry["zero"]:
            continue
        for place in places:
            low, high = max(place.offset, start), min(place.offset + place.length, end)
            if low >= high or place.kind is not Kind.DATA:
                continue
            assert place.depth == entry["depth"]
            if "offset" in entry:
                assert place.at + low - place.offset == entry["offset"] + low - start


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_converted(subformat: str, size: int, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    wanted = source(tmp_path / "raw", size)
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", tmp_path / "raw", path)
    with vmdkit.open(path) as disk:
        assert disk.size == size
        assert disk.pread(size, 0) == wanted
        assert_mapped_alike(disk, path)
        assert disk.facts()["subformat"] == subformat  # type: ignore[attr-defined]
        assert disk.facts()["doubts"] == []  # type: ignore[attr-defined]
    if size == SIZES[-1]:
        assert by_qemu(path, tmp_path / "out") == wanted


@pytest.mark.parametrize(
    ("subformat", "option"), [(subformat, option) for subformat in OPTIONS for option in OPTIONS[subformat]]
)
def test_options(subformat: str, option: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    wanted = source(tmp_path / "raw", 3 * MIB)
    path = tmp_path / "disk.vmdk"
    words = f"subformat={subformat},{option}"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", words, tmp_path / "raw", path)
    with vmdkit.open(path) as disk:
        assert disk.pread(disk.size, 0) == wanted
        facts = disk.facts()  # type: ignore[attr-defined]
    assert facts["doubts"] == []
    if option.startswith("adapter"):
        assert facts["adapter"] == option.split("=")[1]
    if option.startswith("hwversion"):
        assert facts["hardware_version"] == "14"
    if option.startswith("zeroed"):
        assert facts["extents"][0]["version"] == 2


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_nothing_written(subformat: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", f"subformat={subformat}", path, 10 * MIB)
    with vmdkit.open(path) as disk:
        assert not any(disk.pread(disk.size, 0))
        if "Flat" not in subformat:  # of flat files the file system keeps what it likes
            assert [extent.flags for extent in disk.extents()] == [3]
        assert_mapped_alike(disk, path)


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_extents_of_two_gib(subformat: str, tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io>=7")
    size = 4 * GIB + MIB + 512
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", f"subformat={subformat}", path, size)
    places = (0, 2 * GIB - K64, 2 * GIB, 4 * GIB - 512, 4 * GIB, 4 * GIB + MIB)
    strokes = [word for at in places for word in ("-c", f"write -P {at // 512 % 250 + 1} {at} 512")]
    run("qemu-io", "-f", "vmdk", *strokes, path)
    with vmdkit.open(path) as disk:
        assert disk.size == size
        assert len(disk.files) == 4  # type: ignore[attr-defined]
        for at in places:
            assert disk.pread(512, at) == bytes([at // 512 % 250 + 1]) * 512
        assert disk.pread(1024, 2 * GIB - 512) == bytes(512) + bytes([2 * GIB // 512 % 250 + 1]) * 512
        assert_mapped_alike(disk, path)


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("subformat", SPARSE)
def test_zeros_over_data(subformat: str, zeroed: bool, tmp_path: Path) -> None:
    """With zeroed_grain qemu marks grains as zero; without, it writes them."""
    requires("qemu-img>=7", "qemu-io>=7")
    path = tmp_path / "disk.vmdk"
    option = f"subformat={subformat}" + ",zeroed_grain=on" * zeroed
    run("qemu-img", "create", "-f", "vmdk", "-o", option, path, 4 * MIB)
    strokes = [
        "write -P 65 0 1M",
        f"write -z {K64} {K64}",
        "write -z 2M 1M",
        "write -z 300k 100k",
        "write -P 66 2M 512",
    ]
    run("qemu-io", "-f", "vmdk", *[word for stroke in strokes for word in ("-c", stroke)], path)
    with vmdkit.open(path) as disk:
        assert disk.pread(disk.size, 0) == by_qemu(path, tmp_path / "out")
        assert_mapped_alike(disk, path)


CHAINS: Final = [
    ("monolithicFlat", "monolithicSparse"),
    ("monolithicSparse", "monolithicSparse", "twoGbMaxExtentSparse"),
    ("twoGbMaxExtentFlat", "twoGbMaxExtentSparse", "monolithicSparse"),
    ("streamOptimized", "monolithicSparse", "monolithicSparse", "twoGbMaxExtentSparse"),
    ("twoGbMaxExtentSparse", "monolithicSparse", "monolithicSparse", "monolithicSparse"),
]


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("links", CHAINS, ids="-".join)
def test_chains(links: tuple[str, ...], zeroed: bool, tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io>=7")
    size = 34 * MIB + 512
    source(tmp_path / "raw", size)
    path = tmp_path / "link-0.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", "-o", f"subformat={links[0]}", tmp_path / "raw", path)
    for number, subformat in enumerate(links[1:], 1):
        below, path = path, tmp_path / f"link-{number}.vmdk"
        option = f"subformat={subformat}" + ",zeroed_grain=on" * zeroed
        run("qemu-img", "create", "-f", "vmdk", "-o", option, "-b", below.name, "-F", "vmdk", path)
        strokes = [
            f"write -P {number} {number * 3 * K64 + 512} {K64}",
            f"write -P {number} {32 * MIB - number * 512} 1k",
        ]
        if zeroed:
            strokes.append(f"write -z {number * K64} {K64}")
        run("qemu-io", "-f", "vmdk", *[word for stroke in strokes for word in ("-c", stroke)], path)
        with vmdkit.open(path) as disk:
            assert disk.pread(disk.size, 0) == by_qemu(path, tmp_path / "out")
            assert_mapped_alike(disk, path)
            assert disk.facts()["doubts"] == []  # type: ignore[attr-defined]
    os.rename(tmp_path / "link-0.vmdk", tmp_path / "moved.vmdk")
    with pytest.raises(vmdkit.ChainError, match=r"'link-0.vmdk' is not there"):
        vmdkit.open(path)


def test_a_parent_that_qemu_wrote_to_since_is_refused(tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io>=7")
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    run("qemu-img", "create", "-f", "vmdk", base, MIB)
    run("qemu-img", "create", "-f", "vmdk", "-b", base.name, "-F", "vmdk", child)
    vmdkit.open(child).close()
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 512", base)
    with pytest.raises(vmdkit.ChainError, match="has changed since"):
        vmdkit.open(child)
    with vmdkit.open(child, ignore_cid=True) as disk:
        assert disk.pread(512, 0) == b"\1" * 512


def test_an_absolute_backing_file(tmp_path: Path) -> None:
    """Its name is tried as it stands, which the gate refuses, and then beside the child."""
    requires("qemu-img>=7")
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    run("qemu-img", "create", "-f", "vmdk", base, MIB)
    run("qemu-img", "create", "-f", "vmdk", "-b", base, "-F", "vmdk", child)
    vmdkit.open(child).close()
    os.rename(base, tmp_path / "moved.vmdk")
    with pytest.raises(vmdkit.GateError):
        vmdkit.open(child)
