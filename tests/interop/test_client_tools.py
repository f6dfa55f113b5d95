# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Our client, and what nbdinfo and nbdcopy say of the same servers; the command line at NBD addresses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

import vmdkit
from layout import fill
from nbdserver import listening
from require import requires
from vmdkit.nbd import ActivatedAddress, CommandAddress, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB: Final = 1 << 20
OURS: Final = (sys.executable, "-m", "vmdkit.cli.main")
SERVERS: Final = {
    "qemu": ("qemu-nbd", "-t", "-e", "8", "-r", "-f", "raw", "-x", "a b", "-D", "some text", "-k", "SOCK", "DISK"),
    "qemu-writable": ("qemu-nbd", "-t", "-e", "8", "-f", "raw", "--discard=unmap", "-k", "SOCK", "DISK"),
    "nbdkit": ("nbdkit", "-f", "-U", "SOCK", "file", "DISK"),
    "nbdkit-simple": ("nbdkit", "-f", "--no-sr", "-U", "SOCK", "file", "DISK"),
    "nbdkit-noextents": ("nbdkit", "-f", "--filter=noextents", "-U", "SOCK", "file", "DISK"),
    "nbdkit-cow": ("nbdkit", "-f", "--filter=cow", "-U", "SOCK", "file", "DISK"),
    "nbdkit-slow": ("nbdkit", "-f", "--filter=delay", "-U", "SOCK", "file", "DISK", "rdelay=1ms"),
    "nbdkit-blocks": (
        "nbdkit", "-f", "--filter=blocksize-policy", "-U", "SOCK", "file", "DISK", "blocksize-minimum=512",
        "blocksize-preferred=65536", "blocksize-maximum=1M", "blocksize-error-policy=error",
    ),
    "ours": (*OURS, "serve", "--raw", "-t", "-w", "-U", "SOCK", "DISK"),
}  # fmt: skip


def content() -> bytes:
    return bytes(MIB) + fill("A", MIB, 0) + bytes(3 * MIB) + fill("B", MIB, 0) + bytes(MIB)


@contextmanager
def running(tmp_path: Path, server: str) -> Iterator[str]:
    requires("nbdinfo", "nbdcopy", "qemu-nbd" if "qemu" in server else "nbdkit")
    sock, disk = tmp_path / "nbd.sock", tmp_path / "disk.raw"
    with disk.open("wb") as file:
        for at in range(0, 7 * MIB, MIB):
            piece = content()[at : at + MIB]
            file.seek(at)
            if any(piece):
                file.write(piece)
        file.truncate(7 * MIB)
    words = [{"SOCK": str(sock), "DISK": str(disk)}.get(word, word) for word in SERVERS[server]]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 15
            while not listening(sock):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            name = "a%20b" if server == "qemu" else ""
            yield f"nbd+unix:///{name}?socket={sock}"
        finally:
            process.kill()


