# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.device import Can
from vmdkit.errors import FormatError, UnsupportedError, UsageError
from vmdkit.ops.copy import CopyOptions, Tally
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.resume import resumable
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device

COUNT = 12
HOW = {"raw": True}
ONE = CopyOptions(threads=1)


class Target(MemoryDevice):
    """Loses what was not flushed, as a power cut does; may fail to flush once."""

    def __init__(self, size: int) -> None:
        super().__init__(b"x" * size, name="target")
        self.durable = bytes(self._data)
        self.written: list[int] = []
        self.flushes = 0
        self.fails: list[int] = []

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.written.append(offset)
        super()._pwrite(view, offset)

    def _flush(self) -> None:
        self.flushes += 1
        if self.flushes in self.fails:
            self._data[:] = self.durable  # what the kernel does with pages it could not write: forget, and say so once
            raise OSError(5, "Input/output error")
        self.durable = bytes(self._data)

    def crash(self) -> None:
        self._data[:] = self.durable


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Device]:
    (tmp_path / "source").write_bytes(b"".join(bytes([65 + number]) * CHUNK for number in range(COUNT)))
    with open_file(str(tmp_path / "source")) as device:
        yield device


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def clock() -> Any:
    now = iter(range(1_000_000))
    return lambda: float(next(now))


def stop_after(count: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    seen = 0

    def progress(done: int) -> None:
        nonlocal seen
        seen += done
        if seen >= count * CHUNK:
            raise error

    return progress


def go(source: Device, target: Device, journal: Path, **more: Any) -> Tally:
    return resumable(source, target, ONE, str(journal), how=HOW, **{"clock": clock(), "period": 1.5, **more})


def test_a_whole_copy_leaves_no_journal(source: Device, journal: Path) -> None:
    target = Target(source.size)
    steps: list[int] = []
    go(source, target, journal, progress=steps.append)
    assert target.durable == source.pread(source.size, 0)
    assert sum(steps) == source.size
    assert not journal.exists()


def test_goes_on_after_an_interruption(source: Device, journal: Path) -> None:
    target = Target(source.size)
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        go(source, target, journal, progress=stop_after(5))
    done = json.loads(journal.read_text())["done"]
    assert 3 * CHUNK <= done <= 5 * CHUNK
    target.crash()
    target.written.clear()
    go(source, target, journal, progress=steps.append)
    assert target.durable == source.pread(source.size, 0)
    assert min(target.written) == done
    assert sum(steps) == source.size
    assert not journal.exists()


def test_a_crash_loses_what_was_not_noted(source: Device, journal: Path) -> None:
    """An error of the program is no reason to trust anything newer than the last note."""
    target = Target(source.size)
    with pytest.raises(RuntimeError):
        go(source, target, journal, progress=stop_after(6, RuntimeError), period=3.5)
    target.crash()
    done = json.loads(journal.read_text())["done"]
    assert 0 < done < 6 * CHUNK
    assert target.durable[:done] == source.pread(done, 0)
    go(source, target, journal)
    assert target.durable == source.pread(source.size, 0)


def test_a_flush_that_fails_is_not_believed_later(source: Device, journal: Path) -> None:
    target = Target(source.size)
    target.fails = [3]
    with pytest.raises(OSError, match="Input/output"):
        go(source, target, journal)
    done = json.loads(journal.read_text())["done"]
    assert target.flushes == 3
    assert target.durable[:done] == source.pread(done, 0)
    go(source, target, journal)
    assert target.durable == source.pread(source.size, 0)


def interrupted(source: Device, journal: Path, target: Target | None = None) -> Target:
    target = Target(source.size) if target is None else target
    with pytest.raises(KeyboardInterrupt):
        go(source, target, journal, progress=stop_after(5))
    return target


def test_a_source_that_has_changed_is_refused(source: Device, journal: Path) -> None:
    target = interrupted(source, journal)
    os.utime(source.name, (1, 1))
    with pytest.raises(
        UsageError, match=r"the source has changed since the copy was begun \(files\); remove the journal"
    ):
        go(source, target, journal)
    assert journal.exists()


def test_another_destination_is_refused(source: Device, journal: Path) -> None:
    interrupted(source, journal)
    with pytest.raises(UsageError, match=r"the destination is another \(size\)"):
        go(source, Target(source.size + 1), journal)
    with pytest.raises(UsageError, match=r"does not hold what the journal says was copied \(at 0x"):
        go(source, Target(source.size), journal)


def test_other_options_are_refused(source: Device, journal: Path) -> None:
    target = interrupted(source, journal)
    with pytest.raises(UsageError, match=r"other options were given then \(raw\)"):
        resumable(source, target, ONE, str(journal), how={"raw": False})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"done": 1}',
        '{"done": -1, "format": "vmdkit copy journal", "version": 1, "facts": {}}',
        "[" * 9999,
    ],
)
def test_what_is_no_journal(text: str, source: Device, journal: Path) -> None:
    journal.write_text(text)
    with pytest.raises(FormatError, match="this is no journal of a copy"):
        go(source, Target(source.size), journal)
    assert journal.read_text() == text


def test_a_journal_that_claims_too_much(source: Device, journal: Path) -> None:
    target = interrupted(source, journal)
    told = json.loads(journal.read_text())
    journal.write_text(json.dumps(told | {"done": source.size + 1}))
    with pytest.raises(FormatError, match="are said to be done of"):
        go(source, target, journal)


def test_what_cannot_be_flushed_cannot_be_resumed(source: Device, journal: Path) -> None:
    target = Target(source.size)
    target._set_can(Can.WRITE)
    with pytest.raises(UnsupportedError, match="cannot be flushed"):
        go(source, target, journal)
