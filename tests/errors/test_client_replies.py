# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Replies that no good server sends: each ends the connection with an error that says what was wrong."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nbd_peer import (
    DATA,
    DONE,
    ERROR,
    ERROR_OFFSET,
    EXTENTS,
    FLAGS,
    HOLE,
    NONE,
    Asked,
    Peer,
    device,
)
from vmdkit.errors import RemoteProtocolError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.nbd import NbdDevice

    Act = Callable[[Peer, Asked], None]

AT, COUNT = 0x3000, 0x2000  # what is read
END = AT + COUNT


def first(act: Act, **good: Any) -> Callable[[Peer], None]:
    """Shake hands as a good server, and answer the first request by ``act``."""

    def script(peer: Peer) -> None:
        peer.handshake(**good)
        act(peer, peer.request())
        peer.until_gone()

    return script


def read(opened: NbdDevice) -> None:
    opened.pread(COUNT, AT)


def pieces(*parts: tuple[int, int], last: int = NONE) -> Act:
    """Answer a read by pieces of data (offset, length), and an empty chunk."""

    def act(peer: Peer, asked: Asked) -> None:
        for offset, length in parts:
            peer.data(asked, offset, b"x" * length, 0)
        peer.chunk(asked, last)

    return act


def holes(*parts: tuple[int, int]) -> Act:
    def act(peer: Peer, asked: Asked) -> None:
        for offset, length in parts:
            peer.hole(asked, offset, length, 0)
        peer.chunk(asked, NONE)

    return act


def raw(data: bytes) -> Act:
    return lambda peer, asked: peer.send(data)


def chunk(kind: int, payload: bytes, flags: int = DONE, **other: Any) -> Act:
    return lambda peer, asked: peer.chunk(asked, kind, payload, flags, **other)


def offset(value: int) -> bytes:
    return struct.pack(">Q", value)


