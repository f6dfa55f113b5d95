# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes and pieces of files leave in order, however little the socket takes at a time."""

from __future__ import annotations

import random
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from vmdkit.nbd.sender import Outbox, Sender
from vmdkit.nbd.transport import PlainTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pair() -> Iterator[tuple[Sender, socket.socket]]:
    """A sender whose socket takes little, and the other end."""
    ours, theirs = socket.socketpair()
    sender = Sender(PlainTransport(ours))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        yield sender, theirs


def receive(sender: Sender, sock: socket.socket, count: int, dice: random.Random) -> bytes:
    """Take ``count`` bytes in odd steps, flushing in between."""
    out = b""
    while len(out) < count:
        out += sock.recv(min(dice.randrange(1, 9000), count - len(out)))
        sender.flush()
    return out


@pytest.mark.parametrize("seed", range(10))
def test_order(pair: tuple[Sender, socket.socket], tmp_path: Path, seed: int) -> None:
    sender, theirs = pair
    dice = random.Random(seed)
    content = dice.randbytes(100_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = b""
    released: list[int] = []
    shared = bytearray(50_000)
    with path.open("rb") as file:
        for number in range(30):
            count = dice.randrange(1, 40_000)
            kind = dice.randrange(3)
            if kind == 0:  # memory that is used again at once
                data = dice.randbytes(count)
                shared[:count] = data
                sender.send(memoryview(shared)[:count], more=bool(dice.randrange(2)))
                shared[:count] = bytes(count)
            elif kind == 1:
                data = dice.randbytes(count)
                sender.send_owned(memoryview(data), partial(released.append, number))
            else:
                at = dice.randrange(60_000)
                data = content[at : at + count]
                sender.send_file(file.fileno(), at, count)
            expected += data
        assert sender.blocked
        assert sender.queued > 0
        assert receive(sender, theirs, len(expected), dice) == expected
        assert not sender.blocked
        assert sender.queued == 0
        assert released == sorted(released)


def test_a_file_that_ends_too_early(pair: tuple[Sender, socket.socket], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    sender, _ = pair
    with path.open("rb") as file, pytest.raises(OSError, match="promised"):
        sender.send_file(file.fileno(), 500, 1000)


def test_drop_releases(pair: tuple[Sender, socket.socket]) -> None:
    sender, _ = pair
    released = []
    sender.send_owned(memoryview(bytes(1_000_000)), lambda: released.append(1))
    assert sender.blocked
    assert not released
    sender.drop()
    assert released == [1]
    assert not sender.blocked


def test_release_when_the_peer_is_gone(pair: tuple[Sender, socket.socket]) -> None:
    sender, theirs = pair
    theirs.close()
    released = []
    with pytest.raises(BrokenPipeError):
        sender.send_owned(memoryview(b"x"), lambda: released.append(1))
    assert released == [1]


def test_outbox(pair: tuple[Sender, socket.socket]) -> None:
    sender, theirs = pair
    outbox = Outbox(memoryview(bytearray(100)), sender)
    outbox.put(b"a" * 60)
    outbox.put(b"b" * 60)  # does not fit beside the first
    assert theirs.recv(1000) == b"a" * 60
    outbox.put(b"c" * 150)  # does not fit at all
    assert receive(sender, theirs, 210, random.Random(1)) == b"b" * 60 + b"c" * 150
    outbox.flush()
    outbox.put(b"d")
    outbox.flush(more=True)
    assert theirs.recv(10) == b"d"
