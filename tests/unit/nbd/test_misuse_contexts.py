# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Metadata contexts asked for in the wrong order, for the wrong export, or too many of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import connect, serving
from vmdkit.storage.file import open_file
from vmdkit.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from nbdwire import Client

BASE = "base:allocation"


def test_before_structured_replies(client: Client) -> None:
    client.hello()
    assert client.set_context(BASE)[0] == n.INVALID
    assert client.set_context(BASE, option=n.LIST_META)[0] == n.INVALID


def test_of_an_unknown_export(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    assert client.set_context(BASE, export="nothere")[0] == n.UNKNOWN


def test_unknown_contexts_are_left_out(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    assert client.set_context("x-none:this", BASE) == (n.ACK, {BASE: 1})
    assert client.set_context("base:") == (n.ACK, {})  # SET takes whole names
    assert client.set_context("base:", option=n.LIST_META) == (n.ACK, {BASE: 0})
    assert client.set_context(option=n.LIST_META) == (n.ACK, {BASE: 0})


def test_too_many_queries(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    assert client.set_context(*["x"] * 65)[0] == n.TOO_BIG


def test_query_count_without_queries(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    assert client.option(n.SET_META, struct.pack(">II", 0, 9))[0] == n.INVALID


def test_a_failed_set_forgets_the_one_before(client: Client) -> None:
    client.hello()
    client.option(n.STRUCTURED)
    client.mode = 1
    assert client.set_context(BASE)[0] == n.ACK
    assert client.option(n.SET_META, b"\0")[0] == n.INVALID
    assert client.go() == n.ACK
    assert client.request(n.STATUS, 0, 4096).error == n.EINVAL


def test_status_without_contexts(client: Client) -> None:
    client.enter()
    reply = client.request(n.STATUS, 0, 4096)
    assert (reply.error, reply.message) == (n.EINVAL, "no context was selected")
    assert client.alive()


@pytest.mark.parametrize("mode", [1, 2])
def test_one_run_of_a_large_disk(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(300 * MIB)
        for at in (0, MIB, 5 * MIB, 200 * MIB):
            file.seek(at)
            file.write(b"x" * 128 * 1024)
    with open_file(str(path)) as device, serving(device) as server, connect(server) as client:
        client.enter(mode, contexts=[BASE])
        for at in (0, 64 * 1024, MIB - 4096, 5 * MIB, 6 * MIB, 199 * MIB, 250 * MIB):
            first = next(device.extents(device.size - at, at))
            reply = client.request(n.STATUS, at, device.size - at, n.REQ_ONE)
            assert reply.extents() == {1: [(first.length, first.flags)]}


def test_status_of_nothing(client: Client) -> None:
    client.enter(contexts=[BASE])
    assert client.request(n.STATUS, 0, 0).error == n.EINVAL


def test_status_beyond_the_end(client: Client) -> None:
    client.enter(contexts=[BASE])
    assert client.request(n.STATUS, 8 << 20, 1).error == n.EINVAL
    assert client.request(n.STATUS, 0, (8 << 20) + 1).error == n.EINVAL


def test_payload_filter(client: Client) -> None:
    client.enter(mode=2, contexts=[BASE])

    def ask(count: int, *numbers: int) -> n.Reply:
        body = struct.pack(f">Q{len(numbers)}I", count, *numbers)
        return client.request(n.STATUS, 0, len(body), n.PAYLOAD, body)

    assert ask(2 << 20, 1).extents() == {1: [(1 << 20, 0), (1 << 20, 3)]}
    for wrong in [(2 << 20,), (2 << 20, 7), (2 << 20, 1, 1), (0, 1), (9 << 20, 1)]:
        assert ask(*wrong).error == n.EINVAL
    assert client.request(n.STATUS, 0, 9, n.PAYLOAD, bytes(9)).error == n.EINVAL
    assert client.request(n.STATUS, 0, 8 + 4 * 65, n.PAYLOAD, bytes(8 + 4 * 65)).error == n.EINVAL
    assert client.alive()


def test_payload_filter_in_pieces(client: Client) -> None:
    import time

    client.enter(mode=2, contexts=[BASE])
    body = struct.pack(">QI", 4096, 1)
    words = client.header(n.STATUS, 0, len(body), n.PAYLOAD) + body
    for byte in words:
        client.send(bytes([byte]))
        time.sleep(0.001)
    assert client.reply().extents() == {1: [(4096, 0)]}


def test_payload_on_a_command_that_has_none(client: Client) -> None:
    client.enter(mode=2)
    assert client.request(n.TRIM, 0, 100, n.PAYLOAD, bytes(100)).error == n.EINVAL
    assert client.request(n.READ, 0, 100, n.PAYLOAD, bytes(100)).error == n.EINVAL
    assert client.alive()
