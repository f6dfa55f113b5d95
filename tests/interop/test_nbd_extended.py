# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Extended headers with a client of somebody else: qemu asks for them from 8.2 on.

Debian 12 has 7.2, so there these tests are left out, even where every other peer is required.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from require import version_of
from vmdkit.nbd import Export, Server
from vmdkit.storage.file import open_file
from vmdkit.units import GIB, KIB, MIB, TIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device

pytestmark = pytest.mark.skipif((version_of("qemu-io") or (0,)) < (8, 2), reason="qemu-io 8.2 is not installed")

SIZE = 8 * TIB
DATA = 5000 * MIB  # where 3 MiB of it are
ASKED = struct.pack(">8sII", b"IHAVEOPT", 11, 0)  # EXTENDED_HEADERS
MAGIC = bytes.fromhex("21e41c71")  # of an extended request


class Relay:
    """Stand between a client and a server, and keep what the client says first."""

    def __init__(self, path: str, server: Server) -> None:
        self.said = bytearray()
        self._server = server
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(8)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._threads.append(threading.Thread(target=self._pass, args=(client,), daemon=True))
                self._threads[-1].start()

    def _pass(self, client: socket.socket) -> None:
        with client, self._server.connect() as server, contextlib.suppress(OSError):
            other = {client: server, server: client}
            while True:
                for source in select.select(list(other), [], [])[0]:
                    piece = source.recv(MIB)
                    if not piece:
                        return
                    if source is client and len(self.said) < 16 * MIB:
                        self.said += piece
                    other[source].sendall(piece)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Device]:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(DATA)
        file.write(b"\x05" * 3 * MIB)
    with open_file(str(path), writable=True) as device:
        yield device


@contextlib.contextmanager
def relayed(disk: Device, tmp_path: Path, *, writable: bool) -> Iterator[tuple[str, Relay]]:
    path = str(tmp_path / "relay")
    with Server(Export(disk, read_only=not writable)) as server:
        relay = Relay(path, server)
        try:
            yield f"nbd+unix:///?socket={path}", relay
        finally:
            relay.close()
    assert ASKED in relay.said
    assert MAGIC in relay.said  # and got them


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_map_of_terabytes(disk: Device, tmp_path: Path) -> None:
    with relayed(disk, tmp_path, writable=False) as (uri, _):
        told = json.loads(run("qemu-img", "map", "--output=json", uri))
    assert [(run["start"], run["length"], run["data"]) for run in told] == [
        (0, DATA, False),
        (DATA, 3 * MIB, True),
        (DATA + 3 * MIB, SIZE - DATA - 3 * MIB, False),
    ]


def test_reading_and_writing(disk: Device, tmp_path: Path) -> None:
    steps = [
        f"read -P 5 {DATA} 3M", f"read -P 0 {DATA - 64 * KIB} 64k", f"read {DATA - MIB} 5M",
        "write -P 7 1G 64k", "write -f -P 8 1025M 3M", "read -P 7 1G 64k", "read -P 8 1025M 3M", "flush",
        f"write -z -n {DATA} 6G", f"read -P 0 {DATA} 3M", "discard 1G 1G", "aio_read -P 0 3T 64k", "aio_flush",
    ]  # fmt: skip
    words = [word for step in steps for word in ("-c", step)]
    with relayed(disk, tmp_path, writable=True) as (uri, relay):
        told = run("qemu-io", "-f", "raw", *words, uri)
        assert "fail" not in told.lower()
        # One request has zeroed what needs two with 32 bits.
        assert struct.pack(">QQ", DATA, 6 * GIB) in relay.said
    assert bytes(disk.pread(64 * KIB, DATA)) == bytes(64 * KIB)
