# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Clients that leave at bad moments, or do not take what they asked for."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import connect, serving
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import MIB

if TYPE_CHECKING:
    from nbdwire import Client
    from vmdkit.device import Device
    from vmdkit.nbd import Server


@pytest.mark.parametrize("sent", [0, 1, 27, 28, 29, 4000, 28 + 4095, 140_000, 1_500_000])
def test_in_the_middle_of_a_write(writable_server: Server, writable: Device, sent: int, content: bytes) -> None:
    with connect(writable_server) as client:
        client.enter()
        client.send((client.header(n.WRITE, 4 * MIB, 3 * MIB) + b"w" * 3 * MIB)[:sent])
    with connect(writable_server) as client:
        assert client.enter().alive()
    assert writable.pread(MIB, 0) == content[:MIB]


def test_between_header_and_reply(server: Server) -> None:
    for length in (512, 65536, MIB, 8 * MIB):
        with connect(server) as client:
            client.enter()
            client.send(client.header(n.READ, 0, length) * 50)
    with connect(server) as client:
        assert client.enter().alive()


def test_half_closed_still_gets_its_replies(server: Server, content: bytes) -> None:
    with connect(server) as client:
        client.enter()
        client.send(client.header(n.READ, 0, MIB) + client.header(n.READ, 2 * MIB, MIB))
        client.sock.shutdown(socket.SHUT_WR)
        assert client.reply().data(MIB, 0) == content[:MIB]
        assert client.reply().data(MIB, 2 * MIB) == content[2 * MIB : 3 * MIB]
        assert client.closed()


def test_disc_with_replies_pending(server: Server, content: bytes) -> None:
    with connect(server) as client:
        client.enter()
        client.send(b"".join(client.header(n.READ, at * MIB, MIB) for at in range(8)) + client.header(n.DISC, 0, 0))
        for at in range(8):
            assert client.reply().data(MIB, at * MIB) == content[at * MIB : (at + 1) * MIB]
        assert client.closed()


def test_disc_waits_for_the_pool() -> None:
    memory = MemoryDevice(MIB)
    slow = FaultDevice(memory, [Fault("flush", error=0, seconds=0.3)])
    with memory, slow, serving(slow, writable=True) as server, connect(server) as client:
        client.enter()
        client.send(client.header(n.WRITE, 0, 5, n.FUA) + b"hello" + client.header(n.DISC, 0, 0))
        assert client.reply().error == 0
        assert client.closed()
        assert memory.pread(5, 0) == b"hello"


def test_nothing_after_disc_is_served(writable_server: Server, writable: Device, content: bytes) -> None:
    with connect(writable_server) as client:
        client.enter()
        client.send(client.header(n.DISC, 0, 0) + client.header(n.WRITE, 0, 5) + b"xxxxx")
        assert client.closed()
    assert writable.pread(5, 0) == content[:5]


def test_gone_while_the_pool_works() -> None:
    memory = MemoryDevice(4 * MIB)
    slow = FaultDevice(memory, [Fault("flush", error=0, seconds=0.2), Fault("zero", error=0, seconds=0.2)])
    with memory, slow, serving(slow, writable=True) as server:
        for _ in range(3):
            with connect(server) as client:
                client.enter()
                client.send(client.header(n.FLUSH, 0, 0) + client.header(n.ZERO, 0, 2 * MIB))
                time.sleep(0.05)
        with connect(server) as client:
            assert client.enter().alive()


def test_a_client_that_reads_nothing_stops_nobody(server: Server) -> None:
    with connect(server) as greedy, connect(server) as other:
        greedy.enter()
        other.enter()
        greedy.sock.settimeout(0.5)
        flood = greedy.header(n.READ, 0, 8 * MIB) * 100_000
        with pytest.raises(TimeoutError):  # its requests are not taken for ever
            greedy.send(flood)
        begun = time.monotonic()
        for at in range(50):
            other.read(at * 4096, 4096)
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_slow_reader_gets_every_byte_in_order(server: Server, content: bytes, mode: int) -> None:
    with connect(server, timeout=20) as client:
        client.enter(mode)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = [(0, 8 * MIB), (MIB - 100, 5000), (5, 70_000), (MIB, MIB), (3 * MIB + 7, 4 * MIB + 1), (0, 1)] * 3
        words = b"".join(client.header(n.READ, offset, length, cookie=at) for at, (offset, length) in enumerate(asked))
        threading.Thread(target=client.send, args=(words,)).start()
        lengths = {at: length for at, (_, length) in enumerate(asked)}
        for _ in asked:
            reply = client.reply(lengths)
            offset, length = asked[reply.cookie]
            got = reply.chunks[0][1] if mode == 0 else reply.data(length, offset)
            assert got == content[offset : offset + length]


def test_server_stops_under_load(device: Device) -> None:
    with serving(device) as server:
        clients: list[Client] = [connect(server).enter() for _ in range(5)]
        for client in clients:
            client.send(client.header(n.READ, 0, 8 * MIB) * 20)
    for client in clients:
        with client, pytest.raises((n.Closed, OSError)):
            client.drain()
