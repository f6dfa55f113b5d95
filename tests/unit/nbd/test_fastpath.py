# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The hot loop answers what is simple and stops before the rest; and together with the rest every byte is right."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from nbdwire import DF, READ, Client, connect
from vmdkit.nbd.fastpath import serve_reads
from vmdkit.nbd.regions import Regions
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


def test_stops_without_touching(device: Device) -> None:
    good = (0, 0, 4096, 512)
    out = memoryview(bytearray(300_000))
    strange = [
        (0, 1, 0, 512),  # a write
        (4, 0, 0, 512),  # a flag
        (0, 0, 0, 0),  # nothing
        (0, 0, SIZE - 1, 2),  # past the end
        (0, 0, 2**64 - 5, 10),
        (0, 0, MIB - 10, 20),  # two runs
        (0, 0, 0, 200 * KIB),  # large
    ]
    regions = Regions(device)
    for bad in strange:
        inbox = memoryview(requests(good, good, bad, good))
        assert serve_reads(1, SIZE, regions, inbox, 0, len(inbox), out, 0) == (56, 2 * (28 + 512))
    inbox = memoryview(requests(good, good)[:-1])
    assert serve_reads(1, SIZE, regions, inbox, 0, len(inbox), out, 7) == (28, 7 + 540)
    inbox = memoryview(bytearray(28) + requests(good))
    assert serve_reads(1, SIZE, regions, inbox, 0, 56, out, 0) == (0, 0)
    full = len(out) - 600
    assert serve_reads(1, SIZE, regions, memoryview(requests(good, good)), 0, 56, out, full)[0] == 28
    regions.close()


def test_a_file_system_that_always_waits_is_believed(device: Device) -> None:
    regions = Regions(device)
    regions.nowait = 0x4000_0000  # a flag no kernel knows
    inbox = memoryview(requests((0, 0, 0, 512), (0, 0, 0, 512)))
    out = memoryview(bytearray(9000))
    assert serve_reads(1, SIZE, regions, inbox, 0, 56, out, 0) == (0, 0)
    assert regions.nowait == 0
    assert serve_reads(1, SIZE, regions, inbox, 0, 56, out, 0)[0] == 56
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
