# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Several connections to servers that say they may be used as one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nbd_peer import FLAGS, MULTI, SIZE, Peer, hosting
from vmdkit.errors import RemoteProtocolError, UsageError
from vmdkit.nbd import ClientOptions, connect

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device

MANY = FLAGS | MULTI


class Counting:
    """A good server that counts its clients, and is slow enough that they are many."""

    def __init__(self, **good: Any) -> None:
        self.clients = self.requests = 0
        self.good = good

    def __call__(self, peer: Peer) -> None:
        self.clients += 1
        peer.handshake(**self.good)
        while True:
            asked = peer.request()
            self.requests += 1
            time.sleep(0.005)
            peer.data(asked, asked.offset, bytes(asked.length))


def read(opened: Device, turns: int = 8, threads: int = 6) -> list[BaseException]:
    """Read by several threads at once; returns what went wrong."""
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for turn in range(turns):
                assert opened.pread(4096, turn * 4096) == bytes(4096)
        except BaseException as error:
            wrong.append(error)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return wrong


@pytest.mark.parametrize(("flags", "most", "expected"), [(FLAGS, 4, 1), (MANY, 4, 4), (MANY, 2, 2), (MANY, 1, 1)])
def test_as_many_as_allowed(flags: int, most: int, expected: int, tmp_path: Path) -> None:
    server = Counting(flags=flags)
    with hosting(tmp_path / "s", server) as uri, connect(uri, options=ClientOptions(connections=most)) as opened:
        assert read(opened) == []
    assert server.clients == expected
    assert server.requests == 48


def test_one_is_enough_for_one_thread(tmp_path: Path) -> None:
    server = Counting(flags=MANY)
    with hosting(tmp_path / "s", server) as uri, connect(uri) as opened:
        assert read(opened, threads=1) == []
    assert server.clients == 1


def test_the_address_says_how_many(tmp_path: Path) -> None:
    server = Counting(flags=MANY)
    with hosting(tmp_path / "s", server) as uri, connect(f"{uri}&connections=2") as opened:
        assert read(opened) == []
    assert server.clients == 2
    with pytest.raises(UsageError, match="1 to 16 connections, not 17"):
        ClientOptions(connections=17)


def test_a_server_that_is_full(tmp_path: Path) -> None:
    """The second client is not greeted: work goes on with one, and closing does not wait for it."""
    server = Counting(flags=MANY)
    with hosting(tmp_path / "s", server, Peer.until_gone) as uri:
        opened = connect(uri)
        begun = time.monotonic()
        assert read(opened) == []
        opened.close()
        assert time.monotonic() - begun < 4
    assert server.requests == 48


def test_a_second_connection_that_fails(tmp_path: Path) -> None:
    def rude(peer: Peer) -> None:
        peer.send(b"go away")

    server = Counting(flags=MANY)
    with hosting(tmp_path / "s", server, rude) as uri, connect(uri) as opened:
        assert read(opened) == []
    assert server.requests == 48


def test_connections_that_disagree(tmp_path: Path) -> None:
    """Two sizes of one export: whichever is read from, half would be wrong."""
    first, second = Counting(flags=MANY), Counting(flags=MANY, size=SIZE * 2)
    with hosting(tmp_path / "s", first, second) as uri, connect(uri) as opened:
        wrong = read(opened, turns=50)
        with pytest.raises(RemoteProtocolError, match="it tells each connection something else about one export"):
            opened.pread(1, 0)
    assert all(isinstance(error, RemoteProtocolError) for error in wrong)


def test_flush_waits_for_nobody_else(tmp_path: Path) -> None:
    """A flush on one connection covers what completed on all: the server said so."""
    flushed: list[int] = []

    def script(peer: Peer) -> None:
        peer.handshake(flags=MANY)
        while True:
            asked = peer.request()
            if asked.command == 3:
                flushed.append(1)
            peer.chunk(asked, 0)

    with hosting(tmp_path / "s", script) as uri, connect(uri, writable=True) as opened:
        opened.pwrite(b"x", 0)
        opened.flush()
    assert flushed == [1]
