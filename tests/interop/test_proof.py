# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Digests, comparisons and proofs beside other programs' disks and servers, honest ones and others."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import witness
from require import requires
from vmdkit.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 5 << 20
SUBFORMATS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]


def ours(*words: Any, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vmdkit.cli.main", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if not code else done.stdout + done.stderr


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("qemu-img>=7", "qemu-nbd")
    path = tmp_path_factory.mktemp("proof") / "disk.raw"
    dice = random.Random(4)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(12):
            file.seek(dice.randrange(SIZE // 4096) * 4096)
            file.write(dice.randbytes(dice.choice((4096, 70000, 200000)))[: SIZE - file.tell()])
    return path


@contextmanager
def served(tmp_path: Path, *command: Any) -> Iterator[str]:
    """Give the URI of a server that is told its socket as ``{socket}``; end it afterwards."""
    socket = tmp_path / "sock"
    words = [str(word).format(socket=socket) for word in command]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                if socket.exists() or process.poll() is not None:
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.05)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            process.terminate()


def qemu_nbd(path: Path, kind: str) -> tuple[Any, ...]:
    return ("qemu-nbd", "--read-only", "--persistent", "--shared=4", f"--format={kind}", "--socket={socket}", path)


def nbdkit(*words: str) -> tuple[str, ...]:
    requires("nbdkit")
    return ("nbdkit", "--foreground", "--unix={socket}", *words)


# ── one content, one digest ──────────────────────────────────────────────────────────────────────────────────────


def test_every_subformat_and_every_server_has_one_digest(disk: Path, tmp_path: Path) -> None:
    expected = f"tree-sha256-64k:{witness.tree_hash(disk.read_bytes())}"
    digests = {"raw": ours("hash", "--raw", disk)}
    for kind in SUBFORMATS:
        path = tmp_path / f"{kind}.vmdk"
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", disk, path], check=True
        )
        digests[kind] = ours("hash", path)
        digests[f"{kind}, all read"] = ours("hash", "--read-all", path)
    for kind in ("qcow2", "vdi", "vpc"):
        path = tmp_path / f"disk.{kind}"
        options = ["-o", "force_size=on"] if kind == "vpc" else []
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *options, disk, path], check=True)
        (tmp_path / "sock").unlink(missing_ok=True)
        with served(tmp_path, *qemu_nbd(path, kind)) as uri:
            digests[kind] = ours("hash", uri)
    assert {kind: text.split()[0] for kind, text in digests.items()} == dict.fromkeys(digests, expected)


def test_flat_is_what_sha256sum_prints(disk: Path, tmp_path: Path) -> None:
    requires("sha256sum")
    path = tmp_path / "disk.vmdk"
    ours("convert", "--raw", disk, "-O", "streamOptimized", path)
    told = subprocess.run(["sha256sum", disk], capture_output=True, text=True, check=True).stdout
    assert ours("hash", "--flat", path).split()[0] == told.split()[0]
    (tmp_path / "sums").write_text(told)
    assert ours("hash", "--raw", "--check", tmp_path / "sums") == f"{disk}: OK\n"


