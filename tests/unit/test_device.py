# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The checked edge: what callers may ask, what drivers get to see, and drivers that lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmdkit.device import ALLOCATION, DEPTH, HOLE_ZERO, BlockSize, Can, Device, Extent, Kind, Location
from vmdkit.errors import LocalProtocolError, OutOfRangeError, ReadOnlyError, UnsupportedError, UsageError
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Verb = tuple[str, int, int]
ALL = Can.WRITE | Can.FLUSH | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM | Can.EXTENTS


class Recorder(Device):
    """A bytearray that notes each call its edge lets through."""

    def __init__(self, size: int = 4096, *, can: Can = ALL, minimum: int = 1) -> None:
        super().__init__(size, name="recorder", can=can, block_size=BlockSize(minimum))
        self.data = bytearray(i % 251 for i in range(size))
        self.calls: list[Verb] = []

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self.calls.append(("read", len(view), offset))
        view[:] = self.data[offset : offset + len(view)]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.calls.append(("write", len(view), offset))
        self.data[offset : offset + len(view)] = view

    def _trim(self, count: int, offset: int) -> None:
        self.calls.append(("trim", count, offset))

    def _flush(self) -> None:
        self.calls.append(("flush", 0, 0))

    def _close(self) -> None:
        self.calls.append(("close", 0, 0))


class FastZero(Recorder):
    """Zeroes without writing."""

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self.calls.append(("fast zero" if fast else "zero", count, offset))
        self.data[offset : offset + count] = bytes(count)


class Plain(Device):
    """Only what a driver must have."""

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = bytes(len(view))


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────────────────────

OUTSIDE = [(1, -1), (1, 4096), (4097, 0), (2, 4095), (0, 4097), (1 << 70, 0), (1, 1 << 70)]
VERBS: list[Callable[[Device, int, int], object]] = [
    lambda device, count, offset: device.pread(count, offset),
    lambda device, count, offset: device.zero(count, offset),
    lambda device, count, offset: device.trim(count, offset),
    lambda device, count, offset: device.cache(count, offset),
    lambda device, count, offset: device.extents(count, offset),
    lambda device, count, offset: device.locate(count, offset),
]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("count", "offset"), [*OUTSIDE, (-1, 0)])
def test_out_of_range_never_reaches_the_driver(
    verb: Callable[[Device, int, int], object], count: int, offset: int
) -> None:
    device = Recorder()
    with pytest.raises(OutOfRangeError, match=r"recorder: -?[0-9]+ bytes at -?[0-9]+ leave the device, which has 4096"):
        verb(device, count, offset)
    assert device.calls == []


@pytest.mark.parametrize(("count", "offset"), [(1, -1), (1, 4096), (4097, 0), (2, 4095), (0, 4097)])
def test_out_of_range_buffers(count: int, offset: int) -> None:
    device = Recorder()
    with pytest.raises(OutOfRangeError):
        device.pread_into(bytearray(count), offset)
    with pytest.raises(OutOfRangeError):
        device.pwrite(bytes(count), offset)
    assert device.calls == []


@pytest.mark.parametrize("offset", [0, 100, 4096])
def test_nothing_at_all_returns_at_once(offset: int) -> None:
    device = Recorder()
    assert device.pread(0, offset) == b""
    device.pread_into(bytearray(), offset)
    device.pwrite(b"", offset, fua=True)
    device.zero(0, offset, fua=True)
    device.trim(0, offset, fua=True)
    device.cache(0, offset)
    assert list(device.extents(0, offset)) == []
    assert list(device.locate(0, offset)) == []
    assert device.calls == []


def test_a_device_of_no_bytes() -> None:
    device = Recorder(0)
    assert device.pread(0, 0) == b""
    assert list(device.extents()) == []
    with pytest.raises(OutOfRangeError):
        device.pread(1, 0)


def test_buffers_of_other_items() -> None:
    device = Recorder()
    words = memoryview(bytearray(16)).cast("I")
    device.pread_into(words, 4)
    assert bytes(words) == bytes(device.data[4:20])
    device.pwrite(words, 0)
    assert device.data[:16] == bytes(words)


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_changes_nothing() -> None:
    device = Recorder(can=Can.NONE)
    assert not device.writable
    changes: list[Callable[[], None]] = [
        lambda: device.pwrite(b"x", 0),
        lambda: device.zero(1, 0),
        lambda: device.trim(1, 0),
        lambda: device.pwrite(b"", 0),
    ]
    for change in changes:
        with pytest.raises(ReadOnlyError, match="recorder: opened for reading only"):
            change()
    device.flush()
    assert device.calls == [("flush", 0, 0)]


def test_a_driver_that_says_it_writes_and_cannot() -> None:
    with pytest.raises(ReadOnlyError, match="no way to write"):
        Plain(16, can=Can.WRITE).pwrite(b"x", 0)


