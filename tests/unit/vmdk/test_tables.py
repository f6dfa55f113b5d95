# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The two-level map: one look-up, bulk walks and a plain recomputation must agree on every byte."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmdkit.errors import CorruptError
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk import tables as module
from vmdkit.vmdk.extent_file import Run, RunKind
from vmdkit.vmdk.structs import CORRUPT, UNALLOCATED, ZERO, Codes, decode_sectors
from vmdkit.vmdk.tables import FoundTables, GrainTables, TableExtent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENTRIES, GRAIN, SECTOR = 8, 1024, 512
COVER = ENTRIES * GRAIN
LOW = 4096  # grains lie behind it, tables before it
KINDS = {UNALLOCATED: RunKind.PARENT, ZERO: RunKind.ZERO, CORRUPT: RunKind.CORRUPT}


class Case(NamedTuple):
    """Sector numbers as they stand in a file of ``eof`` bytes; a directory entry is None, CORRUPT or a table."""

    directory: list[list[int] | int]
    eof: int
    compressed: bool


TABLE = st.lists(
    st.one_of(st.just(0), st.just(1), st.integers(0, 40), st.sampled_from([8, 10, 12, 14, 16, 18])),
    min_size=ENTRIES,
    max_size=ENTRIES,
)
CASES = st.builds(
    Case,
    st.lists(st.one_of(st.sampled_from([UNALLOCATED, CORRUPT]), TABLE), min_size=1, max_size=6),
    st.sampled_from([LOW + 16 * 1024, LOW + 10 * 1024 + 512, LOW + 3 * 1024, LOW + 100, LOW]),
    st.booleans(),
)


def decode(raw: bytes | bytearray, high: int) -> Codes:
    return decode_sectors(raw, low=LOW, high=high, zero_grains=True)


def counting(read: list[int], *, low: int, high: int) -> Callable[[bytes | bytearray], Codes]:
    """Return a decoder that notes how many bytes it is given."""

    def decoder(raw: bytes | bytearray) -> Codes:
        read.append(len(raw))
        return decode_sectors(raw, low=low, high=high)

    return decoder


def build(case: Case, length: int | None = None) -> TableExtent:
    data = bytearray(case.eof)
    directory = []
    for number, table in enumerate(case.directory):
        if isinstance(table, int):
            directory.append(table)
        else:
            directory.append(number * ENTRIES * 4)
            struct.pack_into(f"<{ENTRIES}I", data, directory[-1], *table)
    tables = GrainTables(
        MemoryDevice(data, writable=False),
        np.array(directory, dtype=np.int64),
        entries=ENTRIES,
        width=4,
        decode=lambda raw: decode(raw, case.eof),
    )
    length = len(directory) * COVER if length is None else length
    return TableExtent(length, tables._storage, tables, grain=GRAIN, kind="TEST", compressed=case.compressed)


