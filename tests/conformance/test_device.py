# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of vmdkit.device, asserted over every Device there is."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import images
from conformance.devices import DEVICES, EXACT, Opened
from layout import DATA, HOLE, SECTOR, ZERO
from vmdkit.device import ALLOCATION, DEPTH, Can, Kind
from vmdkit.errors import OutOfRangeError, ReadOnlyError, UsageError
from vmdkit.storage.file import FileDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images import Run

ODD = 700  # bytes: no multiple of anything


@pytest.fixture(scope="module", params=list(DEVICES))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    case = DEVICES[request.param](tmp_path_factory.mktemp("device"))
    with case.device:
        yield case


def spans(edge: int, grain: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, count) of reads that end on, start on and span an edge."""
    for before, after in ((SECTOR, 0), (0, SECTOR), (1, 1), (ODD, ODD), (grain, 0), (0, grain), (grain + 1, ODD)):
        start, end = max(0, edge - before), min(size, edge + after)
        if start < end:
            yield start, end - start


def test_size_is_the_models(opened: Opened) -> None:
    assert opened.device.size == opened.model.size


def test_reads_at_every_boundary(opened: Opened) -> None:
    grain = max((part.grain for part in opened.image.parts), default=0) if opened.image else 4096
    for edge in opened.boundaries():
        for offset, count in spans(edge, grain, opened.model.size):
            assert opened.device.pread(count, offset) == opened.model.pread(count, offset), (offset, count)


def test_reads_whole_in_uneven_steps(opened: Opened) -> None:
    size, step = opened.model.size, (1 << 20) + ODD
    for offset in range(0, size, step):
        count = min(step, size - offset)
        assert opened.device.pread(count, offset) == opened.model.pread(count, offset)


def test_fills_a_callers_buffer_and_no_more(opened: Opened) -> None:
    count = min(5000, opened.model.size)
    buf = bytearray(b"\xee") * (count + 2)
    opened.device.pread_into(memoryview(buf)[1:-1], opened.model.size - count)
    assert bytes(buf[1:-1]) == opened.model.pread(count, opened.model.size - count)
    assert (buf[0], buf[-1]) == (0xEE, 0xEE)


def test_zeros_are_written_into_a_dirty_buffer(opened: Opened) -> None:
    for edge in opened.boundaries():
        offset, end = max(0, edge - ODD), min(opened.model.size, edge + ODD)
        buf = bytearray(b"\xee") * (end - offset)
        opened.device.pread_into(buf, offset)
        assert buf == opened.model.pread(end - offset, offset)


def test_nothing_is_read_at_either_end(opened: Opened) -> None:
    for offset in (0, opened.model.size):
        assert opened.device.pread(0, offset) == b""
        assert list(opened.device.extents(0, offset)) == []
        assert list(opened.device.locate(0, offset)) == []


def test_out_of_range_is_refused(opened: Opened) -> None:
    size, huge = opened.model.size, 1 << 70
    for count, offset in ((1, size), (2, size - 1), (0, size + 1), (1, huge), (huge, 0), (-1, 0), (1, -1), (-1, -1)):
        with pytest.raises(OutOfRangeError):
            opened.device.pread(count, offset)
        with pytest.raises(OutOfRangeError):
            opened.device.extents(count, offset)
        with pytest.raises(OutOfRangeError):
            opened.device.locate(count, offset)
        with pytest.raises(OutOfRangeError):
            opened.device.cache(count, offset)


def test_what_is_open_for_reading_cannot_be_changed(opened: Opened) -> None:
    if opened.device.can & Can.WRITE:
        return
    with pytest.raises(ReadOnlyError):
        opened.device.pwrite(b"x", 0)
    with pytest.raises(ReadOnlyError):
        opened.device.zero(1, 0)
    with pytest.raises(ReadOnlyError):
        opened.device.trim(1, 0)
    opened.device.flush()


def test_many_threads_read_what_one_reads(opened: Opened) -> None:
    wrong: list[object] = []
    edges = opened.boundaries()

    def read(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(30):
            near = dice.choice(edges) + dice.randint(-9000, 9000)
            offset = max(0, min(near, opened.model.size - 1))
            count = min(dice.choice((1, 512, 4096, 20_000)), opened.model.size - offset)
            try:
                if opened.device.pread(count, offset) != opened.model.pread(count, offset):
                    wrong.append((offset, count))
            except Exception as error:  # noqa: BLE001, RUF100  # whatever it is, the test must see it
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_cache_changes_nothing(opened: Opened) -> None:
    opened.device.cache(opened.device.size, 0)
    assert opened.device.pread(SECTOR, 0) == opened.model.pread(SECTOR, 0)


# ── extents ──────────────────────────────────────────────────────────────────────────────────────────────────────


def expected_pieces(opened: Opened) -> list[tuple[int, int, set[int]]]:
    """Return (offset, length, allowed flags) of the whole disk; in flat files holes are as the file system likes."""
    if opened.image is None:
        return [(s.offset, s.length, {0} if s.what.isalpha() else {0, 3}) for s in opened.model.segments()]
    exact = {part.path for layer in opened.image.layers() for part in layer.parts if part.grain}
    flat = any(not part.grain for layer in opened.image.layers() for part in layer.parts)
    pieces = []
    for run, _ in opened.image.resolved():
        loose = run.kind in {HOLE, ZERO} and flat and run.file not in exact
        pieces.append((run.offset, run.length, {0, 3} if loose else {EXACT[run.kind]}))
    return pieces


def test_extents_agree_with_the_model(opened: Opened) -> None:
    runs = list(opened.device.extents())
    assert_covers([(run.offset, run.length) for run in runs], 0, opened.model.size)
    assert all(one.flags != other.flags for one, other in pairwise(runs))
    pieces = expected_pieces(opened)
    for run in runs:
        for offset, length, allowed in pieces:
            if offset < run.offset + run.length and run.offset < offset + length:
                assert run.flags in allowed, (run, offset, length)
        if run.flags & 2:
            assert opened.model.is_zero(min(run.length, 1 << 20), run.offset)


def test_extents_are_exact_where_tables_say_it(opened: Opened) -> None:
    if opened.image is None or any(not part.grain for layer in opened.image.layers() for part in layer.parts):
        return
    joined: list[tuple[int, int, int]] = []
    for run, _ in opened.image.resolved():
        flags = EXACT[run.kind]
        if joined and joined[-1][2] == flags:
            joined[-1] = (joined[-1][0], joined[-1][1] + run.length, flags)
        else:
            joined.append((run.offset, run.length, flags))
    assert [tuple(run) for run in opened.device.extents()] == joined


def test_extents_of_a_part_are_a_part_of_the_extents(opened: Opened) -> None:
    whole = list(opened.device.extents())
    for edge in opened.boundaries():
        offset, end = max(0, edge - ODD), min(opened.model.size, edge + ODD)
        part = list(opened.device.extents(end - offset, offset))
        assert_covers([(run.offset, run.length) for run in part], offset, end - offset)
        for run in part:
            middle = run.offset + run.length // 2
            assert run.flags == next(r.flags for r in whole if r.offset <= middle < r.offset + r.length)


def test_depth_counts_the_layers(opened: Opened) -> None:
    if DEPTH not in opened.device.contexts:
        return
    runs = list(opened.device.extents(context=DEPTH))
    assert_covers([(run.offset, run.length) for run in runs], 0, opened.model.size)
    if opened.image is None:
        return
    for run, depth in opened.image.resolved():
        expected = 0 if run.kind == HOLE and not is_flat_hole(opened, run) else depth + 1
        found = {r.flags for r in runs if r.offset < run.offset + run.length and run.offset < r.offset + r.length}
        assert found == {expected}, run


def is_flat_hole(opened: Opened, run: Run) -> bool:
    """Tell whether a hole lies in a flat file, which holds all its bytes."""
    assert opened.image is not None
    layers = [opened.image, *opened.image.layers()]
    base = layers[-1]
    for start, part in zip(base.starts, base.parts, strict=True):
        if start <= run.offset < start + part.length:
            return not part.grain
    return False


def test_unknown_contexts_are_refused(opened: Opened) -> None:
    assert ALLOCATION in opened.device.contexts
    with pytest.raises(UsageError):
        opened.device.extents(context="base:weather")


# ── locate ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_locations_hold_the_bytes(opened: Opened) -> None:
    runs = list(opened.device.locate())
    assert_covers([(run.offset, run.length) for run in runs], 0, opened.model.size)
    for run in runs:
        if run.kind is Kind.DATA:
            assert run.storage is not None
            for shift in range(0, run.length, 1 << 20):
                count = min(1 << 20, run.length - shift)
                assert run.storage.pread(count, run.at + shift) == opened.model.pread(count, run.offset + shift)
        elif run.kind in (Kind.HOLE, Kind.ZERO):
            assert opened.model.is_zero(min(run.length, 1 << 20), run.offset)


def test_locations_agree_with_the_model(opened: Opened) -> None:
    """Where tables say where the bytes are: the file, the place in it, and the layer."""
    if opened.image is None:
        return
    runs = list(opened.device.locate())
    for piece, depth in opened.image.resolved():
        for run in runs:
            if piece.offset < run.offset + run.length and run.offset < piece.offset + piece.length:
                agree(run, piece, depth)


def agree(run: object, piece: Run, depth: int) -> None:
    from vmdkit.device import Location

    assert isinstance(run, Location)
    if piece.kind == DATA:
        assert (run.kind, run.depth) == (Kind.DATA, depth)
        assert isinstance(run.storage, FileDevice)
        assert run.storage.name == str(piece.file)
        assert run.at - run.offset == piece.at - piece.offset
    elif piece.kind == images.PACKED:
        assert (run.kind, run.depth) == (Kind.COMPRESSED, depth)
    elif run.kind is not Kind.DATA:  # a hole of a flat file may be told as data
        assert run.kind in (Kind.HOLE, Kind.ZERO)


def assert_covers(runs: list[tuple[int, int]], offset: int, count: int) -> None:
    """Fail unless runs are ascending, contiguous and cover exactly the range."""
    at = offset
    for start, length in runs:
        assert start == at
        assert length > 0
        at += length
    assert at == offset + count


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", list(DEVICES))
def test_after_close_everything_is_refused(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    device = DEVICES[kind](tmp_path_factory.mktemp("device")).device
    device.close()
    device.close()
    assert device.closed
    with pytest.raises(UsageError):
        device.pread(1, 0)
    with pytest.raises(UsageError):
        device.pread(0, 0)
    with pytest.raises(UsageError):
        device.pwrite(b"x", 0)
    with pytest.raises(UsageError):
        device.extents()
    with pytest.raises(UsageError):
        device.locate()
    with pytest.raises(UsageError):
        device.flush()
