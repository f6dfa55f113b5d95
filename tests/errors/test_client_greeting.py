# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A peer that is no NBD server, or greets as none may."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from fakes.nbd_peer import EXPORT_NAME, FLAGS, GO, SIZE, Peer, device, playing
from vmdkit.errors import ConnectionLostError, RemoteProtocolError, UnsupportedError
from vmdkit.nbd import ClientOptions, connect

if TYPE_CHECKING:
    from fakes.nbd_peer import Script

CASES = {
    "http": (
        b"HTTP/1.1 400 Bad Request\r\n",
        r"liar: the server broke the protocol: it began with b'HTTP/1\.1'; an NBD server says b'NBDMAGIC'",
    ),
    "second": (b"NBDMAGIC" + bytes(8) + bytes(2), r"0x0000000000000000 follows NBDMAGIC"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n", r"an NBD server says"),
}


@pytest.mark.parametrize("name", CASES)
def test_no_greeting(name: str) -> None:
    said, message = CASES[name]

    def script(peer: Peer) -> None:
        peer.send(said)
        peer.until_gone()

    with pytest.raises(RemoteProtocolError, match=message), device(script):
        pass


@pytest.mark.parametrize("said", [b"", b"NBDM", b"NBDMAGICIHAVEOPT", b"NBDMAGICIHAVEOPT\0"])
def test_half_a_greeting(said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.send(said)

    with pytest.raises(ConnectionLostError, match="closed the connection during the handshake"), device(script):
        pass


def _old(size: int, flags: int) -> Script:
    def script(peer: Peer) -> None:
        peer.send(struct.pack(">8sQQHH", b"NBDMAGIC", 0x420281861253, size, 0, flags) + bytes(124))
        peer.serve(b"old" * 1000)

    return script


def test_the_old_handshake_is_understood() -> None:
    with device(_old(3000, FLAGS)) as opened:
        assert opened.pread(6, 3) == b"oldold"
        assert opened.facts()["protocol"] == "oldstyle"


def test_the_old_handshake_has_no_names() -> None:
    with playing(_old(3000, FLAGS)) as address, pytest.raises(UnsupportedError, match="cannot be asked for the export"):
        connect(address, export="x", options=ClientOptions())


@pytest.mark.parametrize(("size", "flags", "message"), [
    (2**63, FLAGS, r"an export of 9223372036854775808 bytes; more than 2\^63 - 1 cannot be"),
    (SIZE, FLAGS - 1, "without the one that says there are flags"),
])  # fmt: skip
def test_the_old_handshake_is_checked_too(size: int, flags: int, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message), device(_old(size, flags)):
        pass


def test_a_server_without_fixed_newstyle() -> None:
    """It is asked for nothing that it could not refuse."""
    options: list[int] = []

    def script(peer: Peer) -> None:
        assert peer.greet(0) == 0
        option, _ = peer.option()
        options.append(option)
        peer.send(struct.pack(">QH", SIZE, FLAGS) + bytes(124))
        peer.serve()

    with device(script) as opened:
        assert opened.pread(3, 0) == bytes(3)
    assert options == [EXPORT_NAME]


def test_go_is_not_known() -> None:
    """Then it is EXPORT_NAME, with structured replies all the same."""

    def script(peer: Peer) -> None:
        peer.greet(1)
        peer.haggle(GO)
        peer.reply(GO, 2**31 + 1)
        assert peer.option() == (EXPORT_NAME, b"")
        peer.send(struct.pack(">QH", SIZE, FLAGS) + bytes(124))
        peer.serve(b"x" * SIZE)

    with device(script) as opened:
        assert opened.pread(3, SIZE - 3) == b"xxx"
        assert opened.facts()["replies"] == "structured"
