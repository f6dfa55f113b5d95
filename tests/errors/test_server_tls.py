# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Clients that try to get around TLS, or misuse it (users spec, A12 and A13)."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdserver import certificates
from nbdwire import Client, connect, serving
from require import requires
from vmdkit.nbd import with_certificates
from vmdkit.nbd.negotiation import TlsMode
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device
    from vmdkit.nbd import Server

BASE = "base:allocation"
MIB = 1 << 20
STARTTLS, STRUCTURED = (struct.pack(">8sII", b"IHAVEOPT", number, 0) for number in (n.STARTTLS, n.STRUCTURED))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("certtool")
    return certificates(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture
def strict(pki: Path, device: Device) -> Iterator[Server]:
    """Serve with TLS only."""
    with serving(device, tls=with_certificates(str(pki)), handshake_seconds=2.0) as server:
        yield server


@pytest.fixture
def lenient(pki: Path, device: Device) -> Iterator[Server]:
    """Leave TLS to the client, which must be asked for on purpose."""
    with serving(device, tls=with_certificates(str(pki), mode=TlsMode.ON), handshake_seconds=2.0) as server:
        yield server


def trusting(pki: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    context.check_hostname = False
    return context


def secure(client: Client, pki: Path) -> Client:
    """Go over to TLS."""
    assert client.option(n.STARTTLS)[0] == n.ACK
    client.sock = trusting(pki).wrap_socket(client.sock)
    return client


def client_hello(pki: Path) -> bytes:
    """Return what a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting(pki).wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def drained(sock: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    data = bytearray()
    try:
        while piece := sock.recv(4096):
            data += piece
    except ConnectionError:
        pass
    return bytes(data)


@pytest.mark.parametrize("option", [n.LIST, n.INFO, n.GO, n.STRUCTURED, n.LIST_META, n.SET_META, n.EXTENDED, 77])
def test_nothing_goes_without_tls(strict: Server, option: int) -> None:
    with connect(strict) as client:
        client.hello()
        kind, found, text = client.option(option, n.go() if option in (n.GO, n.INFO) else b"")
        assert (kind, found, text) == (n.TLS_REQD, [], "this server speaks with TLS clients only")
        assert client.option(n.ABORT)[0] == n.ACK
        assert client.closed()


def test_export_name_without_tls(strict: Server) -> None:
    with connect(strict) as client:
        client.hello()
        client.send_option(n.EXPORT_NAME)
        assert client.closed()


def test_requests_without_tls(strict: Server) -> None:
    with connect(strict) as client:
        client.hello()
        client.send_option(n.GO, n.go())
        client.send(client.header(n.READ, 0, 512))
        assert client.option_reply(n.GO)[0] == n.TLS_REQD
        assert client.closed()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_every_byte_comes_through(strict: Server, pki: Path, content: bytes, mode: int) -> None:
    with connect(strict) as client:
        client.hello()
        secure(client, pki)
        if mode:
            assert client.option(n.STRUCTURED if mode == 1 else n.EXTENDED)[0] == n.ACK
            client.mode = mode
        assert client.go() == n.ACK
        for offset, length in [(0, 1), (MIB - 5, 10), (5, 70_000), (0, 8 * MIB), (3 * MIB, 200_000)]:
            assert client.read(offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("first", [n.STRUCTURED, n.EXTENDED])
def test_what_was_agreed_before_tls_is_forgotten(lenient: Server, pki: Path, first: int) -> None:
    with connect(lenient) as client:
        client.hello()
        assert client.option(first)[0] == n.ACK
        assert client.set_context(BASE)[0] == n.ACK
        secure(client, pki)
        assert client.set_context(BASE)[0] == n.INVALID  # contexts need structured replies
        assert client.option(n.STRUCTURED)[0] == n.ACK  # as if for the first time
        client.mode = 1
        assert client.go() == n.ACK
        assert client.request(n.STATUS, 0, 512).error == n.EINVAL  # none was selected since
        assert client.alive()


def test_replies_are_simple_again_after_tls(lenient: Server, pki: Path, content: bytes) -> None:
    with connect(lenient) as client:
        client.hello()
        client.option(n.EXTENDED)
        secure(client, pki)
        assert client.go() == n.ACK
        assert client.mode == 0
        assert client.read(0, 100) == content[:100]


def test_a_client_may_go_without_tls_where_that_was_allowed(lenient: Server, content: bytes) -> None:
    with connect(lenient) as client:
        assert client.enter().read(0, 100) == content[:100]


@pytest.mark.parametrize(
    "behind", [STARTTLS, b"\0", b"\x16\x03\x01", struct.pack(">8sII", b"IHAVEOPT", n.STRUCTURED, 0)]
)
def test_plain_bytes_behind_starttls(lenient: Server, behind: bytes) -> None:
    with connect(lenient) as client:
        client.hello()
        client.send(STARTTLS + behind)
        assert client.closed()  # not even acknowledged


def test_a_client_hello_sent_too_early(lenient: Server, pki: Path) -> None:
    with connect(lenient) as client:
        client.hello()
        client.send(STARTTLS + client_hello(pki))
        assert client.closed()


@pytest.mark.parametrize("words", [struct.pack(">8sII", b"IHAVEOPT", n.LIST, 0), b"\0" * 100, b"\xff" * 20_000])
def test_no_tls_after_starttls(lenient: Server, words: bytes) -> None:
    with connect(lenient) as client:
        client.hello()
        assert client.option(n.STARTTLS)[0] == n.ACK
        client.send(words)
        assert b"IHAVEOPT" not in drained(client.sock)  # perhaps an alert, then the end


def test_starttls_inside_tls(strict: Server, pki: Path) -> None:
    with connect(strict) as client:
        client.hello()
        secure(client, pki)
        assert client.option(n.STARTTLS) == (n.INVALID, [], "TLS is in use already")
        assert client.go() == n.ACK


def test_disconnect_inside_the_tls_handshake(strict: Server, pki: Path) -> None:
    words = client_hello(pki)
    for cut in (0, 1, 4, 5, 6, 50, len(words) - 1, len(words)):
        with connect(strict) as client:
            client.hello()
            assert client.option(n.STARTTLS)[0] == n.ACK
            client.send(words[:cut])


@pytest.mark.parametrize("part", [0, 1, 100])
def test_a_tls_handshake_that_stalls(pki: Path, device: Device, part: int) -> None:
    with (
        serving(device, tls=with_certificates(str(pki)), handshake_seconds=0.3) as server,
        connect(server) as client,
    ):
        client.hello()
        assert client.option(n.STARTTLS)[0] == n.ACK
        begun = time.monotonic()
        client.send(client_hello(pki)[:part])
        assert client.closed()
        assert time.monotonic() - begun < 3


def test_a_tls_client_that_stalls_as_nbd_client(pki: Path, device: Device) -> None:
    with (
        serving(device, tls=with_certificates(str(pki)), handshake_seconds=0.3) as server,
        connect(server) as client,
    ):
        client.hello()
        secure(client, pki)
        assert client.closed()


def test_a_client_without_the_certificate_that_is_due(pki: Path, device: Device) -> None:
    with (
        serving(device, tls=with_certificates(str(pki), verify_peer=True)) as server,
        connect(server) as client,
    ):
        client.hello()
        with pytest.raises((ssl.SSLError, n.Closed, ConnectionError)):
            secure(client, pki).go()


def test_a_write_that_is_cut_off(pki: Path) -> None:
    with MemoryDevice(8 * MIB) as device, serving(device, writable=True, tls=with_certificates(str(pki))) as server:
        for sent in (10, 28, 5000, 1_500_000):
            with connect(server) as client:
                client.hello()
                secure(client, pki)
                client.go()
                client.send((client.header(n.WRITE, 4 * MIB, 3 * MIB) + b"w" * 3 * MIB)[:sent])
        assert not any(device.pread(4 * MIB, 0))


def test_a_record_with_a_wrong_sum(strict: Server, pki: Path) -> None:
    with connect(strict) as client:
        plain = client.sock
        client.hello()
        secure(client, pki)
        assert client.go() == n.ACK
        with socket.socket(fileno=client.sock.detach()) as bare:
            bare.settimeout(5)
            bare.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
            assert len(drained(bare)) < 100  # an alert
        plain.close()


def test_a_client_that_takes_nothing(strict: Server, pki: Path) -> None:
    with connect(strict) as greedy, connect(strict) as other:
        greedy.hello()
        secure(greedy, pki)
        greedy.go()
        greedy.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            greedy.send(greedy.header(n.READ, 0, 8 * MIB) * 100_000)
        other.hello()
        secure(other, pki)
        other.go()
        begun = time.monotonic()
        for at in range(20):
            other.read(at * 4096, 4096)
        assert time.monotonic() - begun < 3
