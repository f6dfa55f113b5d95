# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Servers, and men in the middle, that try to get around TLS (users spec, A12 and A13)."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nbd_peer import ACK, FLAGS, GO, POLICY, SIZE, STARTTLS, UNSUP, Gone, Peer, device
from nbdserver import certificates, psk
from require import requires
from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError, UsageError
from vmdkit.nbd import ClientOptions, connect, with_psk
from vmdkit.nbd.client_tls import ClientTls
from vmdkit.nbd.client_tls import with_certificates as trusting
from vmdkit.nbd.client_tls import with_psk as knowing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BROKEN_TLS = (ConnectionLostError, "the TLS handshake failed")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("certtool")
    return certificates(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("certtool")
    return certificates(tmp_path_factory.mktemp("other") / "pki")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("psktool")
    return psk(tmp_path_factory.mktemp("keys") / "keys.psk")


def server_context(pki: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server-cert.pem", pki / "server-key.pem")
    return context


def secured(
    context: ssl.SSLContext, then: Callable[[Peer], None] = Peer.serve, seen: list[int] | None = None
) -> Callable[[Peer], None]:  # fmt: skip
    """Go over to TLS as a good server, shake hands, and ``then``."""

    def script(peer: Peer) -> None:
        peer.greet()
        option, _ = peer.option()
        assert option == STARTTLS
        peer.reply(STARTTLS, ACK)
        try:
            peer.sock = context.wrap_socket(peer.sock, server_side=True)
        except OSError as error:
            raise Gone from error
        with peer.sock:
            try:
                peer.haggle(GO)
                peer.info(GO)
                peer.reply(GO, ACK)
                then(peer)
            finally:
                if seen is not None:
                    seen.extend(peer.options)

    return script


def refused(script: Callable[[Peer], None], tls: ClientTls, error: type[Exception], message: str, **other: Any) -> None:
    with pytest.raises(error, match=message), device(script, tls=tls, **other):
        pass


def test_a_good_server(pki: Path) -> None:
    seen: list[int] = []
    with device(
        secured(server_context(pki), lambda peer: peer.serve(b"x" * SIZE), seen), tls=trusting(str(pki))
    ) as opened:
        assert opened.pread(SIZE, 0) == b"x" * SIZE
        opened.pwrite(bytes(1 << 20), 0)
        assert opened.facts()["tls"] is True
    assert seen[0] == STARTTLS


@pytest.mark.parametrize("kind", [UNSUP, POLICY])
def test_no_downgrade(pki: Path, kind: int) -> None:
    """The server has no TLS, or somebody says so in its name: nothing else is said, in the clear least of all."""
    seen: list[int] = []

    def script(peer: Peer) -> None:
        peer.greet()
        seen.append(peer.option()[0])
        peer.reply(seen[0], kind)
        peer.info(GO)
        peer.reply(GO, ACK)
        seen.append(peer.option()[0])

    refused(script, trusting(str(pki)), ReplyError, "the server refused TLS, without which nothing will be said")
    assert seen == [STARTTLS]


def test_no_downgrade_by_age(pki: Path) -> None:
    def script(peer: Peer) -> None:
        peer.greet(0)
        peer.until_gone()

    refused(script, trusting(str(pki)), RemoteProtocolError, "TLS is wanted, and this server is too old for it")


def test_words_before_tls_count_for_nothing(pki: Path) -> None:
    """Answers slipped in behind the agreement, in the clear: they are no TLS, and the connection ends."""

    def script(peer: Peer) -> None:
        peer.greet()
        peer.option()
        peer.reply(STARTTLS, ACK)
        peer.info(GO, size=1 << 40, flags=FLAGS)
        peer.reply(GO, ACK)
        peer.until_gone()

    refused(script, trusting(str(pki)), *BROKEN_TLS)


def test_a_certificate_of_somebody_else(pki: Path, stranger: Path) -> None:
    refused(
        secured(server_context(stranger)), trusting(str(pki)), ConnectionLostError, "the TLS handshake failed: .*cert"
    )


def test_a_certificate_for_another_name(pki: Path) -> None:
    tls = trusting(str(pki), hostname="example.com")
    refused(secured(server_context(pki)), tls, ConnectionLostError, "the TLS handshake failed: Hostname mismatch")


def test_only_the_systems_authorities_without_a_directory(pki: Path) -> None:
    refused(secured(server_context(pki)), trusting(None), ConnectionLostError, "the TLS handshake failed")


def test_old_versions_of_tls(pki: Path) -> None:
    context = server_context(pki)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    refused(secured(context), trusting(str(pki)), *BROKEN_TLS)


def test_a_certificate_in_the_place_of_a_key(pki: Path, keys: Path) -> None:
    """A server that does not know the key shows a certificate; in TLS 1.3 both could lead to a session."""
    refused(secured(server_context(pki)), knowing(str(keys)), *BROKEN_TLS)


def test_another_key(keys: Path, tmp_path: Path) -> None:
    other = psk(tmp_path / "other.psk")
    context = with_psk(str(other)).context
    assert context is not None
    refused(secured(context), knowing(str(keys)), *BROKEN_TLS)


def test_the_right_key(keys: Path) -> None:
    tls = with_psk(str(keys))
    assert tls.context is not None
    with device(secured(tls.context), tls=knowing(str(keys), "alice")) as opened:
        assert opened.pread(5000, 1000) == bytes(5000)


def test_gone_in_the_handshake(pki: Path) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.option()
        peer.reply(STARTTLS, ACK)
        peer.recv(50)

    refused(script, trusting(str(pki)), *BROKEN_TLS)


def test_silence_in_the_handshake(pki: Path) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.option()
        peer.reply(STARTTLS, ACK)
        peer.until_gone()

    refused(script, trusting(str(pki)), ConnectionLostError, "the TLS handshake failed", handshake=0.3)


def test_cut_off_without_goodbye(pki: Path) -> None:
    """An end that TLS did not announce is no end of a reply."""

    def then(peer: Peer) -> None:
        asked = peer.request()
        peer.chunk(asked, 1, bytes(108), length=8 + asked.length)

    with (
        device(secured(server_context(pki), then), tls=trusting(str(pki))) as opened,
        pytest.raises(ConnectionLostError, match="closed the connection in the middle of a reply"),
    ):
        opened.pread(4096, 0)


def test_silence_after_the_handshake(pki: Path) -> None:
    with (
        device(secured(server_context(pki), Peer.until_gone), tls=trusting(str(pki)), timeout=0.3) as opened,
        pytest.raises(ConnectionLostError, match="no reply to the read"),
    ):
        opened.pread(512, 0)


# ── what the user says ───────────────────────────────────────────────────────────────────────────────────────────


def test_keys_without_tls(keys: Path) -> None:
    with pytest.raises(UsageError, match="nbd:// is without TLS; write nbds://"):
        connect("nbd://localhost/", options=ClientOptions(tls=knowing(str(keys))))


def test_files_that_are_not_there(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(UsageError, match=r"ca-cert\.pem: not found"):
        trusting(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        knowing(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="holds no key for 'bob'; it has keys for alice"):
        knowing(str(keys), "bob")
    (tmp_path / "ca-cert.pem").write_text("no certificate")
    with pytest.raises(UsageError, match="these certificates cannot be used"):
        trusting(str(tmp_path))