def told(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize("server", SERVERS)
def test_what_servers_say(server: str, tmp_path: Path) -> None:
    with running(tmp_path, server) as uri:
        theirs = told("nbdinfo", "--json", uri)
        export = theirs["exports"][0]
        mapped = told("nbdinfo", "--json", "--map", uri) if "contexts" in export else []
        with vmdkit.open(uri) as disk:
            facts = disk.facts()  # type: ignore[attr-defined]
            extents = [tuple(extent) for extent in disk.extents()]
            read = disk.pread(disk.size, 0)
    assert facts["protocol"] == theirs["protocol"]
    assert facts["tls"] == (theirs["TLS"] is True)
    assert (facts["replies"] != "simple") == theirs["structured"]
    assert facts["size"] == export["export-size"]
    assert facts["description"] == export.get("description")
    assert facts["contexts"] == export.get("contexts", [])
    for key in facts:
        if key.startswith(("is_", "can_")):
            assert facts[key] == export[key], key
        elif key.startswith("block_size_"):
            assert facts[key] == export.get(key), key
    assert extents == [(row["offset"], row["length"], row["type"]) for row in mapped] or not mapped
    assert read == content()


@pytest.mark.parametrize("server", ["qemu-writable", "nbdkit", "nbdkit-cow", "nbdkit-blocks", "ours"])
def test_what_we_write_they_read(server: str, tmp_path: Path) -> None:
    expected = bytearray(content())
    with running(tmp_path, server) as uri:
        with vmdkit.open(uri, writable=True) as disk:
            for offset, data in ((1, b"one"), (MIB - 3, b"x" * 7000), (5 * MIB + 777, bytes(5000))):
                disk.pwrite(data, offset, fua=offset == 1)
                expected[offset : offset + len(data)] = data
            disk.zero(100_000, MIB + 5)
            disk.zero(4096, 2 * MIB - 8192, no_hole=True)
            expected[MIB + 5 : MIB + 5 + 100_000] = bytes(100_000)
            expected[2 * MIB - 8192 : 2 * MIB - 4096] = bytes(4096)
            disk.flush()
        copy = tmp_path / "copy.raw"
        subprocess.run(["nbdcopy", uri, str(copy)], check=True, timeout=60)
    assert copy.read_bytes() == expected


def test_a_copy_from_server_to_server(tmp_path: Path) -> None:
    """sparse-random checks every byte that is written into it, and refuses a wrong one."""
    requires("nbdkit>=1.26")
    source = connect(CommandAddress(["nbdkit", "-s", "sparse-random", "64M", "seed=1", "percent=30"]))
    words = ["nbdkit", "sparse-random", "64M", "seed=1", "percent=30"]
    from vmdkit.ops.copy import copy

    with source, connect(ActivatedAddress(words), writable=True) as destination:
        copy(source, destination)


def test_a_dirty_bitmap(tmp_path: Path) -> None:
    requires("qemu-img", "qemu-nbd", "qemu-io", "nbdinfo")
    image, context = str(tmp_path / "disk.qcow2"), "qemu:dirty-bitmap:changes"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", image, "changes"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 1M 64k", image], check=True, capture_output=True)
    with connect(ActivatedAddress(["qemu-nbd", "-r", "-A", "-f", "qcow2", "-B", "changes", image])) as disk:
        assert set(disk.contexts) == {"base:allocation", "qemu:allocation-depth", context}
        assert [tuple(run) for run in disk.extents(context=context)] == [
            (0, MIB, 0), (MIB, 65536, 1), (MIB + 65536, 7 * MIB - 65536, 0),
        ]  # fmt: skip
        assert [tuple(run) for run in disk.extents(2 * MIB, context="qemu:allocation-depth")][1] == (MIB, 65536, 1)


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────


def vmdkit_says(*words: str, code: int = 0) -> str:
    done = subprocess.run([*OURS, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_verbs_take_addresses(tmp_path: Path) -> None:
    with running(tmp_path, "nbdkit") as uri:
        disk, copy = str(tmp_path / "disk.raw"), str(tmp_path / "copy.raw")
        assert "size:                 7 MiB (7340032 bytes)" in vmdkit_says("info", uri)
        assert json.loads(vmdkit_says("info", "--json", uri))["can_multi_conn"] is True
        assert json.loads(vmdkit_says("map", "--nbd-json", uri)) == told("nbdinfo", "--json", "--map", uri)
        assert vmdkit_says("hash", uri).split()[0] == vmdkit_says("hash", "--raw", disk).split()[0]
        assert "identical" in vmdkit_says("compare", "--raw-b", uri, disk)
        vmdkit_says("convert", "-O", "raw", uri, copy)
        with open(copy, "rb") as file:
            assert file.read() == content()
        listed = json.loads(vmdkit_says("info", "--list", "--json", uri))
        assert [(each["export"], each["size"]) for each in listed] == [("", 7 * MIB)]
        assert "untrusted" in vmdkit_says("info", "--untrusted", uri, code=1)


def test_the_list_of_exports(tmp_path: Path) -> None:
    with running(tmp_path, "qemu") as uri:
        text = vmdkit_says("info", "--list", uri)
        assert "export:               a b" in text
        assert "description:          some text" in text
        assert "--list is for the address of an NBD server" in vmdkit_says("info", "--list", "x.vmdk", code=1)


def test_a_server_of_a_server(tmp_path: Path) -> None:
    """What we read from nbdkit we serve to nbdcopy."""
    with running(tmp_path, "nbdkit") as uri:
        copy = tmp_path / "copy.raw"
        vmdkit_says("serve", uri, "--run", f'nbdcopy "$uri" {copy}')
        assert copy.read_bytes() == content()
