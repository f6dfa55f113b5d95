# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The hot loop answers what is simple and stops before the rest; and together with the rest every byte is right."""

from __future__ import annotations

import os
import random
import select
import struct
from typing import TYPE_CHECKING

import pytest

from nbdwire import DF, READ, Client, connect
from vmdkit.nbd.export import Export
from vmdkit.nbd.fastpath import quick
from vmdkit.nbd.protocol import Mode
from vmdkit.nbd.regions import Regions
from vmdkit.nbd.session import Session
from vmdkit.nbd.turn import Lane, turns
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device
    from vmdkit.nbd import Server

SIZE = 8 * MIB


def requests(*asked: tuple[int, int, int, int]) -> bytearray:
    """Return compact requests (flags, command, offset, length)."""
    return bytearray(
        b"".join(
            struct.pack(">IHHQQI", 0x25609513, flags, command, number, offset, length)
            for number, (flags, command, offset, length) in enumerate(asked)
        )
    )


def session(device: Device, mode: int = 1, **more: object) -> Session:
    """Return what a handshake would have agreed on."""
    return Session(Export(device), Mode(mode), maximum=32 * MIB, **more)  # type: ignore[arg-type]


def test_stops_without_touching(device: Device) -> None:
    good = (0, 0, 4096, 512)
    out = memoryview(bytearray(300_000))
    strange = [
        (0, 1, 0, 512),  # a write
        (0, 7, 0, 512),  # a question, although no context was selected
        (4, 0, 0, 512),  # a flag
        (0, 0, 0, 0),  # nothing
        (0, 0, SIZE - 1, 2),  # past the end
        (0, 0, SIZE, 1),
        (0, 0, SIZE + 5 * MIB, 1),
        (0, 0, 2**64 - 5, 10),
        (0, 0, MIB - 10, 20),  # two runs
        (0, 0, 0, 200 * KIB),  # large
    ]
    regions = Regions(device)
    for bad in strange:
        inbox = memoryview(requests(good, good, bad, good))
        assert quick(session(device), regions, inbox, out)(0, len(inbox), 0) == (56, 2 * (28 + 512))
    inbox = memoryview(requests(good, good)[:-1])
    assert quick(session(device), regions, inbox, out)(0, len(inbox), 7) == (28, 7 + 540)
    inbox = memoryview(bytearray(28) + requests(good))
    assert quick(session(device), regions, inbox, out)(0, 56, 0) == (0, 0)
    inbox = memoryview(requests(good, good))
    assert quick(session(device), regions, inbox, out)(0, 56, len(out) - 1600)[0] == 28
    assert quick(session(device, minimum=1024), regions, inbox, out)(0, 56, 0) == (0, 0)
    regions.close()


def test_holes_of_any_length_are_quick(device: Device) -> None:
    regions, out = Regions(device), memoryview(bytearray(9000))
    inbox = memoryview(requests((0, 0, MIB, MIB), (0, 0, MIB + 1, 100 * KIB)))
    assert quick(session(device), regions, inbox, out)(0, 56, 0) == (56, 64)
    assert struct.unpack(">IHHQIQI", out[32:64]) == (0x668E33EF, 1, 2, 1, 12, MIB + 1, 100 * KIB)
    short = session(device)
    short.maximum = 512 * KIB
    assert quick(short, regions, inbox, out)(0, 56, 0) == (0, 0)
    assert quick(session(device, 0), regions, inbox, out)(0, 56, 0) == (0, 0)  # simple replies have none
    regions.close()


def test_small_questions_are_quick(device: Device) -> None:
    regions, out = Regions(device), memoryview(bytearray(9000))
    asks = session(device, contexts={3: "base:allocation"})
    inbox = memoryview(requests((0, 7, 0, 4096), (0, 7, MIB - 512, 3 * MIB), (0, 7, 0, 5 * MIB)))
    assert quick(asks, regions, inbox, out)(0, len(inbox), 0) == (56, 32 + 48)
    assert struct.unpack(">IHHQIIII", out[:32]) == (0x668E33EF, 1, 5, 0, 12, 3, 4096, 0)
    assert struct.unpack(">IHHQI7I", out[32:80]) == (0x668E33EF, 1, 5, 1, 28, 3, 512, 0, MIB, 3, 2 * MIB - 512, 0)
    wide = session(device, 2, contexts={3: "base:allocation"})
    inbox = memoryview(struct.pack(">IHHQQQ", 0x21E41C71, 0, 7, 9, MIB, 4096))
    assert quick(wide, regions, inbox, out)(0, 32, 0) == (32, 56)
    assert struct.unpack(">IHHQQQIIQQ", out[:56]) == (0x6E8A278C, 1, 6, 9, MIB, 24, 3, 1, 4096, 3)
    regions.close()


