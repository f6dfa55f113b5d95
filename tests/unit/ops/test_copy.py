# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmdkit.errors import UsageError
from vmdkit.ops import offload
from vmdkit.ops.copy import CopyOptions, Tally, copy, stream
from vmdkit.ops.offload import Pipe
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.sink import RawSink
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1024
FRESH = CopyOptions(destination_is_zero=True)
MIXED = [(64 * KIB, b"A"), (128 * KIB, None), (CHUNK + 3, b"bc"), (5 * CHUNK, None), (17, b"z")]


class Watched(MemoryDevice):
    """Says which bytes were written, and which zeroed."""

    def __init__(self, data: bytes | int) -> None:
        super().__init__(data)
        self.written: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int, bool]] = []

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.written.append((offset, len(view)))
        super()._pwrite(view, offset)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        self.zeroed.append((offset, count, no_hole))
        self._data[offset : offset + count] = bytes(count)


@pytest.mark.parametrize("kind", ["pieces", "mapped"])
@pytest.mark.parametrize("options", [FRESH, CopyOptions(destination_is_zero=True, scan=True, threads=1)])
def test_copies_into_a_file(kind: str, options: CopyOptions, target: Any, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)(MIXED)
    made = target(source.size)
    steps: list[int] = []
    tally = copy(source, made, options, steps.append)
    assert made.pread(made.size, 0) == source.data
    assert sum(steps) == source.size == tally.moved + tally.read + tally.skipped
    assert tally.skipped == 5 * CHUNK + 128 * KIB
    assert bool(tally.moved) == (kind == "mapped" and not options.scan)
    assert not any(
        flags and start <= at < start + length for at, _ in source.reads for start, length, flags in source.runs
    )


def test_holes_stay_holes(mapped: Any, target: Any) -> None:
    source = mapped([(64 * KIB, b"A"), (CHUNK, None), (64 * KIB, b"A")])
    made = target(source.size)
    copy(source, made, FRESH)
    assert os.fstat(made.fileno()).st_blocks * 512 <= 192 * KIB


def test_found_zeros_become_holes(pieces: Any) -> None:
    made = Watched(b"x" * 20 * KIB)
    source = MemoryDevice(b"A" * 4096 + bytes(8192) + b"B" * 100 + bytes(4096 * 2 - 100))
    copy(source, made)
    assert made.pread(source.size, 0) == source.pread(source.size, 0)
    assert made.written == [(0, 4096), (12288, 4096)]
    assert made.zeroed == [(4096, 8192, False), (16384, 4096, False)]


def test_nothing_is_zeroed_in_what_is_zero() -> None:
    made = Watched(16 * KIB)
    copy(MemoryDevice(16 * KIB), made, FRESH)
    assert (made.written, made.zeroed) == ([], [])


def test_granularity_0_writes_all_and_allocates(pieces: Any) -> None:
    made = Watched(b"x" * 12 * KIB)
    source = pieces([(4 * KIB, b"\0"), (8 * KIB, None)])
    copy(source, made, CopyOptions(granularity=0))
    assert made.written == [(0, 4 * KIB)]
    assert made.zeroed == [(4 * KIB, 8 * KIB, True)]
    assert made.pread(made.size, 0) == bytes(12 * KIB)


def test_what_is_behind_the_source_stays() -> None:
    made = MemoryDevice(b"x" * 100)
    copy(MemoryDevice(b"A" * 10), made)
    assert made.pread(100, 0) == b"A" * 10 + b"x" * 90


def test_a_destination_that_is_too_small() -> None:
    with pytest.raises(UsageError, match="100 bytes do not fit, it has 99"):
        copy(MemoryDevice(100), MemoryDevice(99))


@pytest.mark.parametrize(
    "bad", [{"granularity": 12}, {"granularity": -8}, {"granularity": 24}, {"threads": 65}, {"block": 24}, {"rate": -1}]
)
def test_options_that_make_no_sense(bad: Any) -> None:
    with pytest.raises(UsageError):
        CopyOptions(**bad)


def test_a_refused_offload_is_read(mapped: Any, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(os, "sendfile", refuse)
    source = mapped(MIXED)
    made = target(source.size)
    tally = copy(source, made, FRESH)
    assert made.pread(made.size, 0) == source.data
    assert tally.moved == 0


def test_a_source_that_shrinks_meanwhile(mapped: Any, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "STEP", 64 * KIB)
    source = mapped([(300 * KIB, b"A")])
    made = target(source.size)
    source._pread_into = lambda view, offset: source.storage.pread_into(view, offset + len(b"header"))
    with pytest.raises(OSError, match="the file ends at 102400"):
        copy(source, made, FRESH, lambda _: os.truncate(source.storage.name, 100 * KIB))


def test_the_lowest_error_is_raised_with_its_place(pieces: Any) -> None:
    source = pieces([(8 * CHUNK, b"A")], fail_at=3 * CHUNK + 5)
    with pytest.raises(OSError, match="Input/output error") as caught:
        copy(source, MemoryDevice(source.size))
    assert caught.value.__notes__ == [f"in the {CHUNK} bytes at {3 * CHUNK:#x} of the disk"]
    assert caught.value.filename == "pieces"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]


def test_a_full_destination() -> None:
    class Full(MemoryDevice):
        def _pwrite(self, view: memoryview, offset: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        copy(MemoryDevice(b"A" * 10), Full(10, name="full"))
    assert caught.value.filename == "full"


def test_no_thread_outlives_an_error_of_the_progress(pieces: Any) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    source = pieces([(64 * CHUNK, b"A")])
    with pytest.raises(KeyboardInterrupt) as caught:
        copy(source, MemoryDevice(source.size), FRESH, stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]
    assert len(source.reads) < 20
    del caught  # which keeps the frames: the threads must have ended all the same


def test_memory_stays_bounded(pieces: Any) -> None:
    """A slow writer must not make the readers pile up data."""
    source = pieces([(64 * CHUNK, b"A")])
    most = 0

    class Slow(MemoryDevice):
        def _pwrite(self, view: memoryview, offset: int) -> None:
            nonlocal most
            most = max(most, len(source.reads) * CHUNK - offset)

    copy(source, Slow(source.size), CopyOptions(threads=2))
    assert most <= 8 * CHUNK


@pytest.mark.parametrize("kind", ["pieces", "mapped"])
def test_streams_in_order(kind: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)(MIXED)
    tally = Tally()
    found = through_pipe(lambda fd: stream(source, RawSink(Pipe(fd)), tally=tally))
    assert found == source.data
    assert tally.moved + tally.read + tally.skipped == source.size
    assert bool(tally.moved) == (kind == "mapped")


def test_a_stream_nobody_reads(pieces: Any) -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        stream(pieces(MIXED), RawSink(Pipe(write)))
    os.close(write)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([b"A" * 512, b"\0" * 512, None])), min_size=1, max_size=12)
)
def test_any_mixture(pieces: Any, lumps: list[tuple[int, bytes | None]]) -> None:
    source = pieces([(count * 512 if data is None else count, data) for count, data in lumps])
    made = Watched(b"x" * source.size)
    copy(source, made, CopyOptions(granularity=1024))
    assert made.pread(made.size, 0) == source.data
    assert through_pipe(lambda fd: stream(source, RawSink(Pipe(fd)))) == source.data


def through_pipe(write_to: Callable[[int], object]) -> bytes:
    read, write = os.pipe()
    found = bytearray()

    def drain() -> None:
        while data := os.read(read, 1 << 16):
            found.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        write_to(write)
    finally:
        os.close(write)
        reader.join()
        os.close(read)
    return bytes(found)
