# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that can be read into everything that can be written, at odd sizes.

What a disk must hold comes from the builder's model. It is looked at in the output by vmdkit, by its second reader, and
by qemu-img and 7-Zip where they can read the format.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any, Final

import pytest

import images
import vmdkit
from images import PATCHED, SUBFORMATS
from model import Model
from require import requires, version_of
from vmdkit import checker
from vmdkit.converter import FORMATS, Order, convert
from vmdkit.errors import UsageError
from vmdkit.filters.slice import SliceDevice
from vmdkit.ops.compare import compare
from vmdkit.ops.verify import second_reader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmdkit.device import Device

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
LAYOUTS: Final = {
    "odd": "64k:A 64k:0 64k:- 32k:B 32k:- 128k:c 4k:D 4k:0 4k:- 1M:- 1M:E 60k:- 512:F",
    "sector": "512:A",
}
CHAINS: Final = {
    "COWD over vmfs": [("vmfs", LAYOUTS["odd"]), ("vmfsSparse", "70k:- 512:G 1M:- 100k:0 1310k:-")],
    "seSparse over COWD": [
        ("vmfs", "64k:A 64k:B 64k:C 1M:-"),
        ("vmfsSparse", "64k:- 512:d 130560:- 1M:e"),
        ("seSparse", "4k:0 60k:- 4k:F 1M:- 124k:-"),
    ],
    "hosted over stream": [("stream-A", "64k:A 64k:B 64k:- 20k:c"), ("hosted-zeros", "64k:- 64k:0 64k:D 20k:-")],
    "split over flat": [("split-flat", "1M:A 1M:- 512:B"), ("split", "64k:C 1984k:- 512:D")],
}
ROWS: Final = {**SUBFORMATS, **PATCHED}
QEMU: Final = {"raw": "raw", "vhd": "vpc"}  # what qemu-img calls a format, if not vmdk
SEVEN: Final = ("monolithicSparse", "monolithicFlat", "streamOptimized", "vmfs")


def source_of(kind: str, layout: str, folder: Path) -> images.Image:
    if kind in CHAINS:
        return images.chain(folder, CHAINS[kind])
    return ROWS[kind].build(folder, layout)


def check_all(source: Device, expected: bytes, folder: Path, peers: tuple[str, ...]) -> None:
    """Write ``source`` in every format, and look at each."""
    for kind in FORMATS:
        path = folder / f"{kind}.out"
        sound: list[bool] = []

        def second(_: Device, written: Device, sound: list[bool] = sound) -> None:
            with second_reader(written) as witness:
                sound.append(witness.pread(len(expected), 0) == expected)

        convert(source, Order(str(path), source.size, sync=False), kind, check=second if kind != "tar.gz" else None)
        assert sound in ([], [True]), kind
        assert read_again(path, kind, len(expected)) == expected, kind
        for peer in peers:
            PEERS[peer](path, kind, expected)


def read_again(path: Path, kind: str, count: int) -> bytes:
    if kind == "tar.gz":
        with tarfile.open(path) as archive:
            file = archive.extractfile("disk.raw")
            assert file is not None
            return file.read()
    with vmdkit.open(path, raw=kind in QEMU) as made:
        assert made.size == count + (512 if kind == "vhd" else 0)
        if kind not in QEMU:
            assert checker.check(path).findings == []
        return bytes(made.pread(count, 0))


def qemu(path: Path, kind: str, expected: bytes) -> None:
    if kind == "tar.gz":
        return
    form = QEMU.get(kind, "vmdk")
    done = subprocess.run(
        ["qemu-img", "convert", "-f", form, "-O", "raw", path, "/dev/stdout"], capture_output=True, check=False
    )
    if done.returncode:  # no pipe for it: by way of a file
        out = path.with_suffix(".qemu")
        subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, out], check=True)
        done.stdout = out.read_bytes()
        out.unlink()
    assert done.stdout == expected, kind


def seven(path: Path, kind: str, expected: bytes) -> None:
    if kind in {name.lower() for name in SEVEN}:
        done = subprocess.run(["7zz", "x", "-tvmdk", "-so", path], capture_output=True, check=True)
        assert done.stdout == expected, kind
    elif kind == "vhd":
        done = subprocess.run(["7zz", "x", "-tvhd", "-so", path], capture_output=True, check=True)
        assert done.stdout == expected, kind