def test_fua_flushes_after_the_change() -> None:
    device = Recorder()
    device.pwrite(b"x", 0, fua=True)
    device.zero(1, 0, fua=True)
    device.trim(1, 0, fua=True)
    assert [call[0] for call in device.calls] == ["write", "flush", "write", "flush", "trim", "flush"]


def test_defaults_of_a_driver_that_only_reads() -> None:
    device = Plain(3 * MIB)
    device.flush()
    device.cache(3 * MIB, 0)
    assert device.fileno() is None
    assert list(device.extents()) == [Extent(0, 3 * MIB, 0)]
    assert list(device.locate()) == [Location(0, 3 * MIB, Kind.UNKNOWN)]
    assert device.contexts == (ALLOCATION,)
    device.close()


def test_cache_reads_in_bounded_steps() -> None:
    device = Recorder(2 * MIB + 100)
    device.cache(2 * MIB + 50, 10)
    assert device.calls == [("read", MIB, 10), ("read", MIB, 10 + MIB), ("read", 50, 10 + 2 * MIB)]


# ── alignment ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("count", "offset", "seen"),
    [
        (512, 512, (512, 512)),
        (1, 0, (512, 0)),
        (1, 511, (512, 0)),
        (2, 511, (1024, 0)),
        (512, 1, (1024, 0)),
        (513, 512, (1024, 512)),
        (1, 4095, (512, 3584)),
        (4096, 0, (4096, 0)),
    ],
)
def test_a_driver_of_blocks_sees_whole_blocks(count: int, offset: int, seen: tuple[int, int]) -> None:
    device = Recorder(minimum=512)
    before = bytes(device.data)
    assert device.pread(count, offset) == before[offset : offset + count]
    assert device.calls == [("read", *seen)]
    device.calls.clear()
    device.pwrite(b"\xff" * count, offset)
    whole = seen == (count, offset)
    assert device.calls == ([] if whole else [("read", *seen)]) + [("write", *seen)]
    assert device.data == before[:offset] + b"\xff" * count + before[offset + count :]


@pytest.mark.parametrize(
    ("count", "offset", "zeroed", "written"),
    [
        (1024, 512, (1024, 512), 0),
        (1024, 500, (512, 512), 2),
        (524, 500, (512, 512), 1),
        (600, 512, (512, 512), 1),
        (10, 500, None, 1),
        (10, 508, None, 2),
        (12, 500, None, 1),
        (4096, 0, (4096, 0), 0),
    ],
)
def test_zero_cuts_head_and_tail_off(count: int, offset: int, zeroed: tuple[int, int] | None, written: int) -> None:
    device = FastZero(minimum=512)
    before = bytes(device.data)
    device.zero(count, offset)
    assert device.data == before[:offset] + bytes(count) + before[offset + count :]
    assert [call for call in device.calls if call[0] == "zero"] == ([("zero", *zeroed)] if zeroed else [])
    assert len([call for call in device.calls if call[0] == "write"]) == written


def test_fast_zero_is_fast_or_refused() -> None:
    device = FastZero(minimum=512)
    device.zero(512, 512, fast=True)
    assert device.calls == [("fast zero", 512, 512)]
    with pytest.raises(UnsupportedError, match="part of a block"):
        device.zero(512, 500, fast=True)
    slow = Recorder(can=Can.WRITE | Can.ZERO)
    with pytest.raises(UnsupportedError, match="not faster than writing"):
        slow.zero(512, 0, fast=True)
    assert slow.calls == []


def test_the_default_zero_writes_in_bounded_steps() -> None:
    device = Recorder(2 * MIB + 7)
    device.zero(2 * MIB + 7, 0)
    assert device.calls == [("write", MIB, 0), ("write", MIB, MIB), ("write", 7, 2 * MIB)]
    assert not any(device.data)


@pytest.mark.parametrize(
    ("count", "offset", "seen"),
    [(1024, 512, [(1024, 512)]), (1024, 500, [(512, 512)]), (10, 500, []), (511, 512, []), (512, 511, [])],
)
def test_trim_leaves_parts_of_blocks_alone(count: int, offset: int, seen: list[tuple[int, int]]) -> None:
    device = Recorder(minimum=512)
    device.trim(count, offset)
    assert [call[1:] for call in device.calls] == seen


@pytest.mark.parametrize("size", [1, 511, 513, 4095])
def test_a_device_is_whole_blocks(size: int) -> None:
    """Else the edge would have to read and write blocks that the driver does not have."""
    with pytest.raises(UsageError, match=f"{size} bytes are no whole blocks of 512"):
        Recorder(size, minimum=512)


# ── answers of drivers ───────────────────────────────────────────────────────────────────────────────────────────


