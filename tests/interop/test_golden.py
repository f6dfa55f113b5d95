# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Images that VMware's own programs made, and one that a fuzzer made, against their manifest."""

from __future__ import annotations

import csv
import gzip
import hashlib
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

import vmdkit
from require import golden
from vmdkit.errors import DescriptorError, FormatError

if TYPE_CHECKING:
    from pathlib import Path

MOST_IN_FULL = 1 << 30  # a larger disk is hashed by its extents, and holes by their length
UNREADABLE: dict[str, tuple[type[FormatError], str]] = {
    "qemu-iotests/afl9.vmdk.gz": (FormatError, "HostedHeader: "),
    "vmdk-rs/vmfs_thick-000001.vmdk": (DescriptorError, "vmfs_thick-000001-delta.vmdk' is not there"),
}
# Disks of 16 GiB: hashing their zeros would take ten seconds, so what is not zero is hashed with its place instead;
# qemu-img convert gives the same, and the whole is as the manifest says.
DATA_ONLY = {
    "qemu-iotests/iotest-version3.vmdk": "2dec003dd04b5e315f958640a0e9a472d7ffc3ce64861fa6694112795d6bc1e6",
}


class Row(NamedTuple):
    """A line of the manifest."""

    path: str
    digest: str
    size: str
    licence: str
    source: str
    covers: str


def manifest() -> list[Row]:
    """Return the manifest; nothing where there are no golden images."""
    try:
        where = golden()
    except pytest.skip.Exception:
        return []
    with (where / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return [Row(*line) for line in csv.reader(file, delimiter="\t") if line and not line[0].startswith("#")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the golden images, with what is packed unpacked, and the twin that the manifest speaks of."""
    where = tmp_path_factory.mktemp("golden")
    for source in sorted(golden().rglob("*")):
        target = where / source.relative_to(golden())
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.suffix == ".gz":
            with gzip.open(source) as packed, target.with_suffix("").open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        else:
            shutil.copyfile(source, target)
    flat = where / "vmdk-rs/monolithicFlat-flat.vmdk"
    shutil.copyfile(flat, where / "vmdk-rs/twoGbMaxExtentFlat-f001.vmdk")
    return where


def test_there_are_golden_images() -> None:
    assert (golden() / "MANIFEST.tsv").exists()
    assert len(manifest()) >= 10


@pytest.mark.parametrize("row", manifest(), ids=lambda row: row.path)
def test_what_the_manifest_says(row: Row, images: Path) -> None:
    path = images / row.path.removesuffix(".gz")
    if row.digest == "-":
        begun = time.process_time()
        kind, text = UNREADABLE[row.path]
        with pytest.raises(kind, match=text):
            vmdkit.open(path)
        assert time.process_time() - begun < 1
        return
    with vmdkit.open(path) as disk:
        assert disk.size == int(row.size)
        if disk.size <= MOST_IN_FULL:
            assert hashlib.sha256(disk.pread(disk.size, 0)).hexdigest() == row.digest
        else:
            assert data_digest(disk) == DATA_ONLY[row.path]
        assert disk.facts()["doubts"] == []  # type: ignore[attr-defined]


def data_digest(disk: vmdkit.Device) -> str:
    """Hash each 64 KiB that is not zero, with its number; and see that no hole has data."""
    digest = hashlib.sha256()
    step = 64 << 10
    for run in disk.extents():
        if run.flags & 2:
            continue
        for offset in range(run.offset, run.offset + run.length, step):
            data = disk.pread(min(step, run.offset + run.length - offset), offset)
            if any(data):
                digest.update(offset.to_bytes(8, "little") + data)
    return digest.hexdigest()


@pytest.mark.parametrize("row", manifest(), ids=lambda row: row.path)
def test_extents_of_zeros_are_zero(row: Row, images: Path) -> None:
    if row.digest == "-":
        pytest.skip("not to be opened")
    with vmdkit.open(images / row.path) as disk:
        end = looked = 0
        for run in disk.extents():
            assert run.offset == end
            end += run.length
            if run.flags & 2:
                for offset in {run.offset, run.offset + run.length // 2, run.offset + run.length - 1}:
                    assert disk.pread(1, offset) == b"\0"
                if looked < 64 << 20:
                    count = min(run.length, 16 << 20)
                    looked += count
                    assert not any(disk.pread(count, run.offset))
        assert end == disk.size


@pytest.mark.parametrize(
    "name", ["streamOptimized.vmdk", "streamOptimizedWithMarkers.vmdk", "../qemu-iotests/iotest-version3.vmdk"]
)
def test_salvage_finds_what_the_tables_say(name: str, images: Path) -> None:
    path = images / "vmdk-rs" / name
    with vmdkit.open(path) as disk, vmdkit.open(path, salvage=True) as salvaged:
        assert list(disk.extents()) == list(salvaged.extents())
        assert data_digest(disk) == data_digest(salvaged)


def test_the_redundant_tables_say_the_same(images: Path) -> None:
    for name in ("monolithicSparse.vmdk", "twoGbMaxExtentSparse.vmdk"):
        path = images / "vmdk-rs" / name
        with vmdkit.open(path) as one, vmdkit.open(path, directory="redundant") as other:
            assert one.pread(one.size, 0) == other.pread(other.size, 0)


def test_extent_files_lead_to_their_disks(images: Path) -> None:
    for name in ("monolithicFlat-flat.vmdk", "twoGbMaxExtentFlat-f001.vmdk", "twoGbMaxExtentSparse-s001.vmdk"):
        with vmdkit.open(images / "vmdk-rs" / name) as disk:
            assert disk.size == 10485760


@pytest.mark.parametrize("name", ["monolithicSparse.vmdk", "streamOptimized.vmdk", "streamOptimizedWithMarkers.vmdk"])
def test_truncated_at_any_place_nothing_wrong_is_read(name: str, images: Path, tmp_path: Path) -> None:
    """Cut at each of some fifty places: refused, or each 64 KiB is right, zero or an error."""
    whole = (images / "vmdk-rs" / name).read_bytes()
    with vmdkit.open(images / "vmdk-rs" / name) as disk:
        right = bytes(disk.pread(disk.size, 0))
    path = tmp_path / "cut.vmdk"
    for part in range(1, 50):
        path.write_bytes(whole[: len(whole) * part // 50])
        for salvage in (False, True):
            try:
                disk = vmdkit.open(path, salvage=salvage)
            except (vmdkit.VmdkitError, OSError):
                continue
            with disk:
                for offset in range(0, len(right), 1 << 18):
                    try:
                        data = disk.pread(1 << 16, offset)
                    except vmdkit.VmdkitError:
                        continue
                    wanted = right[offset : offset + (1 << 16)]
                    # Of a short last grain the rest is zero; of a salvaged stream what was not found.
                    assert data == wanted or not any(data) or wanted.startswith(data.rstrip(b"\0"))