def test_a_file_system_that_always_waits_is_believed(device: Device) -> None:
    regions = Regions(device)
    regions.nowait = 0x4000_0000  # a flag no kernel knows
    inbox = memoryview(requests((0, 0, 0, 512), (0, 0, 0, 512)))
    serve = quick(session(device), regions, inbox, memoryview(bytearray(9000)))
    assert serve(0, 56, 0) == (0, 0)
    assert regions.nowait == 0
    assert serve(0, 56, 0)[0] == 56
    regions.close()


class Noted:
    """A socket that notes what is sent; and the owner of a lane, which notes where turns end."""

    def __init__(self, received: bytes) -> None:
        self.received, self.sent, self.rests = received, list[bytes](), list[tuple[int, ...]]()

    def fileno(self) -> int:
        return -1

    def recv_into(self, view: memoryview) -> int:
        view[: len(self.received)] = self.received
        return len(self.received)

    def send(self, view: memoryview, flags: int = 0) -> int:
        self.sent.append(bytes(view))
        return len(view)

    def event(self, mask: int) -> bool:
        raise AssertionError

    def rest(self, *where: int) -> bool:
        self.rests.append(where)
        return True

    def failed(self, error: Exception) -> None:
        raise error


@pytest.mark.parametrize(
    ("asked", "sends", "rest", "single"),
    [
        ([(0, 0, 0, 512)], 1, None, True),
        ([(0, 0, 0, 512), (0, 0, 512, 512)], 1, None, False),
        ([(0, 0, 0, 512), (0, 3, 0, 0)], 0, (28, 56, 540, 0), True),  # the long way sends both replies at once
        ([], 0, (0, 0, 0, 0), True),  # the end of the stream
    ],
)
def test_a_turn_sends_once(
    device: Device, asked: list[tuple[int, int, int, int]], sends: int, rest: tuple[int, ...] | None, single: bool
) -> None:
    regions, inbox, out = Regions(device), memoryview(bytearray(1000)), memoryview(bytearray(9000))
    agreed, noted = session(device), Noted(bytes(requests(*asked)))
    lane = Lane(noted, agreed, regions, inbox, out, quick(agreed, regions, inbox, out))  # type: ignore[arg-type]
    assert turns(lane, noted)(select.EPOLLIN) is single
    assert (len(noted.sent), noted.rests) == (sends, [rest] if rest else [])
    regions.close()


def check(client: Client, content: bytes, dice: random.Random, count: int) -> None:
    """Ask for many ranges at once, simple and not, and check each reply."""
    asked = {}
    words = b""
    for cookie in range(count):
        length = dice.choice([1, 512, 4096, 65535, 65536, 98304, 150_000, 262_144, 3 * MIB])
        offset = dice.choice([0, MIB - length // 2, 2 * MIB - 1, 4 * MIB, SIZE - length, dice.randrange(SIZE - length)])
        offset = max(0, min(offset, SIZE - length))
        flags = DF if client.mode and not dice.randrange(4) else 0
        asked[cookie] = offset, length, flags
        words += client.header(READ, offset, length, flags, cookie)
    client.send(words)
    lengths = {cookie: length for cookie, (_, length, _) in asked.items()}
    for _ in range(count):
        reply = client.reply(lengths)
        offset, length, flags = asked.pop(reply.cookie)
        got = reply.data(length, offset) if client.mode else reply.chunks[0][1]
        assert got == content[offset : offset + length]
        assert len(reply.chunks) == 1 or not flags


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_mixed_reads(server: Server, content: bytes, mode: int) -> None:
    with connect(server) as client:
        client.enter(mode)
        check(client, content, random.Random(mode), 150)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_cold_pages_come_from_the_pool(server: Server, content: bytes, original: Path, mode: int) -> None:
    fd = os.open(original, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with connect(server) as client:
        client.enter(mode)
        check(client, content, random.Random(7), 60)


def test_holes_are_sent_as_holes(server: Server) -> None:
    with connect(server) as client:
        client.enter()
        reply = client.request(READ, MIB, 4096)
        assert reply.holes() == [(MIB, 4096)]
        reply = client.request(READ, MIB - 4096, MIB + 8192)
        assert reply.holes() == [(MIB, MIB)]
        assert [kind for kind, _ in reply.chunks] == [1, 2, 1]
        assert client.request(READ, MIB - 4096, MIB + 8192, DF).holes() == []
