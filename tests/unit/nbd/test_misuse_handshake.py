# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Broken handshakes: framing that is lost closes the connection, everything else gets a reply."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import connect, serving

if TYPE_CHECKING:
    from nbdwire import Client
    from vmdkit.device import Device
    from vmdkit.nbd import Server


def test_unknown_client_flag_closes(client: Client) -> None:
    client.hello(flags=7)
    assert client.closed()


def test_old_client_without_flags_may_choose_an_export(client: Client) -> None:
    assert client.hello(flags=0) == 3
    client.send_option(n.EXPORT_NAME, b"")
    size, flags = struct.unpack(">QH", client.recv(10))
    assert client.recv(124) == bytes(124)
    assert size == 8 << 20
    assert flags & 2
    assert client.read(0, 16)


def test_wrong_option_magic_closes(client: Client) -> None:
    client.hello()
    client.send(struct.pack(">8sII", b"IHAVEOPS", n.LIST, 0))
    assert client.closed()


def test_unknown_option_is_unsupported(client: Client) -> None:
    client.hello()
    assert client.option(0x1234, b"x" * 100)[0] == n.UNSUP
    assert client.go() == n.ACK


def test_huge_option_is_refused_before_it_is_sent(client: Client) -> None:
    client.hello()
    client.send_option(n.GO, b"", length=0xFFFFFFFF)
    kind, text = client.option_reply(n.GO)
    assert kind == n.TOO_BIG
    assert b"65536" in text
    assert client.closed()


@pytest.mark.parametrize("option", [n.INFO, n.GO, n.LIST_META, n.SET_META])
def test_name_longer_than_4096(client: Client, option: int) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    kind, _, text = client.option(option, struct.pack(">I", 4097) + b"a" * 4097 + bytes(4))
    assert kind == n.INVALID
    assert "4096" in text


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0\0\0\5abc", struct.pack(">IH", 0, 3), struct.pack(">IH", 0, 0) + b"x"]
)
def test_malformed_go(client: Client, data: bytes) -> None:
    client.hello()
    assert client.option(n.GO, data)[0] == n.INVALID
    assert client.go() == n.ACK


def test_name_that_is_no_utf8(client: Client) -> None:
    client.hello()
    assert client.option(n.GO, struct.pack(">I", 2) + b"\xff\xfe" + b"\0\0")[0] == n.INVALID


def test_unknown_export(client: Client) -> None:
    client.hello()
    kind, _, text = client.option(n.GO, n.go("nothere"))
    assert kind == n.UNKNOWN
    assert "nothere" in text
    assert client.go() == n.ACK


def test_export_name_unknown_closes(client: Client) -> None:
    client.hello()
    client.send_option(n.EXPORT_NAME, b"nothere")
    assert client.closed()


@pytest.mark.parametrize("option", [n.LIST, n.STRUCTURED, n.EXTENDED, n.STARTTLS])
def test_data_where_none_belongs(client: Client, option: int) -> None:
    client.hello()
    assert client.option(option, b"x")[0] == n.INVALID


def test_starttls_without_tls(client: Client) -> None:
    client.hello()
    assert client.option(n.STARTTLS)[0] == n.POLICY
    assert client.go() == n.ACK


def test_structured_twice(client: Client) -> None:
    client.hello()
    assert client.option(n.STRUCTURED)[0] == n.ACK
    assert client.option(n.STRUCTURED)[0] == n.INVALID
    assert client.go() == n.ACK
    client.mode = 1
    assert client.alive()


def test_extended_then_structured(client: Client) -> None:
    client.hello()
    assert client.option(n.EXTENDED)[0] == n.ACK
    assert client.option(n.EXTENDED)[0] == n.INVALID
    assert client.option(n.STRUCTURED)[0] == n.EXT_REQD


def test_export_name_after_extended_closes(client: Client) -> None:
    client.hello()
    client.option(n.EXTENDED)
    client.send_option(n.EXPORT_NAME, b"")
    assert client.closed()


def test_abort_is_acknowledged(client: Client) -> None:
    client.hello()
    assert client.option(n.ABORT)[0] == n.ACK
    assert client.closed()


def test_abort_and_run(server: Server) -> None:
    for _ in range(20):  # as qemu-nbd -L
        with connect(server) as client:
            client.hello()
            client.send_option(n.ABORT)
    with connect(server) as client:
        assert client.enter().alive()


def test_option_flood_ends(client: Client) -> None:
    client.hello()
    for _ in range(256):
        assert client.option(n.LIST)[0] == n.ACK
    kind, _, _ = client.option(n.LIST)
    assert kind == n.TOO_BIG
    assert client.closed()


def test_unread_replies_do_not_pile_up(server: Server) -> None:
    with connect(server) as client:
        client.hello()
        client.send(struct.pack(">8sII", b"IHAVEOPT", n.LIST, 0) * 3000)
        with connect(server) as other:
            assert other.enter().alive()


def test_slow_loris_is_shown_out(device: Device) -> None:
    with serving(device, handshake_seconds=0.3) as server, connect(server) as client, connect(server) as silent:
        client.hello()
        begun = time.monotonic()
        client.send(b"IHAVEOP")
        assert client.closed()
        assert silent.recv(18)
        assert silent.closed()
        assert 0.2 < time.monotonic() - begun < 5
        with connect(server) as good:
            good.enter()
            time.sleep(0.7)
            assert good.alive()  # the limit is for handshakes


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_disconnect_at_any_byte(server: Server, cut: int) -> None:
    words = struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", n.STRUCTURED, 0)
    words += struct.pack(">8sII", b"IHAVEOPT", n.GO, 6) + n.go() + bytes(28)
    with connect(server) as client:
        client.send(words[:cut])
    with connect(server) as client:
        assert client.enter().alive()


def test_garbage(server: Server) -> None:
    for _ in range(20):
        with connect(server) as client:
            client.send(os.urandom(5000))
            client.recv(18)
            assert client.closed()


def test_too_many_clients_wait_for_their_turn(device: Device) -> None:
    from vmdkit.nbd import Export, Options, Server

    options = Options(spin=0, most_clients=2)
    with Server(Export(device), options=options) as server:
        import socket

        def come() -> Client:
            sock = socket.socket(socket.AF_UNIX)
            assert server.path is not None
            sock.connect(server.path)
            return n.Client(sock, 5)

        with come() as first, come() as second, come() as third:
            first.enter()
            second.enter()
            third.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                third.recv(1)
            first.sock.close()
            third.sock.settimeout(5)
            assert third.enter().alive()
