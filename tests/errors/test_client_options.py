# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A server that answers options as no server may; each answer is an error that says what was expected."""

from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from fakes.nbd_peer import (
    ACK,
    ERR,
    EXTENDED,
    GO,
    INFO_REPLY,
    LIST_META,
    META,
    SERVER,
    SET_META,
    TLS_REQD,
    UNKNOWN,
    Peer,
    device,
)  # fmt: skip
from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable


def at(option: int, act: Callable[[Peer], None], **good: object) -> Callable[[Peer], None]:
    """Be good until ``option`` comes, then ``act``."""

    def script(peer: Peer) -> None:
        peer.greet()
        peer.haggle(option, **good)  # type: ignore[arg-type]
        act(peer)
        peer.until_gone()

    return script


def raw(data: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.send(data)


def says(option: int, kind: int, data: bytes = b"", length: int | None = None) -> Callable[[Peer], None]:
    return lambda peer: peer.reply(option, kind, data, length=length)


def info(*parts: bytes) -> Callable[[Peer], None]:
    def act(peer: Peer) -> None:
        for part in parts:
            peer.reply(GO, INFO_REPLY, part)
        peer.reply(GO, ACK)

    return act


EXPORT = struct.pack(">HQH", 0, 1 << 20, 1)

BROKEN = {
    "magic": (EXTENDED, raw(bytes(20)), "begins with 0x0000000000000000, 0x0003e889045565a9 was expected"),
    "another option": (EXTENDED, says(LIST_META, ACK), "it replied to option 9; the one that was sent is 11"),
    "huge": (EXTENDED, says(EXTENDED, ACK, b"", 2**32 - 1), "announces 4294967295 bytes; 65536 are taken"),
    "ack with data": (EXTENDED, says(EXTENDED, ACK, b"x"), "an acknowledgement of option 11 with 1 bytes; none belong"),
    "wrong type": (EXTENDED, says(EXTENDED, SERVER, bytes(4)), "with type 2, which does not belong"),
    "unknown type": (EXTENDED, says(EXTENDED, 77), "with type 77, which does not belong"),
    "context at GO": (GO, says(GO, META, bytes(9)), "with type 4, which does not belong"),
    "long text": (GO, says(GO, UNKNOWN, b"x" * 5000), "an error text of 5000 bytes; 4096 are allowed"),
    "no size": (GO, says(GO, ACK), "acknowledged GO or INFO without a word about the export's size"),
    "short info": (GO, info(b"\0"), "an information of less than two bytes"),
    "short export": (GO, info(bytes(11)), "size and flags in 11 bytes instead of 12"),
    "long export": (GO, info(bytes(13)), "size and flags in 13 bytes instead of 12"),
    "short sizes": (GO, info(EXPORT, b"\0\3" + bytes(11)), "block sizes in 13 bytes instead of 14"),
    "two sizes": (GO, info(EXPORT, struct.pack(">HQH", 0, 2 << 20, 1)), "two sizes, 1048576 and 2097152"),
    "name": (GO, info(EXPORT, b"\0\1" + b"x" * 4097), "the export's name has 4097 bytes; 4096 are allowed"),
    "no UTF-8": (GO, info(EXPORT, b"\0\2\xff"), "the description is not UTF-8"),
    "short context": (LIST_META, says(LIST_META, META, b"1234"), "a context of 4 bytes; a number and a name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers(name: str) -> None:
    option, act, message = BROKEN[name]
    with pytest.raises(RemoteProtocolError) as caught, device(at(option, act)):
        pass
    assert str(caught.value).startswith("liar: the server broke the protocol: ")
    assert message in str(caught.value)


def test_a_context_that_was_not_asked_for() -> None:
    def act(peer: Peer) -> None:
        peer.reply(SET_META, META, struct.pack(">I", 1) + b"other:thing")
        peer.reply(SET_META, ACK)

    message = "selected the context 'other:thing', which was not asked for"
    with pytest.raises(RemoteProtocolError, match=message), device(at(SET_META, act)):
        pass


@pytest.mark.parametrize("second", [(1, "x:two"), (2, "base:allocation")])
def test_a_context_twice(second: tuple[int, str]) -> None:
    def act(peer: Peer) -> None:
        for number, name in ((1, "base:allocation"), second):
            peer.reply(SET_META, META, struct.pack(">I", number) + name.encode())
        peer.reply(SET_META, ACK)

    with pytest.raises(RemoteProtocolError, match="twice"), device(at(SET_META, act)):
        pass


def test_contexts_without_end() -> None:
    def act(peer: Peer) -> None:
        while True:
            peer.reply(LIST_META, META, struct.pack(">I", 0) + b"a:b")

    with pytest.raises(RemoteProtocolError, match="more than 1024 contexts"), device(at(LIST_META, act)):
        pass


def test_information_without_end_takes_no_memory() -> None:
    """Replies that belong, each small, for ever: there is an end to it, in parts and in bytes."""

    def act(peer: Peer) -> None:
        while True:
            peer.reply(GO, INFO_REPLY, b"\x77\x77" + bytes(60000))

    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="has not come to an end"), device(at(GO, act)):
            pass
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_closing_in_the_middle() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.haggle(GO)
        peer.send(struct.pack(">QII", 0x3E889045565A9, GO, ACK))

    with pytest.raises(ConnectionLostError, match=r"during the handshake \(state header\)"), device(script):
        pass


REFUSALS = {
    UNKNOWN: (2, "it has no such export: ask somebody else"),
    TLS_REQD: (95, "speaks with TLS clients only; that is nbds://"),
    ERR + 2: (1, "its policy forbids that"),
    ERR + 7: (108, "it is shutting down"),
    ERR + 4711: (22, "error 4711: ask somebody else"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_are_no_protocol_errors(kind: int) -> None:
    number, text = REFUSALS[kind]
    with pytest.raises(ReplyError) as caught, device(at(GO, says(GO, kind, b"ask somebody else"))):
        pass
    assert caught.value.errno == number
    assert "liar: the server refused the export '': " in str(caught.value)
    assert text in str(caught.value)


def test_information_that_is_not_known_is_ignored() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.haggle(GO)
        peer.reply(GO, INFO_REPLY, b"\x12\x34 whatever")
        peer.info(GO)
        peer.reply(GO, ACK)
        peer.serve()

    with device(script) as opened:
        assert opened.pread(1, 0) == b"\0"
