# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Sockets: who can open them, what is in their way, what their URI is, what is left of them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbdwire import Client
from vmdkit.errors import UsageError
from vmdkit.nbd import Export, Server, activation, listening
from vmdkit.nbd.uri import Transport, parse_uri
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_unix_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a b.sock"
    before = os.umask(0)
    try:
        listener = listening.unix(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not listener.open
    assert listener.path == str(path)
    assert listener.port is None
    assert listener.uri("my disk") == f"nbd+unix:///my%20disk?socket={str(path).replace(' ', '%20')}"
    assert listener.uri(tls=True).startswith("nbds+unix:///?socket=")
    listener.close()
    assert not path.exists()
    listener.close()


def test_private_directory() -> None:
    listener = listening.unix()
    assert listener.path is not None
    directory = Path(listener.path).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    listener.close()
    assert not directory.exists()


def test_a_socket_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
    listening.unix(path).close()
    assert not os.path.exists(path)


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    first = listening.unix(path)
    with pytest.raises(UsageError, match="choose another path"):
        listening.unix(path)
    first.close()
    Path(path).write_text("precious")
    with pytest.raises(UsageError, match="choose another path"):
        listening.unix(path)
    assert Path(path).read_text() == "precious"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        listening.unix(str(tmp_path / "nowhere" / "sock"))
    with pytest.raises(UsageError, match="107 bytes"):
        listening.unix("/tmp/" + "x" * 103)


def test_a_name_that_is_no_longer_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = listening.unix(str(path))
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.exists()


def test_tcp_binds_to_loopback() -> None:
    listener = listening.tcp(port=0)
    assert not listener.open
    assert listener.path is None
    assert listener.uri("x") == f"nbd://127.0.0.1:{listener.port}/x"
    with pytest.raises(OSError, match="in use"):
        listening.tcp(port=listener.port or 0)
    listener.close()


def test_tcp_that_others_can_reach_says_so() -> None:
    for host in ("0.0.0.0", ""):
        listener = listening.tcp(host, 0)
        assert listener.open
        listener.close()


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port: int) -> None:
    with pytest.raises(UsageError, match="no port"):
        listening.tcp(port=port)


def test_no_address() -> None:
    with pytest.raises(UsageError, match="no address of this machine"):
        listening.tcp("no such host.invalid", 0)


# ── socket activation ────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_was_passed() -> None:
    assert activation.activated({}) == []
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "y"}
    assert activation.activated(environment) == []
    assert environment == {"OTHER": "y"}  # meant for somebody else, and no child shall see it


@pytest.mark.parametrize("count", ["-1", "0", "x", "99999"])
def test_nonsense_was_passed(count: str) -> None:
    with pytest.raises(UsageError, match="LISTEN_FDS"):
        activation.activated({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_only_listening_sockets_are_taken() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(UsageError, match="no listening stream socket"):
        listening.inherited(ours.fileno())
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = listening.inherited(os.dup(server.fileno()))
        assert listener.port == server.getsockname()[1]
        listener.close()


# ── virtual machines ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def machine() -> Iterator[listening.Listener]:
    """A listener for vsock on a free port."""
    try:
        listener = listening.vsock(socket.VMADDR_PORT_ANY)
    except OSError as error:
        pytest.skip(f"this kernel has no vsock: {error}")
    yield listener
    listener.close()


def test_vsock_says_where_it_is_reached(machine: listening.Listener) -> None:
    uri = parse_uri(machine.uri("a b"))
    assert (uri.transport, uri.port, uri.export) == (Transport.VSOCK, machine.port, "a b")
    assert 2 <= int(uri.host) < socket.VMADDR_CID_ANY  # a host is 2, guests have 3 and more
    assert machine.open  # others than this user can connect
    assert machine.path is None


def test_vsock_serves(machine: listening.Listener) -> None:
    with MemoryDevice(1 << 20) as device, Server(Export(device), listener=machine):
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.settimeout(0.5)
        try:
            sock.connect((1, machine.port or 0))  # VMADDR_CID_LOCAL
        except OSError as error:
            sock.close()
            pytest.skip(f"this kernel has no vsock loopback (modprobe vsock_loopback): {error}")
        with Client(sock) as client:
            assert client.enter().read(4096, 512) == bytes(512)


def test_a_vsock_port_in_use() -> None:
    try:
        first = listening.vsock(socket.VMADDR_PORT_ANY)
    except OSError as error:
        pytest.skip(f"this kernel has no vsock: {error}")
    with pytest.raises(OSError, match=r"in use: 'vsock port \d+'"):
        listening.vsock(first.port or 0)
    first.close()
    with pytest.raises(UsageError, match="no vsock port"):
        listening.vsock(2**32)
