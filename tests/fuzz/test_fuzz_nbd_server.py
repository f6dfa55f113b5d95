# Invariant: any bytes from a client: replies and/or the end of the connection within 5 seconds; no traceback, no
# hang, and the next client is served.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Handshakes and request streams, broken. The first byte says how the rest is cut into pieces."""

from __future__ import annotations

import functools
import logging
import os
import random
import struct
import threading
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbdwire as n
from fuzz.harness import corpus, for_a_while, guarded, under_atheris
from nbdwire import connect
from vmdkit.device import BlockSize
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.nbd import Export, Options, Server
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

SIZE: Final = 1 << 20
SECONDS: Final = 5.0
EDGES: Final = (0, 1, 511, 512, 4096, 65535, 65536, SIZE - 1, SIZE, SIZE + 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
NAMES: Final = ("", "disk", "faulty", "blocks", "nothere")
OPTIONS: Final = (*range(13), 0xFFFFFFFF)


class Bugs(logging.Handler):
    """Keeps what the server says of itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@functools.cache
def server() -> tuple[Server, Bugs]:
    """One server for all inputs: a disk, one that fails in places, one with large blocks."""
    bugs = Bugs()
    logging.getLogger("vmdkit.nbd").addHandler(bugs)
    faults = [Fault(verb, 65536, 4096) for verb in ("read", "write", "zero", "extents")]
    exports = [
        Export(MemoryDevice(SIZE), "disk", read_only=False),
        Export(FaultDevice(MemoryDevice(SIZE), faults), "faulty", read_only=False),
        Export(MemoryDevice(SIZE, writable=False, block_size=BlockSize(4096, 4096, 65536)), "blocks"),
    ]
    return Server(exports, options=Options(spin=0, handshake_seconds=SECONDS / 2)), bugs


def target(data: bytes) -> None:
    """Be a client that says ``data`` and then nothing."""
    running, bugs = server()
    step = (1, 3, 28, 1000, 1 << 30)[data[0] % 5] if data else 1
    with connect(running, timeout=SECONDS) as client:
        # What the server says is taken meanwhile, or both would wait for one another for ever.
        taker = threading.Thread(target=_take, args=(client,))
        taker.start()
        try:
            for at in range(1, len(data), step):
                client.send(data[at : at + step])
            client.sock.shutdown(1)
        except OSError:
            pass  # it has had enough
        taker.join(SECONDS)
        assert not taker.is_alive(), "neither a reply nor the end"
    assert not bugs.said
    with connect(running, timeout=SECONDS) as client:
        assert client.enter().alive()


def _take(client: n.Client) -> None:
    try:
        while client.sock.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        threading.Event().wait(SECONDS)  # seen by who waits for this thread


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def option(rng: random.Random) -> bytes:
    """Return an option, more or less sound."""
    number, name = rng.choice(OPTIONS), rng.choice(NAMES)
    data = rng.choice(
        [b"", n.go(name, [3]), n.meta(name, ["base:allocation", "base:"][: rng.randrange(3)]), name.encode()]
    )
    length = len(data) if rng.random() < 0.9 else rng.choice(EDGES) % 2**32
    return struct.pack(">8sII", b"IHAVEOPT", number, length) + data


def request(rng: random.Random, mode: int) -> bytes:
    """Return a request, more or less sound."""
    command = rng.choice([*range(8), 0, 0, 7, 1, 6, 99])
    flags = rng.choice([0, 0, 0, 1, 2, 4, 8, 16, 32, 63, 0x8000])
    length = rng.choice([*EDGES[:8], 100, rng.randrange(70_000)]) if rng.random() < 0.9 else rng.choice(EDGES)
    offset = rng.choice(EDGES) if rng.random() < 0.4 else rng.randrange(SIZE)
    if mode == 2:
        head = struct.pack(">IHHQQQ", 0x21E41C71, flags | (32 if command == 1 else 0), command, 1, offset, length)
    else:
        head = struct.pack(">IHHQQI", 0x25609513, flags, command, 1, offset, length % 2**32)
    carries = command == 1 or (mode == 2 and flags & 32)
    return head + (rng.randbytes(min(length, 100_000)) if carries else b"")


def make(rng: random.Random) -> bytes:
    """Return what a client may say: a handshake that often works, requests, and then something broken in them."""
    mode = rng.randrange(3)
    words = [struct.pack(">I", rng.choice([0, 1, 3, 3, 3, 3, 7]))]
    words += [option(rng) for _ in range(rng.choice([0, 0, 1, 5]))]
    if mode:
        words.append(struct.pack(">8sII", b"IHAVEOPT", n.STRUCTURED if mode == 1 else n.EXTENDED, 0))
    name = rng.choice(NAMES[:4])
    for number, data in ((n.SET_META, n.meta(name, ["base:allocation"])), (n.GO, n.go(name, [3]))):
        words.append(struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data)
    words += [request(rng, mode) for _ in range(rng.choice([1, 5, 30]))]
    stream = bytearray(b"".join(words))
    for _ in range(rng.choice([0, 0, 1, 3])):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    if rng.random() < 0.3:
        del stream[rng.randrange(len(stream)) :]
    return bytes([rng.choice([0, 1, 2, 3, 4, 4, 4]) if len(stream) < 5000 else 4]) + bytes(stream)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_streams(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(body: bytes, entered: bool) -> None:
    data = n.go("disk", [3])
    head = struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", n.GO, len(data)) + data
    guarded(target, b"\4" + (head if entered else b"") + body)


@pytest.mark.parametrize("path", corpus("nbd_server"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


def test_nothing_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    target(b"\0")
    before = count()
    for number in range(20):
        target(make(random.Random(number)))
    assert count() <= before + 1  # the last client may not be buried yet


if __name__ == "__main__":
    under_atheris(target)
