# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""NBD addresses: what doc/uri.md allows, and everything that is refused, with the reason."""

from __future__ import annotations

import pytest

from vmdkit.errors import UsageError
from vmdkit.nbd.uri import NbdUri, Transport, number, parse_uri

TCP, UNIX, VSOCK = Transport.TCP, Transport.UNIX, Transport.VSOCK

GOOD = {
    "nbd://example.com": ("", "example.com", 10809),
    "nbd://example.com/": ("", "example.com", 10809),
    "NBD://example.com:1/disk": ("disk", "example.com", 1),
    "nbd://example.com//disk": ("/disk", "example.com", 10809),
    "nbd://example.com/a/b/": ("a/b/", "example.com", 10809),
    "nbd://example.com/hello%20world": ("hello world", "example.com", 10809),
    "nbd://example.com/%C3%A9%25%3f": ("é%?", "example.com", 10809),
    "nbd://127.0.0.1:65535/": ("", "127.0.0.1", 65535),
    "nbd://[::1]:10810/x": ("x", "::1", 10810),
    "nbd://[fe80::1%25eth0]/x": ("x", "fe80::1%eth0", 10809),
    "nbd:///x": ("x", "localhost", 10809),
    "nbd://host:/x": ("x", "host", 10809),
}


@pytest.mark.parametrize("text", GOOD)
def test_tcp(text: str) -> None:
    uri = parse_uri(text)
    assert (uri.transport, uri.tls) == (TCP, False)
    assert (uri.export, uri.host, uri.port) == GOOD[text]
    assert uri.text == text


def test_unix() -> None:
    assert parse_uri("nbd+unix:///a%2Fb?socket=/tmp/x%20y") == NbdUri(
        "nbd+unix:///a%2Fb?socket=/tmp/x%20y", UNIX, False, export="a/b", host="", port=0, path="/tmp/x y"
    )
    assert parse_uri("nbd+unix:///?socket=%00name").path == "\0name"
    assert parse_uri("nbd+unix://?socket=s").path == "s"
    assert parse_uri("nbds+unix://alice@/?socket=s").user == "alice"


def test_vsock() -> None:
    assert [(uri.host, uri.port) for uri in map(parse_uri, ("nbd+vsock:///", "nbds+vsock://7:4000000000/x"))] == [
        ("2", 10809), ("7", 4000000000),
    ]  # fmt: skip
    assert parse_uri("nbd+vsock:///").transport is VSOCK


def test_tls() -> None:
    uri = parse_uri("nbds://al%40ice@host/x?tls-psk-file=/k&connections=2&timeout=1.5")
    assert (uri.tls, uri.user, uri.parameters) == (
        True, "al@ice", {"tls-psk-file": "/k", "connections": "2", "timeout": "1.5"},
    )  # fmt: skip
    assert number(uri, "connections", 1, 16, whole=True) == 2
    assert number(uri, "timeout", 0.001, 100) == 1.5
    assert number(uri, "reconnect", 0, 100) is None
    assert parse_uri("nbds://h?tls-verify-peer=1&tls-type=x509&tls-hostname=n").parameters["tls-hostname"] == "n"


BAD = {
    "http://host/": "no NBD address: known are nbd://, nbds://",
    "nbd:host": "no NBD address",
    "nbd://host/a b": "blanks, control or non-ASCII",
    "nbd://host/\x1b[1m": "blanks, control or non-ASCII",
    "nbd://hosté/": "non-ASCII",
    "nbd://host/%": "stands for itself as %25",
    "nbd://host/%zz": "stands for itself as %25",
    "nbd://host/x#y": "%23",
    "nbd://host/%ff": "the export's name is not UTF-8",
    "nbd://host/%00": "holds a NUL",
    "nbd://host/" + "x" * 4097: "has 4097 bytes; 4096 are allowed",
    "nbd://host/" + "x" * 20000: "at most 16384 characters",
    "nbd://host:0/": "0 is no TCP port",
    "nbd://host:65536/": "65536 is no TCP port",
    "nbd://host:99999999999999999999/": "is no TCP port",
    "nbd://host:x/": "is no [user@]host[:port]",
    "nbd://[::1/": "is no [user@]host[:port]",
    "nbd://[::z]/": "is no IPv6 address",
    "nbd://-oProxyCommand=x/": "is no host name",
    "nbd://a;b/": "is no host name",
    "nbd://user:secret@host/": "a password in an address is seen by all",
    "nbd://@host/": "a password",
    "nbd+unix:///x": "the socket is missing",
    "nbd+unix:///x?socket=": "the socket is missing",
    "nbd+unix://host/x?socket=s": "a Unix socket has no host",
    "nbd+unix:///?socket=" + "x" * 108: "at most 107 bytes",
    "nbd+unix:///?socket=a%00b": "holds a NUL",
    "nbd+unix:///?socket=a&socket=b": "socket is said twice",
    "nbd://host/?socket=a": "goes with nbd+unix",
    "nbd://host/?Socket=a": "no parameter is called 'Socket'",
    "nbd://host/?x": "no parameter is called 'x'",
    "nbd+vsock://host/": "is no vsock address",
    "nbd+vsock://4294967296/": "is no vsock address",
    "nbd+vsock://1:4294967296/": "is no vsock address",
    "nbd://host/?tls-psk-file=k": "but not TLS",
    "nbds://host/?tls-verify-peer=0": "certificates are verified always",
    "nbds://host/?tls-type=anon": "tls-type is one of x509, psk",
    "nbds://host/?tls-psk-file=k&tls-certificates=d": "not both",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:40])
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(text)
    assert BAD[text] in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("value", ["", "0", "17", "1.5", "-1", "1e1", "nan", "٣"])
def test_numbers_are_numbers(value: str) -> None:
    uri = NbdUri("nbd://h", TCP, False, parameters={"connections": value})
    with pytest.raises(UsageError, match="a number from 1 to 16 was expected"):
        number(uri, "connections", 1, 16, whole=True)
