# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Maps that no good server sends: a backup that believed them would leave out data, or never end."""

from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nbd_peer import EXTENTS, EXTENTS_64, NONE, SIZE, STATUS, Asked, Peer, device
from vmdkit.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    Act = Callable[[Peer, Asked], None]

DEPTH, ALLOCATION = "qemu:allocation-depth", "base:allocation"
AT, COUNT = 0x3000, 0x2000  # what is asked about


def answering(*acts: Act, **good: Any) -> Callable[[Peer], None]:
    """Shake hands as a good server, and answer each request by the next of ``acts``, the last one ever after."""

    def script(peer: Peer) -> None:
        peer.handshake(**good)
        left = list(acts)
        while True:
            act = left.pop(0) if len(left) > 1 else left[0]
            act(peer, peer.request())

    return script


def extents(*pairs: tuple[int, int], context: int = 1) -> Act:
    def act(peer: Peer, asked: Asked) -> None:
        peer.extents(asked, *pairs, context=context)

    return act


def both(first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...], *contexts: int) -> Act:
    def act(peer: Peer, asked: Asked) -> None:
        for pairs, context in zip((first, second), contexts, strict=True):
            if pairs:
                peer.extents(asked, *pairs, context=context, flags=0)
        peer.chunk(asked, NONE)

    return act


def payload(kind: int, data: bytes, **other: Any) -> Act:
    return lambda peer, asked: peer.chunk(asked, kind, data, **other)