def test_a_leaf_is_what_sha256sum_prints(disk: Path, tmp_path: Path) -> None:
    ours("convert", "--raw", disk, tmp_path / "new.raw", "--report", tmp_path / "report")
    spans = json.loads((tmp_path / "report").read_text())["digests"]["spans"]
    content = disk.read_bytes()
    for index, digest in spans.items():
        block = content[int(index) * 65536 : (int(index) + 1) * 65536]
        assert hashlib.sha256(block).hexdigest() == digest
    assert spans


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_comparing_over_nbd(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.vmdk"
    ours("convert", "--raw", disk, "-O", "monolithicSparse", other)
    with served(tmp_path, *qemu_nbd(other, "vmdk")) as uri:
        assert ours("compare", "--raw-b", uri, disk) == "Images are identical.\n"
        assert ours("compare", "--raw-a", disk, uri) == "Images are identical.\n"
        assert ours("compare", uri, uri) == "Images are identical.\n"
        changed = tmp_path / "changed.raw"
        content = bytearray(disk.read_bytes())
        content[3_000_000] ^= 1
        changed.write_bytes(content)
        assert ours("compare", "--raw-b", uri, changed, code=1) == "Content mismatch at offset 3000000!\n"
        ranges = json.loads(ours("compare", "--raw-b", "--all", "--json", uri, changed, code=1))["ranges"]
        assert ranges == [{"offset": 3_000_000 // 512 * 512, "length": 512}]
    assert ours("compare", "--raw-b", uri, disk, code=2)


def test_comparing_with_a_server_that_fails(disk: Path, tmp_path: Path) -> None:
    command = nbdkit("--filter=error", "file", str(disk), "error-pread=EIO", "error-pread-rate=100%")
    with served(tmp_path, *command) as uri:
        text = ours("compare", "--raw-b", uri, disk, code=4)
    assert uri in text
    assert "of the disk" in text


def test_digesting_from_a_server_that_fails(disk: Path, tmp_path: Path) -> None:
    command = nbdkit("--filter=error", "file", str(disk), "error-pread=EIO", "error-pread-rate=100%")
    with served(tmp_path, *command) as uri:
        text = ours("hash", uri, code=1)
    assert " bytes at 0x" in text


# ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values()])
def test_qemu_reads_what_was_written(kind: str, disk: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    ours("convert", "--raw", disk, "-O", kind, tmp_path / "new.vmdk", "--verify=qemu", "--report", report)
    found = json.loads(report.read_text())
    assert found["verdict"] == "equal"
    assert found["reading"]["reader"].endswith("vmdkit's second reader, then qemu-nbd")
    assert found["tools"]["qemu-nbd"].startswith(("7.", "8.", "9.", "1"))


def test_copying_to_a_server(disk: Path, tmp_path: Path) -> None:
    with served(tmp_path, *nbdkit("memory", str(SIZE))) as uri:
        text = ours("copy", "--raw-source", disk, uri, "--verify=full", "--json")
        found = json.loads(text)
        assert (found["verdict"], found["destination"]["format"]) == ("equal", "nbd")
        assert found["reading"] == {"reader": "vmdkit", "trust": "every byte was read; by a new connection"}
        assert ours("copy", "--raw-source", disk, uri, "--verify=qemu", code=1).startswith(f"vmdkit: {uri}: qemu")


def test_copying_from_a_server(disk: Path, tmp_path: Path) -> None:
    with served(tmp_path, *qemu_nbd(disk, "raw")) as uri:
        report = tmp_path / "report"
        ours("convert", uri, "-O", "streamOptimized", tmp_path / "new.vmdk", "--report", report)
        assert json.loads(report.read_text())["source"]["name"] == uri
        assert ours("hash", "--check", report, uri) == f"{uri}: OK\n"


LIARS = {
    "that drops what is written": ("pwrite=cat >/dev/null", "zero=exit 0"),
    "that drops zeros": ("pwrite=dd of=$tmpdir/disk conv=notrunc oflag=seek_bytes seek=$4 status=none", "zero=exit 0"),
}


@pytest.mark.parametrize("liar", LIARS)
def test_a_server_that_lies_is_found_out(liar: str, disk: Path, tmp_path: Path) -> None:
    command = nbdkit(
        "eval",
        f"after_fork=head -c {SIZE} /dev/zero | tr '\\0' x > $tmpdir/disk",
        f"get_size=echo {SIZE}",
        "pread=dd if=$tmpdir/disk iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none",
        "can_write=exit 0",
        "can_zero=exit 0",
        "can_flush=exit 0",
        "flush=exit 0",
        *LIARS[liar],
    )
    with served(tmp_path, *command) as uri:
        text = ours("copy", "--raw-source", disk, uri, "--verify", code=3)
    assert "it is not what its source holds: byte " in text
    assert "it stays as it is written" in text


def test_only_full_finds_out_a_server_whose_map_lies(tmp_path: Path) -> None:
    """It says that all is a hole: a source that is copied, and digested, as nothing."""
    command = nbdkit(
        "eval",
        "get_size=echo 65536",
        "pread=head -c $3 /dev/zero | tr '\\0' x",
        "can_extents=exit 0",
        "extents=echo 0 65536 hole,zero",
    )
    with served(tmp_path, *command) as uri:
        assert ours("convert", uri, tmp_path / "a.raw", "--verify").startswith("proved equal")
        text = ours("convert", uri, tmp_path / "b.raw", "--verify=full", code=3)
    assert "byte 0 is 0x00, not 0x78" in text
    assert not (tmp_path / "b.raw").exists()
