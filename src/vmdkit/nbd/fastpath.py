# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The hot loop: answer small plain reads and small questions about status. Everything else is somebody else's.

``quick`` makes a function that takes as many requests as it can from the front of an inbox and puts their replies
into an outbox. It stops, without having touched it, at the first request that is not wholly simple: another
command, a flag, a range that is refused, large, spread over several runs, not in a plain file, or not in the page
cache. Whoever calls it handles that one request the long way and comes back; ``turn.py`` puts the system calls
around it. A compiled function of the same signature could take its place.

Costs in CPython 3.11, warm, 4 KiB (bench/bench_nbd.py): unpacking and look-up 0.3 us, preadv 0.6 us, packing 0.1 us;
a hole 0.5 us in all; the two system calls around a batch are shared by its requests. A request's magic, flags and
command are compared as one number, and cookies stay bytes: each number less is 1 % of a request.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from vmdkit.errors import VmdkitError
from vmdkit.nbd.protocol import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    REPLY_DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STATUS_PAIR,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Mode,
)
from vmdkit.nbd.regions import DATA, SHIFT, ZERO
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.nbd.regions import Regions
    from vmdkit.nbd.session import Session

    Quick = Callable[[int, int, int], tuple[int, int]]
    Heads = Callable[[memoryview, int, bytes, int, int], int]

SMALL: Final = 64 * KIB  # from here on sendfile wins over copying twice
NOWAIT_REFUSED: Final = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
MOST_QUICK: Final = 4 * MIB  # bytes; a longer question about status goes the long way
MOST_RUNS: Final = 64  # runs in a quick answer
ROOM: Final = 1024  # bytes; more than any quick reply without data: the longest has MOST_RUNS pairs

# Magic, flags and command, or type, of protocol.py's layouts in one number; then the cookie as bytes.
_COMPACT: Final = struct.Struct(">Q8sQI")  # offset, length
_EXTENDED: Final = struct.Struct(">Q8sQQ")
_SIMPLE_HEAD: Final = struct.Struct(">Q8s")
_DATA_HEAD: Final = struct.Struct(">Q8sIQ")  # length of payload, offset; data follows
_EXTENDED_DATA_HEAD: Final = struct.Struct(">Q8sQQQ")  # offset of request, length of payload, offset; data follows
_HOLE: Final = struct.Struct(">Q8sIQI")  # length of payload, offset, length
_EXTENDED_HOLE: Final = struct.Struct(">Q8sQQQI")
_STATUS_HEAD: Final = struct.Struct(">Q8sII")  # length of payload, context; pairs follow
_STATUS_ONE: Final = struct.Struct(">Q8sIIII")  # the same with the only pair
_EXTENDED_STATUS_ONE: Final = struct.Struct(">Q8sQQIIQQ")  # offset, length of payload, context, 1, the only pair


def _word(magic: int, high: int, low: int) -> int:
    return magic << 32 | high << 16 | low


_SIMPLE_WORD: Final = _word(SIMPLE_REPLY_MAGIC, 0, 0)
_DATA_WORD: Final = _word(STRUCTURED_REPLY_MAGIC, REPLY_DONE, Chunk.OFFSET_DATA)
_HOLE_WORD: Final = _word(STRUCTURED_REPLY_MAGIC, REPLY_DONE, Chunk.OFFSET_HOLE)
_STATUS_WORD: Final = _word(STRUCTURED_REPLY_MAGIC, REPLY_DONE, Chunk.BLOCK_STATUS)
_EXTENDED_STATUS_WORD: Final = _word(EXTENDED_REPLY_MAGIC, REPLY_DONE, Chunk.BLOCK_STATUS_EXT)
_EXTENDED_DATA_WORD: Final = _word(EXTENDED_REPLY_MAGIC, REPLY_DONE, Chunk.OFFSET_DATA)
_EXTENDED_HOLE_WORD: Final = _word(EXTENDED_REPLY_MAGIC, REPLY_DONE, Chunk.OFFSET_HOLE)


def _simple_data(out: memoryview, fill: int, cookie: bytes, *_: int) -> int:
    _SIMPLE_HEAD.pack_into(out, fill, _SIMPLE_WORD, cookie)
    return _SIMPLE_HEAD.size


def _structured_data(out: memoryview, fill: int, cookie: bytes, offset: int, count: int) -> int:
    _DATA_HEAD.pack_into(out, fill, _DATA_WORD, cookie, count + 8, offset)
    return _DATA_HEAD.size


def _extended_data(out: memoryview, fill: int, cookie: bytes, offset: int, count: int) -> int:
    _EXTENDED_DATA_HEAD.pack_into(out, fill, _EXTENDED_DATA_WORD, cookie, offset, count + 8, offset)
    return _EXTENDED_DATA_HEAD.size


def _no_hole(*_: object) -> int:
    return 0  # simple replies have none


def _structured_hole(out: memoryview, fill: int, cookie: bytes, offset: int, count: int) -> int:
    _HOLE.pack_into(out, fill, _HOLE_WORD, cookie, 12, offset, count)
    return _HOLE.size