READS: dict[str, tuple[Act, str]] = {
    "magic": (raw(bytes(16)), "a reply begins with 0x0; 0x67446698 or 0x668e33ef was expected"),
    "extended magic": (raw(b"\x6e\x8a\x27\x8c" + bytes(28)), "a reply begins with 0x6e8a278c"),
    "request magic": (raw(b"\x25\x60\x95\x13" + bytes(28)), "a reply begins with 0x25609513"),
    "simple reply": (lambda peer, asked: peer.simple(asked.cookie, 0, bytes(COUNT)), "a simple reply to the read of"),
    "simple error": (lambda peer, asked: peer.simple(asked.cookie, 5), "a simple reply to the read of"),
    "wrong cookie": (chunk(NONE, b"", cookie=7), "a reply with cookie 0x7; no request that waits has it"),
    "unknown chunk": (chunk(3, b"1234"), "a chunk of type 3 in reply to the read of 8192 bytes at 0x3000"),
    "status of a read": (chunk(EXTENTS, bytes(12)), "a chunk of type 5 in reply to the read"),
    "empty data": (chunk(DATA, offset(AT)), "a chunk of type 1 with 8 bytes"),
    "no offset": (chunk(DATA, b"1234"), "a chunk of type 1 with 4 bytes"),
    "too much": (chunk(DATA, offset(AT) + bytes(COUNT + 1)), "with 8201 bytes in reply to the read of 8192"),
    "announces 4 GiB": (chunk(DATA, offset(AT), length=2**32 - 1), "with 4294967295 bytes in reply"),
    "below": (pieces((AT - 1, COUNT)), "8192 bytes at 0x2fff in reply to the read"),
    "at 0": (pieces((0, 1)), "1 bytes at 0x0 in reply"),
    "above": (pieces((AT + 1, COUNT)), "8192 bytes at 0x3001 in reply"),
    "at the end": (pieces((END, 1)), "1 bytes at 0x5000 in reply"),
    "wrapping": (pieces((2**64 - 1, 2)), "2 bytes at 0xffffffffffffffff in reply"),
    "twice": (pieces((AT, COUNT), (AT, 1)), "bytes at 0x3000 twice"),
    "overlap behind": (pieces((AT, 100), (AT + 99, 100)), "bytes at 0x3063 twice"),
    "overlap before": (pieces((AT + 50, 100), (AT, 51)), "bytes at 0x3000 twice"),
    "overlap inside": (pieces((AT, 10), (AT + 90, 10), (AT + 5, 90)), "bytes at 0x3005 twice"),
    "around": (pieces((AT + 50, 100), (AT, 200)), "bytes at 0x3000 twice"),
    "missing end": (pieces((AT, COUNT - 1)), "only 8191 bytes in reply to the read of 8192 bytes at 0x3000, and no"),
    "missing begin": (pieces((AT + 1, COUNT - 1)), "only 8191 bytes"),
    "missing middle": (pieces((AT, 100), (AT + 101, COUNT - 101)), "only 8191 bytes"),
    "nothing": (pieces(), "only 0 bytes"),
    "empty hole": (holes((AT, 0)), "0 bytes at 0x3000"),
    "hole above": (holes((AT, COUNT + 1)), "8193 bytes at 0x3000"),
    "hole of 4 GiB": (holes((AT, 2**32 - 1)), "4294967295 bytes at 0x3000"),
    "hole twice": (holes((AT, COUNT), (AT, COUNT)), "bytes at 0x3000 twice"),
    "hole with data": (chunk(HOLE, offset(AT) + bytes(5)), "a chunk of type 2 with 13 bytes"),
    "none that goes on": (chunk(NONE, b"", 0), "an empty chunk in reply to the read of 8192 bytes at 0x3000"),
    "none with bytes": (chunk(NONE, b"x"), "a chunk of type 0 with 1 bytes"),
    "short error": (chunk(ERROR, bytes(5)), "an error of 5 bytes"),
    "long error": (chunk(ERROR, bytes(5000)), "an error of 5000 bytes"),
    "error 0": (chunk(ERROR, bytes(6)), "an error chunk in reply to the read of 8192 bytes at 0x3000 that says 0"),
    "error text": (chunk(ERROR, struct.pack(">IH", 5, 9) + b"short"), "with a text of 9 bytes in a chunk of 11"),
    "error offset": (chunk(ERROR_OFFSET, struct.pack(">IHQ", 5, 0, AT - 1)), "an error at 0x2fff"),
    "error behind": (chunk(ERROR_OFFSET, struct.pack(">IHQ", 5, 0, END)), "an error at 0x5000"),
    "error without offset": (chunk(ERROR_OFFSET, struct.pack(">IHI", 5, 4, 0)), "with a text of 4 bytes in a chunk of"),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_reads(name: str) -> None:
    act, message = READS[name]
    with device(first(act)) as opened:
        for _ in range(2):  # what ended the connection is what every later request is told
            with pytest.raises(RemoteProtocolError) as caught:
                read(opened)
            assert str(caught.value).startswith("liar: the server broke the protocol: ")
            assert message in str(caught.value)


def test_data_after_an_error_at_the_same_place() -> None:
    def act(peer: Peer, asked: Asked) -> None:
        peer.error(asked, 5, b"", 0, offset=AT + 100)
        peer.data(asked, AT, bytes(101))

    with device(first(act)) as opened, pytest.raises(RemoteProtocolError, match="after an error at 0x3064"):
        read(opened)


def test_an_error_is_an_error_whatever_else_comes() -> None:
    """All bytes, an error in their middle, more bytes: the read fails, and the connection lives."""

    def script(peer: Peer) -> None:
        peer.handshake()
        asked = peer.request()
        peer.data(asked, AT, bytes(COUNT // 2), 0)
        peer.error(asked, 28, b"no space here", 0, offset=AT + 5)
        peer.data(asked, AT + COUNT // 2, bytes(COUNT // 2), 0)
        peer.chunk(asked, NONE)
        peer.serve()

    with device(script) as opened:
        with pytest.raises(ReplyError) as caught:
            read(opened)
        assert (caught.value.errno, caught.value.offset) == (28, AT + 5)
        assert "No space left on device: no space here" in str(caught.value)
        assert opened.pread(1, 0) == b"\0"


def test_errors_without_end() -> None:
    def act(peer: Peer, asked: Asked) -> None:
        while True:
            peer.error(asked, 5, b"", 0)

    with device(first(act)) as opened, pytest.raises(RemoteProtocolError, match="more than 64 errors"):
        read(opened)


def test_crumbs() -> None:
    """A byte at a time, in any order: no list of pieces grows with them."""

    def act(peer: Peer, asked: Asked) -> None:
        for at in range(AT, END, 2):
            peer.data(asked, at, b"x", 0)

    with device(first(act)) as opened, pytest.raises(RemoteProtocolError, match="97 chunks in reply to the read"):
        read(opened)


def test_a_second_piece_of_what_must_be_whole() -> None:
    from vmdkit.nbd.client_pool import Job

    with device(first(pieces((AT, 10), (AT + 10, COUNT - 10)))) as opened:
        job = Job(0, AT, COUNT, 4, memoryview(bytearray(COUNT)))
        with pytest.raises(RemoteProtocolError, match="a second piece"):
            opened._pool.run(job)


def test_pieces_in_any_order_are_good() -> None:
    content = bytes(range(256)) * (COUNT // 256)

    def act(peer: Peer, asked: Asked) -> None:
        cuts = [0, 1, 500, 512, 4000, 4097, COUNT]
        parts = list(pairwise(cuts))
        for start, end in (parts[3], parts[0], parts[5], parts[1], parts[4], parts[2]):
            peer.data(asked, AT + start, content[start:end], 0)
        peer.chunk(asked, NONE)

    with device(first(act)) as opened:
        assert opened.pread(COUNT, AT) == content


def test_holes_overwrite_what_the_buffer_held() -> None:
    def act(peer: Peer, asked: Asked) -> None:
        peer.data(asked, AT, b"x", 0)
        peer.hole(asked, AT + 1, COUNT - 1)

    buf = bytearray(b"\xee" * COUNT)
    with device(first(act)) as opened:
        opened.pread_into(buf, AT)
    assert buf == b"x" + bytes(COUNT - 1)


def test_simple_replies_have_one_magic() -> None:
    with (
        device(first(chunk(NONE, b""), mode=0)) as opened,
        pytest.raises(RemoteProtocolError, match="a reply begins with 0x668e33ef; 0x67446698 was expected"),
    ):
        read(opened)


def test_extended_replies_name_their_request() -> None:
    with (
        device(first(chunk(NONE, b"", offset=1), mode=2)) as opened,
        pytest.raises(RemoteProtocolError, match="a reply to the read of 8192 bytes at 0x3000 that speaks of 0x1"),
    ):
        read(opened)


def test_extended_lengths_are_bounded_too() -> None:
    tracemalloc.start()
    try:
        with (
            device(first(chunk(DATA, offset(AT), length=2**64 - 1), mode=2)) as opened,
            pytest.raises(RemoteProtocolError, match="with 18446744073709551615 bytes"),
        ):
            read(opened)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_errors_that_are_not_known_mean_nonsense() -> None:
    """So the protocol says; and the connection lives."""

    def script(peer: Peer) -> None:
        peer.handshake(mode=0)
        peer.simple(peer.request().cookie, 4711)
        peer.serve()

    with device(script) as opened:
        with pytest.raises(ReplyError, match=r"could not do the read of .*: Invalid argument") as caught:
            read(opened)
        assert caught.value.errno == 22
        assert opened.pread(1, 0) == b"\0"


def test_unknown_kinds_of_errors_are_errors() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        peer.chunk(peer.request(), 0xFFFF, struct.pack(">IH", 5, 3) + b"odd and more")
        peer.serve()

    with device(script) as opened:
        with pytest.raises(ReplyError, match="Input/output error: odd"):
            read(opened)
        assert opened.pread(1, 0) == b"\0"


@pytest.mark.parametrize("kind", ["write", "zero", "trim", "flush", "cache"])
def test_data_where_none_was_asked_for(kind: str) -> None:
    acts: dict[str, Callable[[NbdDevice], None]] = {
        "write": lambda opened: opened.pwrite(b"x", 0),
        "zero": lambda opened: opened.zero(4096, 0),
        "trim": lambda opened: opened.trim(4096, 0),
        "flush": lambda opened: opened.flush(),
        "cache": lambda opened: opened.cache(4096, 0),
    }
    name = "write zeroes" if kind == "zero" else kind
    with (
        device(first(chunk(DATA, offset(0) + b"x"), flags=FLAGS)) as opened,
        pytest.raises(RemoteProtocolError, match=f"a chunk of type 1 in reply to the {name}"),
    ):
        acts[kind](opened)


def test_one_reply_twice() -> None:
    def act(peer: Peer, asked: Asked) -> None:
        for _ in range(2):
            peer.data(asked, AT, bytes(COUNT))

    with device(first(act)) as opened:
        read(opened)
        with pytest.raises(RemoteProtocolError, match="no request that waits has it"):
            read(opened)
