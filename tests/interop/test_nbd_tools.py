# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The server with the clients that people have: libnbd's tools, qemu's, nbdkit, fio."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

import images
import vmdkit
from images import PATCHED, SUBFORMATS
from layout import fill
from require import requires
from vmdkit.nbd import Export, Options, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from images import Image

MIXED: Final = "64k:A 64k:0 64k:- 32k:B 32k:- 128k:c 4k:D 4k:0 4k:- 1M:- 3M:E 60k:- 512:F"
OVER: Final = "4k:- 64k:G 60k:- 64k:0 40k:- 32k:0 24k:H 96k:- 12k:0 1M:- 3M:- 60k:- 512:0"
EMPTY: Final = "4M:- 384k:- 512:-"
WRITABLE: Final = {
    "flat": [("flat", MIXED)],
    "sparse": [("hosted", MIXED)],
    "child": [("flat", MIXED), ("hosted", OVER)],
    "grandchild": [("flat", MIXED), ("hosted", OVER), ("hosted", OVER.replace("G", "Y"))],
}
COPIES: Final = [(), ("--connections=4",), ("--no-extents", "--synchronous"), ("--destination-is-zero",)]
ROWS: Final = {**SUBFORMATS, **PATCHED}
K64: Final = 64 << 10
OPTIONS: Final = Options(spin=0)


def run(*command: Any) -> str:
    """Run a peer, which must succeed; returns what it printed."""
    words = [*map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def whole(image: Image) -> bytes:
    return image.model.pread(image.size, 0)


def build(kind: str, directory: Path) -> Image:
    return images.chain(directory, WRITABLE[kind])


def judged(image: Image, expected: bytes, directory: Path) -> None:
    """See through qemu's eyes that a disk is sound and holds what is expected."""
    reference = directory / "expected.raw"
    reference.write_bytes(expected)
    if image.subformat == "monolithicSparse":
        run("qemu-img", "check", "-f", "vmdk", image.path)
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", reference, image.path)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ROWS)
def test_nbdcopy_reads_every_subformat(kind: str, tmp_path: Path) -> None:
    requires("nbdcopy")
    image = ROWS[kind].build(tmp_path, MIXED)
    out = tmp_path / "out.raw"
    with vmdkit.open(image.path) as disk, Server(Export(disk), options=OPTIONS) as server:
        run("nbdcopy", server.uri, out)
    assert out.read_bytes() == whole(image)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Image]]]:
    """Serve a flat disk, a compressed one and a chain of three under one roof."""
    built = {
        "flat": images.monolithic_flat(tmp_path_factory.mktemp("flat"), MIXED),
        "stream": images.stream_optimized(tmp_path_factory.mktemp("stream"), MIXED),
        "chain": images.chain(tmp_path_factory.mktemp("chain"), WRITABLE["grandchild"]),
    }
    disks = {name: vmdkit.open(image.path) for name, image in built.items()}
    exports = [Export(disk, name, f"a disk of {name}") for name, disk in disks.items()]
    with Server(exports, options=OPTIONS) as server:
        yield server, built
    for disk in disks.values():
        disk.close()


