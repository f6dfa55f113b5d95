# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that arrive at the worst moment: every one gets its whole reply."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

import images
import nbdwire as n
import vmdkit
from nbdwire import connect, serving
from vmdkit.device import Can, Kind, Location
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


class Waiting(MemoryDevice):
    """Begins to answer its first read when ``told``, so that a client can say more in the meantime."""

    def __init__(self, size: int) -> None:
        super().__init__(random.Random(1).randbytes(size))
        self.asked, self.told = threading.Event(), threading.Event()

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self.asked.set()
        self.told.wait(5)
        super()._pread_into(view, offset)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("length", [MIB, 4 * MIB])
def test_a_request_that_comes_while_a_long_reply_begins(mode: int, length: int) -> None:
    # qemu-img convert of a compressed disk: the second read found the first one waiting for the socket, and took
    # the place where its rest was remembered.
    with Waiting(8 * MIB) as device, serving(device) as server, connect(server) as client:
        client.enter(mode)
        client.send(client.header(n.READ, 0, length, cookie=1))
        assert device.asked.wait(5)
        client.send(client.header(n.READ, 4 * MIB, length, cookie=2))
        device.told.set()
        replies = {}
        for _ in range(2):
            reply = client.reply(length)
            replies[reply.cookie] = reply
        for cookie, offset in ((1, 0), (2, 4 * MIB)):
            data = replies[cookie].chunks[0][1] if mode == 0 else replies[cookie].data(length, offset)
            assert data == device.pread(length, offset)


@pytest.mark.parametrize("kind", ["stream-A", "hosted", "flat"])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_many_sizes_at_once(tmp_path: Path, kind: str, mode: int) -> None:
    chance = random.Random(f"{kind}{mode}")
    image = images.SUBFORMATS[kind].build(tmp_path, "256k:A 256k:b 128k:- 1M:C 512k:0 2M:d 1M:E 4k:- 60k:F")
    with vmdkit.open(image.path) as disk, serving(disk) as server, connect(server) as client:
        client.enter(mode)
        asked = {}
        for cookie in range(60):
            length = chance.choice([512, 4096, 65536, 98_304, 131_072, 300_000, MIB])
            asked[cookie] = chance.randrange(image.size - length), length
        words = [client.header(n.READ, *where, cookie=cookie) for cookie, where in asked.items()]
        pauses = [chance.random() < 0.2 for _ in words]
        wait = threading.Event()

        def send() -> None:
            for word, pause in zip(words, pauses, strict=True):
                client.send(word)
                if pause:
                    wait.wait(0.001)

        sending = threading.Thread(target=send)
        sending.start()
        lengths = {cookie: length for cookie, (_, length) in asked.items()}
        for _ in asked:
            reply = client.reply(lengths)
            offset, length = asked[reply.cookie]
            data = reply.chunks[0][1] if mode == 0 else reply.data(length, offset)
            assert data == image.model.pread(length, offset)
        sending.join()


class Packed(MemoryDevice):
    """Says that it is compressed, so that the loop and its pool share the reads; counts what the pool has read."""

    def __init__(self, size: int) -> None:
        super().__init__(random.Random(2).randbytes(size))
        self._set_can(Can.EXTENTS)  # of what can be written, nothing is believed
        self.pooled = 0
        self._ended = threading.Event()

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        yield Location(offset, count, Kind.COMPRESSED, self)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        super()._pread_into(view, offset)
        if threading.current_thread().name == "nbd-pool":
            self.pooled += 1
            self._ended.set()
        else:
            self._ended.wait(0.05)
            self._ended.clear()


def test_the_pool_does_not_rest_while_requests_wait() -> None:
    # It was given no further read before the loop had done all others that had come with the first.
    with Packed(MIB) as device, serving(device) as server, connect(server) as client:
        client.enter(1)
        client.send(b"".join(client.header(n.READ, at * 512, 512, cookie=at) for at in range(32)))
        replies = [client.reply(512) for _ in range(32)]
        assert device.pooled >= 8
        for reply in replies:
            assert reply.data(512, reply.cookie * 512) == device.pread(512, reply.cookie * 512)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("sent", [0, 1, 100_000, MIB - 1])
def test_a_refused_write_is_answered_when_its_payload_is_in(mode: int, sent: int) -> None:
    # libnbd 1.14 takes a reply to a command that it is still sending for a bug in the server, and gives up.
    with MemoryDevice(MIB) as device, serving(device) as server, connect(server) as client:
        client.enter(mode)
        client.send(client.header(n.WRITE, 0, MIB, n.PAYLOAD if mode == 2 else 0, cookie=5) + bytes(sent))
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sock.settimeout(10)
        client.send(bytes(MIB - sent) + client.header(n.READ, 0, 1, cookie=6))
        refused = client.reply()
        assert (refused.cookie, refused.error) == (5, n.EPERM)
        read = client.reply(1)
        assert (read.cookie, read.error) == (6, 0)
