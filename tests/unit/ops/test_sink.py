# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a sink may rely on, and the output it writes to."""

from __future__ import annotations

import hashlib
import io
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmdkit.ops.copy import CopyOptions, Tally, stream
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.sink import Tee

KIB = 1024
GRAIN = 64 * KIB


class Noting:
    """A sink that puts the disk together again, and holds the engine to its word."""

    def __init__(self, granularity: int, size: int, *, keep: bool = False, fail_at: int = -1) -> None:
        self.granularity = granularity
        self.size = size
        self.keep = keep
        self.fail_at = fail_at
        self.at = 0
        self.disk = bytearray()
        self.calls: list[tuple[str, int]] = []
        self.packers: set[int] = set()
        self.finished = 0

    def pack(self, offset: int, view: memoryview) -> Any:
        self.packers.add(threading.get_ident())
        assert 0 < len(view) <= max(CHUNK, self.granularity)
        if offset <= self.fail_at < offset + len(view):
            raise ValueError("not to be packed")
        return view if self.keep else (offset, bytes(view))

    def put(self, packed: Any) -> None:
        if self.keep:
            packed = (self.at, bytes(packed))
        self._take("data", packed[0], packed[1])

    def zeros(self, offset: int, length: int) -> None:
        self._take("zeros", offset, bytes(length))

    def _take(self, kind: str, offset: int, data: bytes) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert data
        assert offset == self.at
        self.at += len(data)
        assert offset % self.granularity == 0
        assert self.at % self.granularity == 0 or self.at == self.size
        self.disk += data
        self.calls.append((kind, len(data)))

    def finish(self) -> None:
        assert self.at == self.size
        self.finished += 1


@pytest.mark.parametrize("keep", [False, True])
def test_pieces_are_whole_and_in_order(keep: bool, pieces: Any) -> None:
    source = pieces([(GRAIN, b"A"), (5 * CHUNK, None), (3 * CHUNK + 5, b"bcd"), (GRAIN, None), (7, b"z")])
    sink = Noting(GRAIN, source.size, keep=keep)
    steps: list[int] = []
    tally = stream(source, sink, CopyOptions(threads=3), steps.append)
    assert sink.disk == source.data
    assert sink.finished == 1
    assert ("zeros", 5 * CHUNK) in sink.calls
    assert threading.get_ident() not in sink.packers
    assert sum(steps) == source.size
    assert tally == Tally(read=source.size - 5 * CHUNK, skipped=5 * CHUNK)


def test_a_sink_that_packs_needs_one_buffer_a_thread(pieces: Any) -> None:
    source = pieces([(40 * CHUNK, b"A")])
    sink = Noting(GRAIN, source.size)
    buffers: list[Any] = []  # kept, so that no two have one identity
    pack = sink.pack

    def noted(offset: int, view: memoryview) -> Any:
        buffers.append(view.obj)
        return pack(offset, view)

    sink.pack = noted  # type: ignore[method-assign]
    stream(source, sink, CopyOptions(threads=3))
    assert len(buffers) == 40
    assert len({id(buffer) for buffer in buffers}) <= 3


def test_what_lies_in_files_is_read_where_the_sink_packs(mapped: Any) -> None:
    source = mapped([(GRAIN, b"A"), (GRAIN, None), (GRAIN, b"b")])
    sink = Noting(GRAIN, source.size)
    assert stream(source, sink).moved == 0
    assert sink.disk == source.data
    assert sink.calls == [("data", GRAIN), ("zeros", GRAIN), ("data", GRAIN)]


def test_a_grain_larger_than_a_chunk(pieces: Any) -> None:
    source = pieces([(4 * CHUNK, None), (1, b"A"), (4 * CHUNK, None), (1, b"z")])
    sink = Noting(2 * CHUNK, source.size)
    stream(source, sink)
    assert sink.disk == source.data
    assert [length for kind, length in sink.calls if kind == "data"] == [2 * CHUNK, 2]


@pytest.mark.parametrize("where", [0, 3 * CHUNK])
def test_a_failure_is_the_end(where: int, pieces: Any) -> None:
    source = pieces([(9 * CHUNK, b"A")])
    sink = Noting(GRAIN, source.size, fail_at=where)
    with pytest.raises(ValueError, match="not to be packed"):
        stream(source, sink)
    assert sink.at == where
    assert not sink.finished
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]


def test_a_damaged_source_is_not_finished(pieces: Any) -> None:
    source = pieces([(9 * CHUNK, b"A")], fail_at=4 * CHUNK)
    sink = Noting(GRAIN, source.size)
    with pytest.raises(OSError, match="Input/output error") as caught:
        stream(source, sink)
    assert caught.value.__notes__ == [f"in the {CHUNK} bytes at {4 * CHUNK:#x} of the disk"]
    assert (sink.at, sink.finished) == (4 * CHUNK, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([b"A" * 512, None])), min_size=1, max_size=12),
    st.sampled_from([1, 512, 1024, 4096]),
)
def test_any_mixture(pieces: Any, lumps: list[tuple[int, bytes | None]], granularity: int) -> None:
    source = pieces([(count * 512 if data is None else count, data) for count, data in lumps])
    sink = Noting(granularity, source.size)
    stream(source, sink)
    assert sink.disk == source.data
    assert sink.finished == 1
    zeros = sum(length for kind, length in sink.calls if kind == "zeros")
    assert zeros == whole_zeros(source.data, source.runs, granularity)


def whole_zeros(data: bytes, runs: list[tuple[int, int, int]], granularity: int) -> int:
    """Count the bytes of blocks, all of which lie in one hole; a shorter last one is no block."""
    hollow = bytearray(len(data))
    for start, length, flags in runs:
        if flags:
            hollow[start : start + length] = b"\1" * length
    full = b"\1" * granularity
    return sum(granularity for at in range(0, len(data), granularity) if hollow[at : at + granularity] == full)


# ── Tee ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tee_counts_and_digests() -> None:
    out, digest, other = io.BytesIO(), hashlib.sha256(), hashlib.sha1()
    tee = Tee(out, digest, other)
    tee.write(b"one")
    tee.write(memoryview(b"two"))
    tee.write(b"")
    assert out.getvalue() == b"onetwo"
    assert tee.written == 6
    assert digest.digest() == hashlib.sha256(b"onetwo").digest()
    assert other.digest() == hashlib.sha1(b"onetwo").digest()


def test_tee_is_patient_with_a_raw_file() -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.got = bytearray()

        def write(self, data: Any) -> int:
            self.got += bytes(data[:3])
            return min(3, len(data))

    slow = Slow()
    tee = Tee(slow)
    assert tee.write(b"0123456789") == 10
    assert slow.got == b"0123456789"


def test_tee_does_not_lose_what_a_raw_file_did_not_take() -> None:
    class Full(io.RawIOBase):
        def write(self, data: Any) -> None:
            return None

    tee = Tee(Full())
    with pytest.raises(BlockingIOError):
        tee.write(b"x")
    assert tee.written == 0


def test_tee_takes_an_output_that_says_nothing() -> None:
    got: list[bytes] = []

    class Quiet:
        def write(self, data: bytes | memoryview) -> None:
            got.append(bytes(data))

    Tee(Quiet()).write(b"abc")
    assert got == [b"abc"]
