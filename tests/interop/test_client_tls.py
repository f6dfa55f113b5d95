# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Our client and the TLS of servers that use GnuTLS, and of our own server."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import vmdkit
from nbdserver import certificates, listening, psk
from require import requires
from vmdkit.errors import ConnectionLostError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 16384  # 4 MiB
OURS = (sys.executable, "-m", "vmdkit.cli.main", "serve", "--raw", "-t")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("certtool")
    return certificates(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("psktool")
    return psk(tmp_path_factory.mktemp("keys") / "keys.psk")


@contextmanager
def running(tmp_path: Path, *command: str) -> Iterator[str]:
    """Run a server on a Unix socket (SOCK in the command) of a disk (DISK); gives the socket."""
    sock, disk = tmp_path / "nbd.sock", tmp_path / "disk.raw"
    disk.write_bytes(CONTENT)
    words = [word.replace("SOCK", str(sock)).replace("DISK", str(disk)) for word in command]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 15
            while not listening(sock):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            yield str(sock)
        finally:
            process.kill()


def with_certificates(server: str, pki: Path) -> tuple[str, ...]:
    return {
        "nbdkit": ("nbdkit", "-f", "-U", "SOCK", "--tls=require", f"--tls-certificates={pki}", "file", "DISK"),
        "qemu-nbd": (
            "qemu-nbd", "-t", "-e", "4", "-f", "raw", "-k", "SOCK", "--tls-creds=t", "--object",
            f"tls-creds-x509,id=t,endpoint=server,verify-peer=no,dir={pki}", "DISK",
        ),
        "ours": (*OURS, "-U", "SOCK", "--tls-certificates", str(pki), "DISK"),
    }[server]  # fmt: skip


def with_keys(server: str, keys: Path) -> tuple[str, ...]:
    return {
        "nbdkit": ("nbdkit", "-f", "-U", "SOCK", "--tls=require", f"--tls-psk={keys}", "file", "DISK"),
        "qemu-nbd": (
            "qemu-nbd", "-t", "-e", "4", "-f", "raw", "-k", "SOCK", "--tls-creds=t", "--object",
            f"tls-creds-psk,id=t,endpoint=server,dir={keys.parent}", "DISK",
        ),
        "ours": (*OURS, "-w", "-U", "SOCK", "--tls-psk", str(keys), "DISK"),
    }[server]  # fmt: skip


SERVERS = ["nbdkit", "qemu-nbd", "ours"]


@pytest.mark.parametrize("server", SERVERS)
def test_certificates(server: str, pki: Path, tmp_path: Path) -> None:
    if server != "ours":
        requires(server)
    with running(tmp_path, *with_certificates(server, pki)) as sock:
        uri = f"nbds+unix:///?socket={sock}"
        with vmdkit.open(uri, tls_certificates=str(pki)) as disk:
            assert disk.pread(disk.size, 0) == CONTENT
        with vmdkit.open(f"{uri}&tls-certificates={pki}&tls-hostname=localhost") as disk:
            assert disk.pread(100, 5) == CONTENT[5:105]
        with pytest.raises(ConnectionLostError, match="Hostname mismatch"):
            vmdkit.open(f"{uri}&tls-certificates={pki}&tls-hostname=example.com")
        with pytest.raises(ConnectionLostError, match="TLS handshake failed"):
            vmdkit.open(uri)
        with pytest.raises(ReplyError, match="nbds://"):
            vmdkit.open(f"nbd+unix:///?socket={sock}")


@pytest.mark.parametrize("server", SERVERS)
def test_shared_keys(server: str, keys: Path, tmp_path: Path) -> None:
    if server != "ours":
        requires(server)
    wrong = psk(tmp_path / "wrong.psk")
    (tmp_path / "keys.psk").write_text(keys.read_text())  # what qemu looks for in its directory
    with running(tmp_path, *with_keys(server, keys)) as sock:
        uri = f"nbds+unix://alice@/?socket={sock}"
        with vmdkit.open(uri, tls_psk=str(keys), writable=True) as disk:
            assert disk.pread(disk.size, 0) == CONTENT
            disk.pwrite(b"secret", 1000)
            disk.flush()
        with vmdkit.open(f"{uri}&tls-psk-file={keys}") as disk:
            assert disk.pread(8, 999) == CONTENT[999:1000] + b"secret" + CONTENT[1006:1007]
        with pytest.raises(ConnectionLostError, match="TLS handshake failed"):
            vmdkit.open(uri, tls_psk=str(wrong))