BROKEN: dict[str, tuple[Act, str]] = {
    "no length": (extents((0, 0)), "an extent of no bytes in reply to the block status of 8192 bytes at 0x3000"),
    "no length, later": (extents((512, 0), (0, 3), (512, 0)), "an extent of no bytes"),
    "past the end": (extents((SIZE - AT + 1, 0)), "extents up to 0x800001 in reply to"),
    "far past the end": (extents((2**32 - 1, 0)), "the export has 0x800000 bytes"),
    "more than asked": (extents((COUNT, 0), (1, 3)), "more extents than the block status of 8192 bytes"),
    "another context": (extents((COUNT, 0), context=2), "the status of context number 2, which was not agreed on"),
    "none": (payload(NONE, b""), "no status of base:allocation in reply to"),
    "no extents": (payload(EXTENTS, b"\0\0\0\1"), "a chunk of type 5 with 4 bytes"),
    "half an extent": (payload(EXTENTS, b"\0\0\0\1" + bytes(12)), "in 16 bytes, which are no whole number of extents"),
    "wide": (payload(EXTENTS_64, bytes(24)), "a chunk of type 6 in reply to .*; the other width was agreed on"),
    "simple": (lambda peer, asked: peer.simple(asked.cookie), "a simple reply to the block status"),
    "data": (lambda peer, asked: peer.data(asked, AT, b"x"), "a chunk of type 1 in reply to the block status"),
    "twice": (both(((COUNT, 0),), ((COUNT, 0),), 1, 1), "the status of context number 1 twice"),
    "huge": (payload(EXTENTS, b"", length=2**32 - 1), "a chunk of type 5 with 4294967295 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    act, message = BROKEN[name]
    with device(answering(act)) as opened, pytest.raises(RemoteProtocolError, match=message):
        list(opened.extents(COUNT, AT))


WIDE: dict[str, tuple[Act, str]] = {
    "narrow": (payload(EXTENTS, bytes(12)), "a chunk of type 5 in reply to .*; the other width was agreed on"),
    "count": (payload(EXTENTS_64, struct.pack(">IIQQ", 1, 2, 1, 0)), "which are no whole number of extents"),
    "no length": (extents((0, 0)), "an extent of no bytes"),
    "wrapping": (extents((2**64 - 1, 0)), "extents up to 0x10000000000002fff"),
    "wrapping in sum": (extents((1, 0), (2**64 - 1, 0)), "extents up to 0x10000000000003000"),
    "huge": (payload(EXTENTS_64, b"", length=2**64 - 1), "a chunk of type 6 with 18446744073709551615 bytes"),
}


@pytest.mark.parametrize("name", WIDE)
def test_broken_with_extended_headers(name: str) -> None:
    act, message = WIDE[name]
    with device(answering(act, mode=2)) as opened, pytest.raises(RemoteProtocolError, match=message):
        list(opened.extents(COUNT, AT))


def test_one_context_of_two_is_missing() -> None:
    script = answering(both(((COUNT, 0),), (), 1, 2), contexts=(ALLOCATION, DEPTH))
    with (
        device(script) as opened,
        pytest.raises(RemoteProtocolError, match="no status of qemu:allocation-depth in reply to"),
    ):
        list(opened.extents(COUNT, AT))


def test_each_context_has_its_own_map() -> None:
    script = answering(both(((COUNT, 3),), ((512, 1), (COUNT, 2)), 1, 2), contexts=(ALLOCATION, DEPTH))
    with device(script) as opened:
        assert opened.contexts == (ALLOCATION, DEPTH)
        assert list(opened.extents(COUNT, AT)) == [(AT, COUNT, 3)]
        assert list(opened.extents(COUNT, AT, context=DEPTH)) == [(AT, 512, 1), (AT + 512, COUNT - 512, 2)]


def test_short_answers_are_asked_on() -> None:
    asked_about: list[tuple[int, int]] = []

    def act(peer: Peer, asked: Asked) -> None:
        asked_about.append((asked.offset, asked.length))
        peer.extents(asked, (min(3000, asked.length), len(asked_about) % 2))

    with device(answering(act)) as opened:
        found = list(opened.extents(COUNT, AT))
    assert found == [(AT, 3000, 1), (AT + 3000, 3000, 0), (AT + 6000, 2192, 1)]
    assert asked_about == [(AT, 8192), (AT + 3000, 5192), (AT + 6000, 2192)]


def test_the_last_extent_may_go_on() -> None:
    """As far as the protocol lets it: past the question, not past the export."""
    with device(answering(extents((COUNT - 1, 3), (SIZE - AT - COUNT + 1, 0)))) as opened:
        assert list(opened.extents(COUNT, AT)) == [(AT, COUNT - 1, 3), (AT + COUNT - 1, 1, 0)]


def test_unknown_flags_are_no_holes() -> None:
    with device(answering(extents((COUNT, 0xFFFFFFFC)))) as opened:
        assert list(opened.extents(COUNT, AT)) == [(AT, COUNT, 0)]


def test_extents_that_cut_a_block() -> None:
    """The next question could not be asked. What was told until then was good."""
    script = answering(extents((512, 3)), extents((700, 0)), blocks=(512, 4096, 1 << 20))
    with device(script) as opened:
        runs = opened.extents(COUNT, AT)
        with pytest.raises(RemoteProtocolError, match="an extent that ends at 0x34bc, in the middle of a block of 512"):
            list(runs)


def test_questions_keep_to_blocks() -> None:
    def act(peer: Peer, asked: Asked) -> None:
        assert not asked.offset % 512
        assert not asked.length % 512
        peer.extents(asked, (512, 1), (asked.length - 512, 0))

    with device(answering(act, blocks=(512, 4096, 1 << 20))) as opened:
        assert list(opened.extents(1000, AT + 100)) == [(AT + 100, 412, 1), (AT + 512, 588, 0)]
        assert list(opened.extents(3, AT + 511)) == [(AT + 511, 1, 1), (AT + 512, 2, 0)]


def test_a_map_without_end_takes_no_memory() -> None:
    """A byte at a time: whoever asks for a part gets it, and may stop."""

    def act(peer: Peer, asked: Asked) -> None:
        peer.extents(asked, (1, asked.offset % 2))

    tracemalloc.start()
    try:
        with device(answering(act, size=1 << 40)) as opened:
            runs = opened.extents()
            assert [next(runs) for _ in range(500)][-1] == (499, 1, 1)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_filter_is_sent_where_the_server_takes_one() -> None:
    """With extended headers and BLOCK_STATUS_PAYLOAD only the wanted context is asked about."""
    seen: list[bytes] = []

    def act(peer: Peer, asked: Asked) -> None:
        seen.append(asked.payload)
        assert asked.command == STATUS
        peer.extents(asked, (COUNT, 7), context=2)

    script = answering(act, mode=2, contexts=(ALLOCATION, DEPTH), flags=1 | 4096)
    with device(script) as opened:
        assert list(opened.extents(COUNT, AT, context=DEPTH)) == [(AT, COUNT, 7)]
        with pytest.raises(RemoteProtocolError, match="context number 2, which was not agreed on, or not asked for"):
            list(opened.extents(COUNT, AT))
    assert seen == [struct.pack(">QI", COUNT, 2), struct.pack(">QI", COUNT, 1)]