def plain(case: Case, offset: int) -> tuple[RunKind, int]:
    """Say what one byte is, the slow way: (kind, address where it is DATA)."""
    table = case.directory[offset // COVER]
    code = (
        table if isinstance(table, int) else int(decode(struct.pack("<I", table[offset % COVER // GRAIN]), case.eof)[0])
    )
    if code < 0:
        return KINDS[code], 0
    if case.compressed:
        return RunKind.DEFLATE, 0
    at = code + offset % GRAIN
    return (RunKind.DATA, at) if at < case.eof else (RunKind.ZERO, 0)


def check(case: Case, run: Run, offset: int) -> None:
    """Look at every 512 bytes of a run, and at its ends."""
    for step in {*range(0, run.length, 512), run.length - 1}:
        kind, at = plain(case, offset + step)
        assert run.kind is kind
        if kind is RunKind.DATA:
            assert run.at + step == at


@given(CASES, st.data())
def test_map_tells_the_truth_and_goes_on_as_far_as_it_may(case: Case, data: st.DataObject) -> None:
    extent = build(case)
    offset = data.draw(st.integers(0, extent.length - 1))
    count = data.draw(st.integers(1, extent.length - offset))
    run = extent.map(offset, count)
    assert 1 <= run.length <= count
    check(case, run, offset)


@given(CASES, st.data())
@settings(max_examples=300)
def test_runs_cover_exactly_and_agree_with_map(case: Case, data: st.DataObject) -> None:
    extent = build(case)
    offset = data.draw(st.integers(0, extent.length - 1))
    count = data.draw(st.integers(1, extent.length - offset))
    at = offset
    for run in extent.runs(offset, count):
        assert run.length > 0
        check(case, run, at)
        at += run.length
    assert at == offset + count


@given(CASES, st.integers(1, 3 * COVER))
def test_an_extent_shorter_than_its_tables(case: Case, length: int) -> None:
    length = min(length, len(case.directory) * COVER)
    extent = build(case, length)
    assert sum(run.length for run in extent.runs(0, length)) == length
    held = (RunKind.DATA, RunKind.DEFLATE)
    last_grain = (length - 1) // GRAIN
    grains = [plain(case, grain * GRAIN)[0] in held for grain in range(last_grain + 1)]
    assert extent.allocated() <= sum(grains) * GRAIN
    assert (extent.allocated() > 0) == any(grains)


@pytest.mark.parametrize("many", [1, 2, 1000])
def test_whole_disks_come_in_few_runs(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BULK_BYTES", many * ENTRIES * 8)
    table = [LOW // SECTOR + 2 * at for at in range(ENTRIES)]
    case = Case([UNALLOCATED, UNALLOCATED, table, [0] * ENTRIES, CORRUPT, CORRUPT], LOW + COVER, compressed=False)
    extent = build(case)
    found: list[tuple[RunKind, int]] = []
    for run in extent.runs(0, extent.length):
        if found and found[-1][0] is run.kind:
            found[-1] = (run.kind, found[-1][1] + run.length)
        else:
            found.append((run.kind, run.length))
    assert found == [
        (RunKind.PARENT, 2 * COVER),
        (RunKind.DATA, COVER),
        (RunKind.PARENT, COVER),
        (RunKind.CORRUPT, 2 * COVER),
    ]


def test_a_run_of_data_ends_where_the_grains_do_not_follow_each_other() -> None:
    table = [8, 10, 13, 15, 14, 16, 16, 18]
    extent = build(Case([table], LOW + 64 * 1024, compressed=False))
    assert [(run.length // GRAIN, run.at // SECTOR) for run in extent.runs(0, COVER)] == [
        (2, 8),
        (2, 13),
        (2, 14),
        (2, 16),
    ]
    assert extent.map(GRAIN, COVER - GRAIN) == Run(GRAIN, RunKind.DATA, 10 * SECTOR)
    assert extent.map(GRAIN + 5, 100) == Run(100, RunKind.DATA, 10 * SECTOR + 5)


# ── the directory ────────────────────────────────────────────────────────────────────────────────────────────────


def tables_of(directory: list[int], size: int) -> GrainTables:
    return GrainTables(
        MemoryDevice(size, writable=False),
        np.array(directory, dtype=np.int64),
        entries=ENTRIES,
        width=4,
        decode=lambda raw: decode(raw, size),
    )


@pytest.mark.parametrize(
    ("address", "size", "code"),
    [
        (32, 64, 32),
        (33, 64, CORRUPT),
        (64, 64, CORRUPT),
        (0, 31, CORRUPT),
        (UNALLOCATED, 0, UNALLOCATED),
        (ZERO, 1, ZERO),
    ],
)
def test_a_table_lies_wholly_in_the_file_or_is_wrong(address: int, size: int, code: int) -> None:
    assert tables_of([address], size).directory.tolist() == [code]


def test_next_present() -> None:
    tables = tables_of([UNALLOCATED] * 5000 + [CORRUPT] + [UNALLOCATED] * 5000 + [0], 64)
    assert [tables.next_present(at) for at in (0, 5000, 5001, 10001, 10002)] == [5000, 5000, 10001, 10001, 10002]
    assert len(tables) == 10002


def test_tables_are_read_once_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_BYTES", 3 * ENTRIES * 8)
    read: list[int] = []
    tables = GrainTables(
        MemoryDevice(LOW),
        np.arange(0, 32 * 10, 32, dtype=np.int64),
        entries=ENTRIES,
        width=4,
        decode=counting(read, low=LOW, high=LOW),
    )
    for number in (0, 1, 2, 0, 1, 2):
        tables.table(number)
    assert len(read) == 3
    tables.table(3)
    tables.table(1)
    assert len(read) == 4
    tables.table(0)
    assert len(read) == 5


def test_neighbouring_tables_are_read_in_one_call() -> None:
    sizes: list[int] = []
    tables = GrainTables(
        MemoryDevice(LOW),
        np.array([0, 32, 64, UNALLOCATED, 128, 96, CORRUPT, 512], dtype=np.int64),
        entries=ENTRIES,
        width=4,
        decode=counting(sizes, low=LOW, high=LOW),
    )
    assert len(tables.bulk(0, 8)) == 8 * ENTRIES
    assert sizes == [96, 32, 32, 32]


def test_many_threads_and_a_small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_BYTES", 2 * ENTRIES * 8)
    case = Case([[8 + 2 * ((at + number) % 8) for at in range(ENTRIES)] for number in range(6)], LOW + 16384, False)
    extent = build(case)
    wrong = []

    def look(seed: int) -> None:
        for step in range(2000):
            offset = (step * 37 + seed * 1009) * 100 % extent.length
            run = extent.map(offset, 1)
            if (run.kind, run.at) != plain(case, offset):
                wrong.append(offset)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ── holes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", [0, 16, 4096])
def test_tables_in_holes_are_not_read(start: int, tmp_path: Path) -> None:
    """40 tables of 16 KiB; only the 11th and the 30th hold something; neighbours touch the same pages."""
    entries, raw = 4096, 16384
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in (10, 29):
            file.seek(start + number * raw + raw - 4)
            file.write(struct.pack("<I", 4000))
        file.truncate(start + 50 * raw)
    read: list[int] = []
    with open_file(str(path)) as storage:
        tables = GrainTables(
            storage,
            np.arange(start, start + 40 * raw, raw, dtype=np.int64),
            entries=entries,
            width=4,
            decode=counting(read, low=512, high=1 << 40),
        )
        codes = tables.bulk(0, 40)
        assert np.flatnonzero(codes != UNALLOCATED).tolist() == [11 * entries - 1, 30 * entries - 1]
        assert len(read) <= 4
        assert [isinstance(tables.table(number), int) for number in (5, 10, 29, 39)] == [True, False, False, True]


def test_a_table_that_is_partly_a_hole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    raw = 65536
    with path.open("wb") as file:
        for number in range(20):
            file.seek(number * raw + (0 if number % 2 else raw - 4096))
            file.write(struct.pack("<I", 4000))
        file.truncate(20 * raw)
    with open_file(str(path)) as storage:
        tables = GrainTables(
            storage,
            np.arange(0, 20 * raw, raw, dtype=np.int64),
            entries=raw // 4,
            width=4,
            decode=lambda data: decode_sectors(data, low=512, high=1 << 40),
        )
        assert np.count_nonzero(tables.bulk(0, 20) != UNALLOCATED) == 20


class Holed(MemoryDevice):
    """Says that all of it is unallocated, as a server may, and not that it reads as zeros."""

    flags = 1

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        yield offset, count, self.flags


@pytest.mark.parametrize(("flags", "read"), [(0, True), (1, True), (2, False), (3, False)])
def test_only_what_reads_as_zero_is_not_read(flags: int, read: bool) -> None:
    storage = Holed(struct.pack("<I", 9) * 20 * ENTRIES, writable=False)
    storage.flags = flags
    tables = GrainTables(
        storage,
        np.arange(0, 20 * 32, 32, dtype=np.int64),
        entries=ENTRIES,
        width=4,
        decode=lambda raw: decode_sectors(raw, low=512, high=1 << 40),
    )
    assert (tables.bulk(0, 20) == (9 * 512 if read else UNALLOCATED)).all()


# ── what is wrong is said with its place ─────────────────────────────────────────────────────────────────────────


def test_refusals() -> None:
    extent = build(Case([[8] * 8, CORRUPT, [8, 8, 1 << 30, 8, 8, 8, 8, 8]], LOW + 16384, compressed=False))
    error = extent.refusal(2 * COVER + 2 * GRAIN + 7, RunKind.CORRUPT)
    assert isinstance(error, CorruptError)
    assert error.offset == 2 * 32 + 8
    assert "entry 2 of table 2" in str(error)
    assert f"cannot be read at {2 * COVER + 2 * GRAIN:#x}" in str(error)
    error = extent.refusal(COVER + 7, RunKind.CORRUPT)
    assert "directory entry 1" in str(error)
    assert f"from {COVER:#x} on" in str(error)


# ── found tables ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.dictionaries(st.integers(0, 4 * ENTRIES - 1), st.integers(0, 1 << 40), max_size=20))
def test_found_grains_and_nothing_else(found: dict[int, int]) -> None:
    grains = np.array(sorted(found), dtype=np.int64)
    addresses = np.array([found[number] for number in sorted(found)], dtype=np.int64)
    tables = FoundTables(MemoryDevice(10), grains, addresses, count=4, entries=ENTRIES)
    wanted = [found.get(number, UNALLOCATED) for number in range(4 * ENTRIES)]
    assert tables.bulk(0, 4).tolist() == wanted
    one_by_one: list[int] = []
    for number in range(4):
        table = tables.table(number)
        one_by_one += [table] * ENTRIES if isinstance(table, int) else table.tolist()
    assert one_by_one == wanted


@pytest.mark.parametrize(
    ("directory", "codes"),
    [
        ([0, 32, 64], [0, 32, 64]),
        ([64, 32, 0], [64, 32, 0]),
        ([0, UNALLOCATED, 64, 32], [0, UNALLOCATED, 64, 32]),
        ([32, 32, 96], [CORRUPT, CORRUPT, 96]),
        ([0, 16, 48, 96], [CORRUPT, CORRUPT, 48, 96]),
        ([0, 31, 62, 96], [CORRUPT, CORRUPT, CORRUPT, 96]),
        ([96, 64, UNALLOCATED, 95, CORRUPT], [CORRUPT, CORRUPT, UNALLOCATED, CORRUPT, CORRUPT]),
        ([CORRUPT, CORRUPT, UNALLOCATED, UNALLOCATED, 7], [CORRUPT, CORRUPT, UNALLOCATED, UNALLOCATED, 7]),
    ],
)
def test_no_two_tables_share_bytes(directory: list[int], codes: list[int]) -> None:
    """They would show the same grains twice, and make a small file cost what it likes."""
    assert tables_of(directory, 1024).directory.tolist() == codes


def test_stretches_of_tables_without_entries() -> None:
    tables = tables_of([UNALLOCATED] * 5000 + [CORRUPT] * 5000 + [0] + [UNALLOCATED], 64)
    assert [tables.stretch(at) for at in (0, 4999, 5000, 9999, 10000, 10001)] == [
        (UNALLOCATED, 5000),
        (UNALLOCATED, 5000),
        (CORRUPT, 10000),
        (CORRUPT, 10000),
        (0, 10001),
        (UNALLOCATED, 10002),
    ]