Shelf = tuple[Server, "dict[str, Image]"]
NAMES: Final = ("flat", "stream", "chain")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [(), ("--no-extents",), ("--connections=4",), ("--connections=1", "--synchronous")])
def test_nbdcopy_reads(shelf: Shelf, name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    requires("nbdcopy")
    server, built = shelf
    run("nbdcopy", *words, server.uri_of(name), tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == whole(built[name])


def test_nbdinfo_lists_all(shelf: Shelf) -> None:
    requires("nbdinfo")
    server, built = shelf
    told = json.loads(run("nbdinfo", "--list", "--json", server.uri_of("")))
    assert told["protocol"] == "newstyle-fixed"
    assert told["structured"] is True
    found = {each["export-name"]: each for each in told["exports"]}
    assert set(found) == set(NAMES)
    for name, each in found.items():
        assert each["description"] == f"a disk of {name}"
        assert each["export-size"] == built[name].size
        assert each["contexts"] == ["base:allocation", "qemu:allocation-depth"]


def test_nbdinfo_tells_what_an_export_can(shelf: Shelf) -> None:
    requires("nbdinfo")
    server, built = shelf
    (told,) = json.loads(run("nbdinfo", "--json", server.uri_of("flat")))["exports"]
    assert told["is_read_only"] is True
    assert told["can_multi_conn"] is told["can_df"] is told["can_flush"] is told["can_cache"] is True
    assert told["can_trim"] is told["can_zero"] is told["can_fua"] is False
    assert (told["block_size_minimum"], told["block_size_maximum"]) == (1, 32 << 20)
    assert run("nbdinfo", "--size", server.uri_of("flat")) == f"{built['flat'].size}\n"


@pytest.mark.parametrize("name", NAMES)
def test_nbdinfo_maps(shelf: Shelf, name: str) -> None:
    requires("nbdinfo")
    server, built = shelf
    for context in ("base:allocation", "qemu:allocation-depth"):
        told = json.loads(run("nbdinfo", "--json", f"--map={context}", server.uri_of(name)))
        with vmdkit.open(built[name].path) as disk:
            ours = [tuple(extent) for extent in disk.extents(context=context)]
        assert [(run["offset"], run["length"], run["type"]) for run in told] == ours


@pytest.mark.parametrize(("kind", "layout"), [("hosted", MIXED), ("flat", MIXED), ("hosted", "1M:A 200M:- 64k:B 1M:-")])
@pytest.mark.parametrize("writable", [False, True])
def test_nbdinfo_maps_what_is_large_or_may_change(kind: str, layout: str, writable: bool, tmp_path: Path) -> None:
    requires("nbdinfo")
    image = SUBFORMATS[kind].build(tmp_path, layout)
    with (
        vmdkit.open(image.path, writable=writable) as disk,
        Server(Export(disk, read_only=not writable), options=OPTIONS) as server,
    ):
        for context in ("base:allocation", "qemu:allocation-depth"):
            told = json.loads(run("nbdinfo", "--json", f"--map={context}", server.uri))
            ours = [tuple(extent) for extent in disk.extents(context=context)]
            assert [(run["offset"], run["length"], run["type"]) for run in told] == ours


def test_allocation_depth_of_a_chain(tmp_path: Path) -> None:
    requires("nbdinfo")
    links = [
        ("hosted", "64k:A 64k:A 64k:A 64k:-"),
        ("hosted", "64k:- 64k:B 64k:B 64k:-"),
        ("hosted", "128k:- 64k:C 64k:-"),
    ]
    image = images.chain(tmp_path, links)
    with vmdkit.open(image.path) as disk, Server(Export(disk), options=OPTIONS) as server:
        told = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", server.uri))
    assert [(run["offset"], run["length"], run["type"]) for run in told] == [
        (0, K64, 3), (K64, K64, 2), (2 * K64, K64, 1), (3 * K64, K64, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_qemu_img_reads(shelf: Shelf, name: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    server, built = shelf
    uri = server.uri_of(name)
    told = json.loads(run("qemu-img", "info", "--output=json", uri))
    assert (told["format"], told["virtual-size"]) == ("raw", built[name].size)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == whole(built[name])
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / "out.raw")


@pytest.mark.parametrize("name", NAMES)
def test_qemu_img_maps(shelf: Shelf, name: str) -> None:
    requires("qemu-img>=7")
    server, built = shelf
    told = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", server.uri_of(name)))
    assert sum(run["length"] for run in told) == built[name].size
    data = whole(built[name])
    for run_ in told:
        if run_["zero"]:
            assert not any(data[run_["start"] : run_["start"] + run_["length"]])
    with vmdkit.open(built[name].path) as disk:
        zeros = sum(extent.length for extent in disk.extents() if extent.flags & 2)
    assert sum(run_["length"] for run_ in told if run_["zero"]) == zeros


def test_qemu_nbd_lists(shelf: Shelf) -> None:
    requires("qemu-nbd>=7")
    server, _ = shelf
    told = run("qemu-nbd", "-L", "-k", server.path)
    assert "exports available: 3" in told
    for name in NAMES:
        assert f"export: '{name}'" in told
        assert f"description: a disk of {name}" in told


@pytest.mark.parametrize("filters", [(), ("--filter=blocksize",), ("--filter=cow",)])
def test_nbdkit_in_front(shelf: Shelf, filters: tuple[str, ...], tmp_path: Path) -> None:
    requires("nbdkit", "nbdcopy")
    server, built = shelf
    out = tmp_path / "out.raw"
    run("nbdkit", "-U", "-", *filters, "nbd", f"uri={server.uri_of('chain')}", "--run", f'nbdcopy "$uri" {out}')
    assert out.read_bytes() == whole(built["chain"])


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize(
    "words", [(), ("--connections=4",), ("--no-extents", "--synchronous"), ("--destination-is-zero",)]
)
def test_nbdcopy_writes(kind: str, words: tuple[str, ...], tmp_path: Path) -> None:
    requires("nbdcopy", "qemu-img>=7")
    if "--destination-is-zero" in words:  # a child over nothing reads as zero too
        image = images.chain(tmp_path, [(name, EMPTY) for name, _ in WRITABLE[kind]])
    else:
        image = build(kind, tmp_path)
    source = tmp_path / "source.raw"
    data = fill("n", 512 << 10, 0) + bytes(1 << 20) + fill("N", 2 << 20, 0)
    data = data.ljust(image.size, b"\0")
    with source.open("wb") as file:
        for at in range(0, len(data), K64):
            if any(data[at : at + K64]):
                file.seek(at)
                file.write(data[at : at + K64])
        file.truncate(len(data))
    with (
        vmdkit.open(image.path, writable=True) as disk,
        Server(Export(disk, read_only=False), options=OPTIONS) as server,
    ):
        run("nbdcopy", *words, "--flush", source, server.uri)
    judged(image, data, tmp_path)


@pytest.mark.parametrize("kind", WRITABLE)
def test_qemu_io_writes(kind: str, tmp_path: Path) -> None:
    requires("qemu-io>=7", "qemu-img>=7")
    image = build(kind, tmp_path)
    data = bytearray(whole(image))

    def put(value: int, offset: int, count: int) -> None:
        data[offset : offset + count] = bytes([value]) * count

    words = []
    for command, value, offset, count in [
        ("write -P 0x51 {} {}", 0x51, 0, 512),
        ("write -P 0x52 {} {}", 0x52, K64 - 512, 1024),
        ("write -f -P 0x53 {} {}", 0x53, 1 << 20, 70_144),
        ("aio_write -P 0x54 {} {}", 0x54, 2 << 20, 3 * K64),
        ("write -z {} {}", 0, 3 << 20, K64),
        ("write -z -u {} {}", 0, 32 << 10, 2 * K64),
        ("write -z -f {} {}", 0, 4 << 10, 512),
        ("write -P 0x55 {} {}", 0x55, image.size - 512, 512),
    ]:
        words += ["-c", command.format(offset, count)]
        put(value, offset, count)
    words += ["-c", "aio_flush", "-c", "flush"]
    with (
        vmdkit.open(image.path, writable=True) as disk,
        Server(Export(disk, read_only=False), options=OPTIONS) as server,
    ):
        told = run("qemu-io", "-f", "raw", server.uri, *words)
        assert "failed" not in told
        reads = ["read -P 0x53 1M 70144", f"read -P 0x55 {image.size - 512} 512"]
        told = run("qemu-io", "-f", "raw", "-r", server.uri, "-c", reads[0], "-c", reads[1])
        assert "failed" not in told
        assert bytes(disk.pread(disk.size, 0)) == bytes(data)
    judged(image, bytes(data), tmp_path)


@pytest.mark.parametrize("kind", WRITABLE)
def test_qemu_io_discards(kind: str, tmp_path: Path) -> None:
    requires("qemu-io>=7", "qemu-img>=7")
    image = build(kind, tmp_path)
    before = whole(image)
    with (
        vmdkit.open(image.path, writable=True) as disk,
        Server(Export(disk, read_only=False), options=OPTIONS) as server,
    ):
        told = run(
            "qemu-io", "-f", "raw", "-d", "unmap", server.uri,
            "-c", "discard 0 64k", "-c", "discard 2M 1M", "-c", "discard 100k 512", "-c", "flush",
        )  # fmt: skip
        assert "failed" not in told
        after = bytes(disk.pread(disk.size, 0))
    for offset, count in [(K64, 100 * 1024 - K64), (100 * 1024 + 512, (2 << 20) - 100 * 1024 - 512)]:
        assert after[offset : offset + count] == before[offset : offset + count]
    assert after[3 << 20 :] == before[3 << 20 :]
    judged(image, after, tmp_path)


@pytest.mark.parametrize("kind", WRITABLE)
def test_qemu_img_converts_onto_an_export(kind: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = build(kind, tmp_path)
    source = images.monolithic_flat(tmp_path, "1M:Q 1M:- 512k:r", name="source")
    with (
        vmdkit.open(image.path, writable=True) as disk,
        Server(Export(disk, read_only=False), options=OPTIONS) as server,
    ):
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source.parts[0].path, server.uri)
        after = bytes(disk.pread(disk.size, 0))
    assert after[: source.size] == whole(source)
    judged(image, after, tmp_path)


@pytest.mark.parametrize("kind", ["flat", "sparse", "child"])
@pytest.mark.parametrize("jobs", [1, 4])
def test_fio_verifies(kind: str, jobs: int, tmp_path: Path) -> None:
    requires("fio", "qemu-img>=7")
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no NBD engine")
    image = build(kind, tmp_path)
    with (
        vmdkit.open(image.path, writable=True) as disk,
        Server(Export(disk, read_only=False), options=OPTIONS) as server,
    ):
        run(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bsrange=4k-96k",
            "--bs_unaligned=0", "--iodepth=16", f"--numjobs={jobs}", "--size=1m", "--offset_increment=1m",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting", "--thread",
        )  # fmt: skip
        after = bytes(disk.pread(disk.size, 0))
    assert after[jobs << 20 :] == whole(image)[jobs << 20 :]
    judged(image, after, tmp_path)