class Scripted(Plain):
    """Answers extents and locate from a list, whatever it is asked; the rest of the list on the next call."""

    def __init__(self, *answers: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(100, name="liar", contexts=(ALLOCATION, DEPTH))
        self.answers = list(answers)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        yield from self.answers.pop(0)

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        for start, length, at in self.answers.pop(0):
            yield Location(start, length, Kind.DATA, self, at)


def test_extents_are_joined_and_cut_to_the_request() -> None:
    device = Scripted([(10, 5, 0), (15, 5, 0), (20, 5, 3), (25, 500, 3)])
    assert list(device.extents(30, 10)) == [Extent(10, 10, 0), Extent(20, 20, 3)]


def test_a_driver_may_stop_early_and_is_asked_again() -> None:
    device = Scripted([(0, 40, 0)], [(40, 20, 0), (60, 1, 2)], [(61, 39, 2)])
    assert list(device.extents()) == [Extent(0, 60, 0), Extent(60, 40, 2)]


LIES: list[tuple[list[list[tuple[int, int, int]]], str]] = [
    ([[]], "0 bytes at 0; a run that begins at 0 was due"),
    ([[(1, 10, 0)]], "10 bytes at 1; a run that begins at 0 was due"),
    ([[(0, 10, 0), (11, 5, 0)]], "5 bytes at 11; a run that begins at 10 was due"),
    ([[(0, 10, 0), (9, 5, 0)]], "5 bytes at 9; a run that begins at 10 was due"),
    ([[(0, 0, 0)]], "0 bytes at 0"),
    ([[(0, -5, 0)]], "-5 bytes at 0"),
    ([[(0, 10, 0)], []], "0 bytes at 10; a run that begins at 10 was due"),
]


@pytest.mark.parametrize(("answers", "text"), LIES)
def test_lies_are_caught(answers: list[list[tuple[int, int, int]]], text: str) -> None:
    with pytest.raises(LocalProtocolError, match=f"liar: Scripted answered extents with {text}"):
        list(Scripted(*answers).extents())
    with pytest.raises(LocalProtocolError, match=f"liar: Scripted answered locate with {text}"):
        list(Scripted(*answers).locate())


def test_locations_join_only_where_the_bytes_go_on() -> None:
    device = Scripted([(0, 10, 500), (10, 10, 510), (20, 10, 0), (30, 500, 10)])
    assert [(*tuple(run)[:2], run.at) for run in device.locate()] == [(0, 20, 500), (20, 80, 0)]


def test_an_unknown_context_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="no context 'x:y' here, only base:allocation"):
        Plain(1).extents(context="x:y")


def test_flags_are_nbds() -> None:
    assert HOLE_ZERO == 3
    assert [int(flag) for flag in (Can.WRITE, Can.MULTI_CONN)] == [1, 256]


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_device_refuses_everything_and_closes_once() -> None:
    with Recorder() as device:
        assert not device.closed
        assert repr(device) == "<Recorder 'recorder' 4096 bytes>"
    device.close()
    assert device.calls == [("close", 0, 0)]
    assert device.closed
    assert repr(device) == "<Recorder 'recorder' 4096 bytes closed>"
    assert device.size == 4096
    asks: list[Callable[[], object]] = [
        lambda: device.pread(0, 0),
        lambda: device.pread(1, 0),
        lambda: device.pread_into(bytearray(1), 0),
        lambda: device.pwrite(b"x", 0),
        lambda: device.zero(1, 0),
        lambda: device.trim(1, 0),
        device.flush,
        lambda: device.cache(1, 0),
        device.extents,
        device.locate,
    ]
    for ask in asks:
        with pytest.raises(UsageError, match="the device is closed"):
            ask()
    assert device.calls == [("close", 0, 0)]


class Placer(Recorder):
    """Says that bytes belong where the script says."""

    def __init__(self, run: Location | None) -> None:
        super().__init__(can=ALL | Can.PLACE)
        self.run = run

    def _place(self, count: int, offset: int) -> Location | None:
        return self.run


def test_where_bytes_belong() -> None:
    run = Location(512, 100, Kind.DATA, None, 4096)
    assert Placer(run).place(1000, 512) == run
    assert Placer(None).place(1000, 512) is None
    assert Placer(run).place(0, 512) is None
    assert Recorder().place(1000, 512) is None
    with pytest.raises(OutOfRangeError):
        Placer(run).place(4096, 512)
    with pytest.raises(ReadOnlyError):
        Plain(4096).place(1, 0)


@pytest.mark.parametrize(
    "run",
    [
        Location(0, 100, Kind.DATA),
        Location(512, 0, Kind.DATA),
        Location(512, 11, Kind.DATA),
        Location(512, 9, Kind.HOLE),
    ],
)
def test_lies_about_where_bytes_belong_are_caught(run: Location) -> None:
    with pytest.raises(LocalProtocolError, match="answered place with"):
        Placer(run).place(10, 512)