def _extended_hole(out: memoryview, fill: int, cookie: bytes, offset: int, count: int) -> int:
    _EXTENDED_HOLE.pack_into(out, fill, _EXTENDED_HOLE_WORD, cookie, offset, 12, offset, count)
    return _EXTENDED_HOLE.size


class Speech:
    """How a mode says what the hot loop says; the functions return how many bytes they wrote, 0 for none."""

    __slots__ = ("data", "head", "hole", "layout", "read", "status")

    def __init__(self, layout: struct.Struct, magic: int, head: int, data: Heads, hole: Heads) -> None:
        self.layout, self.head, self.data, self.hole = layout, head, data, hole
        self.read, self.status = _word(magic, 0, Command.READ), _word(magic, 0, Command.BLOCK_STATUS)


SPEECH: Final = {
    Mode.SIMPLE: Speech(_COMPACT, REQUEST_MAGIC, _SIMPLE_HEAD.size, _simple_data, _no_hole),
    Mode.STRUCTURED: Speech(_COMPACT, REQUEST_MAGIC, _DATA_HEAD.size, _structured_data, _structured_hole),
    Mode.EXTENDED: Speech(
        _EXTENDED, EXTENDED_REQUEST_MAGIC, _EXTENDED_DATA_HEAD.size, _extended_data, _extended_hole
    ),
}  # fmt: skip


def longest(session: Session) -> int:
    """Return the most bytes of a read that need no further check: none where alignment has to be checked."""
    return session.maximum if session.minimum == 1 else 0


def quick(session: Session, regions: Regions, inbox: memoryview, out: memoryview) -> Quick:
    """Return the hot loop of a client: ``serve(at, stop, fill)``.

    It answers requests at ``inbox[at:stop]`` into ``out[fill:]`` and returns the new ``at`` and ``fill``. It does
    not raise for what a client sends or a file refuses: it stops.
    """
    speech = SPEECH[session.mode]
    read, ask, head, put_data, put_hole = speech.read, speech.status, speech.head, speech.data, speech.hole
    unpack, step = speech.layout.iter_unpack, speech.layout.size
    size, maximum, room = session.export.device.size, longest(session), len(out) - ROOM
    known, load, preadv = regions.known, regions.load, os.preadv
    answer = _status(session, regions, out)

    def serve(at: int, stop: int, fill: int) -> tuple[int, int]:
        nowait = regions.nowait
        try:
            for word, cookie, offset, count in unpack(inbox[at : stop - (stop - at) % step]):
                end = offset + count
                if not count or end > size or fill > room:
                    break
                if word == read:
                    starts, runs = known.get(offset >> SHIFT) or load(offset >> SHIFT)
                    run_end, what, fd, delta = runs[bisect_right(starts, offset) - 1]
                    if end > run_end or count > maximum:
                        break
                    if what == DATA:
                        if count >= SMALL or fill + count > room:
                            break
                        data = fill + head
                        if preadv(fd, (out[data : data + count],), offset + delta, nowait) != count:
                            break  # cold, or the file is shorter than it was
                        more = put_data(out, fill, cookie, offset, count) + count
                    else:
                        more = put_hole(out, fill, cookie, offset, count) if what == ZERO else 0
                else:
                    more = answer(fill, cookie, offset, count) if word == ask else 0
                if not more:
                    break
                fill += more
                at += step
        except (OSError, VmdkitError) as error:  # met again, and reported, by whoever goes the long way
            if error.errno in NOWAIT_REFUSED:  # perhaps by a file system that always waits: so do we from now on
                regions.nowait = 0
        return at, fill

    return serve


def _status(session: Session, regions: Regions, out: memoryview) -> Callable[[int, bytes, int, int], int]:
    """Return a function that answers a question about a small range; it returns 0 for what it leaves alone."""
    wide = session.mode is Mode.EXTENDED
    if session.mode is Mode.SIMPLE or len(session.contexts) != 1 or not (regions.constant and longest(session)):
        return lambda *_: 0
    ((number, name),) = session.contexts.items()
    known = regions.status_of(name)

    def answer(fill: int, cookie: bytes, offset: int, count: int) -> int:
        if count > MOST_QUICK:
            return 0
        starts, runs = known.get(offset >> SHIFT) or regions.load_status(name, offset >> SHIFT)
        stop, flags = runs[bisect_right(starts, offset) - 1]
        if offset + count <= stop:  # nearly always
            if wide:
                _EXTENDED_STATUS_ONE.pack_into(
                    out, fill, _EXTENDED_STATUS_WORD, cookie, offset, 24, number, 1, count, flags
                )
                return _EXTENDED_STATUS_ONE.size
            _STATUS_ONE.pack_into(out, fill, _STATUS_WORD, cookie, 12, number, count, flags)
            return _STATUS_ONE.size
        pairs = [] if wide else regions.status(name, offset, count, MOST_RUNS + 1)
        if not 0 < len(pairs) <= MOST_RUNS:
            return 0
        _STATUS_HEAD.pack_into(out, fill, _STATUS_WORD, cookie, 4 + 8 * len(pairs), number)
        at = fill + _STATUS_HEAD.size
        for pair in pairs:
            STATUS_PAIR.pack_into(out, at, *pair)
            at += STATUS_PAIR.size
        return at - fill

    return answer
