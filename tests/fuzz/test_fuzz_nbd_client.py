# Invariant: any bytes from a server: requests done, or RemoteProtocolError; no other exception, no step without
# progress, no byte outside the caller's buffers, and no memory beyond what the requests and the limits allow.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Handshakes and replies, broken. The first byte says what is spoken to, and how the rest is cut into pieces."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import corpus, for_a_while, guarded, under_atheris
from vmdkit.errors import RemoteProtocolError, ReplyError, UnsupportedError
from vmdkit.nbd.client_core import Core, Request
from vmdkit.nbd.client_handshake import Answer, Handshake
from vmdkit.nbd.client_negotiate import Agreement, Wishes, negotiate
from vmdkit.nbd.protocol import ExportFlag, Mode

if TYPE_CHECKING:
    from pathlib import Path

SIZE: Final = 1 << 20
CONTEXTS: Final = {1: "base:allocation", 7: "qemu:allocation-depth"}
EDGES: Final = (0, 1, 8, 9, 11, 12, 511, 512, 4096, 65535, 65536, SIZE - 1, SIZE, SIZE + 1, 2**31, 2**32 - 1, 2**63)
FIRST: Final = 101  # the first cookie
MARK: Final = 0xEE


class Ended(Exception):  # noqa: N818  # the input
    """The bytes are used up."""


def target(data: bytes) -> None:
    """Feed a handshake (first byte below 64) or replies in one of three modes to a client."""
    if not data:
        return
    kind, stream = data[0], data[1:]
    if kind < 64:
        handshake(stream)
    else:
        transmission(stream, Mode(kind % 3), 1 if kind & 4 else len(stream) + 1)


def handshake(stream: bytes) -> None:
    machine = Handshake("fuzz")
    at = 0

    def take() -> None:
        nonlocal at
        while due := machine.wants():
            assert due <= 1 << 17
            if at + due > len(stream):
                raise Ended
            at += due
            machine.feed(stream[at - due : at])

    def exchange(option: int, data: bytes) -> Answer:
        machine.ask(option, data)
        take()
        return machine.answer

    try:
        take()
        agreed = negotiate(machine, exchange, Wishes())
    except (Ended, RemoteProtocolError, ReplyError, UnsupportedError):
        return
    assert 0 <= agreed.size < 2**63
    assert agreed.sizes is None or not agreed.size % agreed.sizes[0]


def transmission(stream: bytes, mode: Mode, step: int) -> None:
    core = Core("fuzz", Agreement("", SIZE, ExportFlag.HAS_FLAGS, mode, contexts=dict(CONTEXTS)))
    core._cookie = FIRST - 1  # a real one begins where nobody can guess
    memory = bytearray(bytes([MARK]) * (4 * 4096 + 3 * 65536))
    small, large = memoryview(memory)[4096:8192], memoryview(memory)[2 * 65536 : 3 * 65536]
    requests = [
        Request(0, 8192, len(small), 0, small),
        Request(7, 4096, 65536),
        Request(1, 0, 512),
        Request(0, 65536, len(large), 0, large),
        Request(3, 0, 0),
        Request(7, 0, SIZE, 8),
        Request(0, 0, 0, 4, memoryview(bytearray())),
    ]
    for request in requests:
        if request.command == 7:
            request.wanted = frozenset(CONTEXTS)
        core.begin(request)
    core.large = 1
    at, turns = 0, 0
    try:
        while at < len(stream):
            place = core.wants()
            assert 0 < len(place) <= 17 << 20
            count = min(len(place), len(stream) - at, step)
            place[:count] = stream[at : at + count]
            at += count
            turns += 1
            for request in core.filled(count):
                check(request)
        assert turns <= len(stream)
    except RemoteProtocolError:
        pass
    outside = [memory[:4096], memory[8192 : 2 * 65536], memory[3 * 65536 :]]
    assert not any(part.count(MARK) - len(part) for part in outside)