PEERS: Final[dict[str, Callable[[Path, str, bytes], None]]] = {"qemu-img": qemu, "7zz": seven}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ROWS)
def test_everything_into_everything(kind: str, layout: str, tmp_path: Path) -> None:
    model: Any = LAYOUTS[layout]
    if kind in PATCHED:
        if layout == "sector":
            pytest.skip("it has a part of its own that is larger")
        model = Model(model)
    image = source_of(kind, model, tmp_path)
    (tmp_path / "out").mkdir()
    with vmdkit.open(image.path) as source:
        check_all(source, image.model.pread(image.size, 0), tmp_path / "out", ())


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_into_everything(chain: str, tmp_path: Path) -> None:
    image = source_of(chain, "", tmp_path)
    (tmp_path / "out").mkdir()
    with vmdkit.open(image.path) as source:
        check_all(source, image.model.pread(image.size, 0), tmp_path / "out", ())


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("kind", ["raw", "hosted", "stream-A", "seSparse", *CHAINS])
def test_others_read_what_was_written(kind: str, peer: str, tmp_path: Path) -> None:
    requires(peer)
    if kind == "raw":
        expected = Model(LAYOUTS["odd"]).pread(images.SUBFORMATS["flat"].build(tmp_path, LAYOUTS["odd"]).size, 0)
        (tmp_path / "source.raw").write_bytes(expected)
        source = vmdkit.open(tmp_path / "source.raw", raw=True)
    else:
        image = source_of(kind, LAYOUTS["odd"], tmp_path)
        expected, source = image.model.pread(image.size, 0), vmdkit.open(image.path)
    (tmp_path / "out").mkdir()
    with source:
        check_all(source, expected, tmp_path / "out", (peer,))


@pytest.mark.parametrize("size", [1, 511, 513, 65537])
def test_raw_files_that_are_no_whole_sectors(size: int, tmp_path: Path) -> None:
    """Disks have whole sectors: what is added is zero. Raw files stay as they are."""
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    with vmdkit.open(tmp_path / "in", raw=True) as source:
        for kind in FORMATS:
            path = tmp_path / f"{kind}.out"
            convert(source, Order(str(path), size, sync=False), kind)
            rounded = size if kind in ("raw", "tar.gz") else -(-size // 512) * 512
            assert read_again(path, kind, rounded) == data.ljust(rounded, b"\0"), kind


# ── large disks, of little content ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a raw file of more than 2 TiB with a little at the beginning, around 2 TiB, and at its odd end."""
    path = tmp_path_factory.mktemp("huge") / "huge.raw"
    with path.open("wb") as file:
        try:
            file.truncate(2 * TIB + 3 * GIB + 512)
        except OSError:
            pytest.skip("no file may be that large here")
        for at in (0, 9 * GIB, 2 * TIB - 300, 2 * TIB + 3 * GIB + 500):
            file.seek(at)
            file.write(b"content" * 2 if at < 2 * TIB + GIB else b"end of disk!")
    return path


@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values()])
def test_more_than_2_tib(kind: str, huge: Path, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with vmdkit.open(huge, raw=True) as source:
        options = {"thin": True} if kind == "vmfs" else {}
        order = Order(str(path), source.size, options, sync=False)
        if kind in ("monolithicSparse", "vmfsSparse"):
            with pytest.raises(UsageError, match="holds at most"):
                convert(source, order, kind)
            assert list(tmp_path.iterdir()) == []
            return
        convert(source, order, kind)
        if kind == "tar.gz":
            with tarfile.open(path) as archive:
                member = archive.getmember("disk.raw")
                file = archive.extractfile(member)
                assert member.size == source.size
                assert file is not None
                file.seek(-12, io.SEEK_END)
                assert file.read() == b"end of disk!"
            return
        with vmdkit.open(path, raw=kind.lower() in QEMU) as made:
            view = SliceDevice(made, 0, source.size, owned=False)
            found = compare(source, view, strict=True)
            assert found.same
            assert found.read < 16 * MIB
    assert sum(part.stat().st_blocks for part in tmp_path.iterdir()) * 512 < 64 * MIB


@pytest.mark.parametrize("kind", ["twoGbMaxExtentSparse", "streamOptimized", "monolithicFlat"])
def test_others_read_more_than_2_tib(kind: str, huge: Path, tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io")
    path = tmp_path / "out"
    with vmdkit.open(huge, raw=True) as source:
        convert(source, Order(str(path), source.size, sync=False), kind)
    end = 2 * TIB + 3 * GIB
    told = subprocess.run(
        ["qemu-io", "-r", "-f", "vmdk", "-c", f"read -v {end} 512", path], capture_output=True, check=True, text=True
    ).stdout
    assert "6f 66 20 64 69 73 6b 21" in told  # "of disk!"


def test_a_stream_of_more_than_8_gib_is_read_by_7zip(tmp_path: Path) -> None:
    """Of a disk of 9 GiB it reads what stands behind the eighth."""
    requires("7zz")
    if (version_of("7zz") or ()) < (23,):
        pytest.skip("a newer 7-Zip is needed")
    with (tmp_path / "in").open("wb") as file:
        file.truncate(9 * GIB + 512)
        file.seek(9 * GIB + 500)
        file.write(b"end of disk!")
    with vmdkit.open(tmp_path / "in", raw=True) as source:
        convert(source, Order(str(tmp_path / "out.vmdk"), source.size, sync=False), "streamOptimized")
    command = f"7zz x -tvmdk -so {tmp_path / 'out.vmdk'} | tail -c 12"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout == b"end of disk!"
