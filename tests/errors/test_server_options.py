# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Options with a wrong shape, in a wrong order, or too long: edges that a decent client never comes near."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import Client, connect
from vmdkit.nbd import Export, Options, Server
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "base:allocation"
LONGEST = 4096  # bytes of a string, says the protocol
MOST_DATA = 65536  # bytes of an option, says this server
INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 1, 2, 3


@pytest.fixture
def pair() -> Iterator[Server]:
    """Serve two exports."""
    exports = [Export(MemoryDevice(4096), "one", "the first"), Export(MemoryDevice(8192), "zwei-\u00fc")]
    with Server(exports, options=Options(spin=0)) as server:
        yield server


def option(number: int, data: bytes = b"", magic: bytes = b"IHAVEOPT") -> bytes:
    return struct.pack(">8sII", magic, number, len(data)) + data


@pytest.mark.parametrize("number", [0, 4, 12, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_option(client: Client, number: int) -> None:
    client.hello()
    assert client.option(number, b"some data") == (n.UNSUP, [], f"option {number} is not known here")
    assert client.go() == n.ACK


def test_bad_magic_behind_a_good_option(client: Client) -> None:
    client.hello()
    client.send(option(n.STRUCTURED) + bytes(16))
    assert client.option_reply(n.STRUCTURED) == (n.ACK, b"")
    assert client.closed()


@pytest.mark.parametrize("length", [MOST_DATA + 1, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("number", [n.EXPORT_NAME, n.LIST, n.GO, n.SET_META, 77])
def test_huge_length_is_refused_before_any_data(client: Client, number: int, length: int) -> None:
    client.hello()
    client.send_option(number, length=length)
    assert client.option_reply(number) == (n.TOO_BIG, b"option data is limited to 65536 bytes")
    assert client.closed()


def test_longest_data_is_taken(client: Client) -> None:
    client.hello()
    assert client.option(77, bytes(MOST_DATA))[0] == n.UNSUP
    assert client.go() == n.ACK


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags(client: Client, flags: int) -> None:
    client.hello(flags)
    assert client.closed()


@pytest.mark.parametrize("data", [b"", b"because"])
def test_nothing_is_read_behind_abort(client: Client, data: bytes) -> None:
    client.hello()
    client.send(option(n.ABORT, data) + option(n.LIST))
    assert client.option_reply(n.ABORT) == (n.ACK, b"")
    assert client.closed()


# ── exports ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_tells_every_export(pair: Server) -> None:
    with connect(pair) as client:
        client.hello()
        kind, found, _ = client.option(n.LIST)
        assert kind == n.ACK
        assert found == [b"\0\0\0\3onethe first", b"\0\0\0\7zwei-\xc3\xbc"]


def test_list_with_data_may_be_repeated_without(client: Client) -> None:
    client.hello()
    assert client.option(n.LIST, b"x") == (n.INVALID, [], "LIST has no data")
    assert client.option(n.LIST) == (n.ACK, [bytes(4)], "")


def test_go_after_failed_go(pair: Server) -> None:
    with connect(pair) as client:
        client.hello()
        client.option(n.STRUCTURED)
        client.mode = 1
        assert client.option(n.GO, n.go("two")) == (n.UNKNOWN, [], "no export is called 'two'")
        assert client.go("zwei-\u00fc") == n.ACK
        assert client.size == 8192
        assert client.read(8191, 1) == b"\0"


def test_info_changes_nothing(pair: Server) -> None:
    with connect(pair) as client:
        client.hello()
        assert client.go("one", option=n.INFO) == n.ACK
        assert client.size == 4096
        assert client.go("nothere", option=n.INFO) == n.UNKNOWN
        assert client.go("zwei-\u00fc") == n.ACK
        assert client.size == 8192


def test_the_empty_name_is_the_first_export(pair: Server) -> None:
    with connect(pair) as client:
        client.hello()
        kind, found, _ = client.option(n.GO, n.go("", [INFO_NAME, INFO_DESCRIPTION]))
        assert kind == n.ACK
        assert struct.pack(">H", INFO_NAME) + b"one" in found
        assert struct.pack(">H", INFO_DESCRIPTION) + b"the first" in found


def test_unknown_information_is_passed_over(client: Client) -> None:
    client.hello()
    assert client.go(infos=[77, 0xFFFF, INFO_BLOCK_SIZE]) == n.ACK
    assert client.sizes[0]


@pytest.mark.parametrize("name", [b"n" * (LONGEST + 1), b"nothere", b"\xff"])
def test_export_name_that_cannot_be(client: Client, name: bytes) -> None:
    client.hello()
    client.send_option(n.EXPORT_NAME, name)
    assert client.closed()


def test_a_long_name_is_not_echoed_whole(client: Client) -> None:
    client.hello()
    kind, _, text = client.option(n.GO, n.go("n" * LONGEST))
    assert kind == n.UNKNOWN
    assert len(text) < 300


@pytest.mark.parametrize("cut", range(10))
@pytest.mark.parametrize("number", [n.GO, n.INFO])
def test_go_cut_short(client: Client, number: int, cut: int) -> None:
    client.hello()
    whole = n.go("", [INFO_NAME, INFO_BLOCK_SIZE])
    assert len(whole) == 10
    assert client.option(number, whole[:cut]) == (n.INVALID, [], "the option's data ends too early")
    assert client.go() == n.ACK


def test_go_with_bytes_left_over(client: Client) -> None:
    client.hello()
    assert client.option(n.GO, n.go() + b"???") == (n.INVALID, [], "3 bytes too many in the option's data")


def test_extended_after_structured(client: Client) -> None:
    client.hello()
    assert client.option(n.STRUCTURED)[0] == n.ACK
    assert client.option(n.EXTENDED)[0] == n.ACK
    assert client.go() == n.ACK
    client.mode = 2
    assert client.alive()


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lies_about_the_number_of_queries(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    begun = time.monotonic()
    for claimed in (2, 64, 65, 0x7FFFFFFF, 0xFFFFFFFF):
        data = struct.pack(">II", 0, claimed) + struct.pack(">I", len(BASE)) + BASE.encode()
        assert client.option(n.SET_META, data)[0] == (n.INVALID if claimed <= 64 else n.TOO_BIG)
    assert time.monotonic() - begun < 2


def test_strange_queries(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    assert client.set_context("", ":", "base", "base:", "base:magic", "x" * LONGEST) == (n.ACK, {})
    assert client.set_context(*[BASE] * 64) == (n.ACK, {BASE: 1})
    assert client.set_context("x" * (LONGEST + 1))[0] == n.INVALID


def test_contexts_of_another_export_are_not_taken_along(pair: Server) -> None:
    with connect(pair) as client:
        client.hello()
        client.option(n.STRUCTURED)
        client.mode = 1
        assert client.set_context(BASE, export="one") == (n.ACK, {BASE: 1})
        assert client.go("zwei-\u00fc") == n.ACK
        reply = client.request(n.STATUS, 0, 512)
        assert (reply.error, reply.message) == (n.EINVAL, "no context was selected")


def test_the_last_selection_counts(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    client.mode = 1
    assert client.set_context(BASE) == (n.ACK, {BASE: 1})
    assert client.set_context() == (n.ACK, {})
    assert client.go() == n.ACK
    assert client.request(n.STATUS, 0, 512).error == n.EINVAL


def test_contexts_of_a_client_that_uses_export_name(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    client.mode = 1
    client.set_context(BASE)
    client.send_option(n.EXPORT_NAME)
    client.recv(10)
    assert client.request(n.STATUS, 0, 4096).extents() == {1: [(4096, 0)]}