def check(request: Request) -> None:
    """See that what is done is whole."""
    if request.error is not None:
        assert isinstance(request.error, ReplyError)
    elif request.view is not None:
        assert request.data == request.count
    elif request.wanted:
        assert request.extents.keys() == request.wanted
        for lengths, flags in request.extents.values():
            assert len(lengths) == len(flags) > 0
            assert 0 not in lengths
            assert request.offset + sum(lengths) <= SIZE


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def chunk(rng: random.Random, mode: int) -> bytes:
    """Return a reply, or a part of one, more or less sound."""
    cookie = FIRST + rng.randrange(8) if rng.random() < 0.97 else rng.choice(EDGES)
    if mode == 0 or rng.random() < 0.2:
        error = rng.choice([0, 0, 5, 22, 4711])
        size = {FIRST: 4096, FIRST + 3: 65536}.get(cookie, 0) if not error and mode == 0 else 0
        return struct.pack(">IIQ", 0x67446698, error, cookie) + rng.randbytes(size)
    start, count = {FIRST: (8192, 4096), FIRST + 3: (65536, 65536)}.get(cookie, (0, 512))
    at, length = start, count
    if rng.random() < 0.5:
        at = start + rng.randrange(count)
        length = rng.randrange(count) if rng.random() < 0.9 else rng.choice(EDGES[:13])
    kind = rng.choice([0, 1, 1, 2, 5, 5, 6, 0x8001, 0x8002, 3, 0xFFFF])
    body = {
        1: struct.pack(">Q", at) + rng.randbytes(min(length, 70_000)),
        2: struct.pack(">QI", at, length % 2**32),
        5: struct.pack(">I", rng.choice([1, 7, 9])) + extents(rng, ">II"),
        6: struct.pack(">II", rng.choice([1, 7]), rng.choice([1, 2])) + extents(rng, ">QQ"),
        0x8001: struct.pack(">IH", rng.choice([0, 5, 28]), 2) + b"no",
        0x8002: struct.pack(">IHQ", 5, 0, at),
    }.get(kind, b"")
    size = len(body) if rng.random() < 0.95 else rng.choice(EDGES)
    done = rng.choice([0, 1, 1])
    if mode == 2:
        offset = {FIRST: 8192, FIRST + 1: 4096, FIRST + 3: 65536}.get(cookie, 0)
        return struct.pack(">IHHQQQ", 0x6E8A278C, done, kind, cookie, offset, size) + body
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, size % 2**32) + body


def extents(rng: random.Random, code: str) -> bytes:
    return b"".join(
        struct.pack(code, rng.choice([512, 4096, 65536, *EDGES[:4]]), rng.randrange(4)) for _ in range(rng.randrange(4))
    )


def option_reply(rng: random.Random, option: int) -> bytes:
    """Return one reply to an option, more or less sound."""
    kind = rng.choice([1, 1, 3, 3, 4, 2, 2**31 + 1, 2**31 + 6])
    info = rng.choice([
        struct.pack(">HQH", 0, rng.choice([SIZE, 2**63 - 1, 2**63]), rng.choice([1, 0, 2, 4095])),
        struct.pack(">HIII", 3, rng.choice([1, 512, 3, 0]), rng.choice([512, 4096]), rng.choice([65536, 2**32 - 1])),
        b"\0\1name", b"\0\2text", b"\0",
    ])  # fmt: skip
    body = {3: info, 4: struct.pack(">I", rng.randrange(3)) + b"base:allocation", 2: struct.pack(">I", 2) + b"ab"}
    data = body.get(kind, b"" if rng.random() < 0.9 else b"x")
    size = len(data) if rng.random() < 0.97 else rng.choice(EDGES) % 2**32
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, size) + data


def make(rng: random.Random) -> bytes:
    """Return what a server may say, often sound for a while."""
    if rng.random() < 0.4:
        second = b"IHAVEOPT" if rng.random() < 0.9 else b"\0\0\x42\x02\x81\x86\x12\x53"
        words = [b"NBDMAGIC", second, b"\0" + bytes([rng.choice([3, 3, 3, 1, 0])])]
        for option in (11, 8, 9, 10, 7):
            words += [option_reply(rng, option) for _ in range(rng.randrange(1, 4))]
        head = rng.randrange(64)
    else:
        mode = rng.randrange(3)
        words = [chunk(rng, mode) for _ in range(rng.choice([1, 4, 12]))]
        step = 4 if sum(map(len, words)) < 3000 and rng.random() < 0.3 else 0
        head = next(value for value in range(64, 256) if value % 3 == mode and value & 4 == step)
    stream = bytearray(b"".join(words))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    if rng.random() < 0.2:
        del stream[rng.randrange(len(stream)) :]
    return bytes([head]) + bytes(stream)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_streams(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    guarded(target, data)


@pytest.mark.parametrize("path", corpus("nbd_client"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


if __name__ == "__main__":
    under_atheris(target)
