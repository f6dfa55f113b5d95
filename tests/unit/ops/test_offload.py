# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.ops.offload import Offload, Pipe

if TYPE_CHECKING:
    from pathlib import Path

DATA = os.urandom(100_000)


@pytest.fixture
def files(tmp_path: Path) -> Any:
    (tmp_path / "in").write_bytes(DATA)
    source, target = os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield source, target, tmp_path / "out"
    os.close(source)
    os.close(target)


def move_all(offload: Offload, source: int, target: int, count: int) -> int:
    done = 0
    while done < count and (moved := offload.move(source, done, count - done, target, done)):
        done += moved
    return done


@pytest.mark.parametrize("without", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
def test_moves_with_what_there_is(files: Any, without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, path = files
    for name in without:
        monkeypatch.delattr(os, name)
    offload = Offload()
    assert move_all(offload, source, target, len(DATA)) == (0 if len(without) == 2 else len(DATA))
    assert path.read_bytes() == (b"" if len(without) == 2 else DATA)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_refusal_is_learned(files: Any, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, path = files
    calls = []

    def refuse(*_: Any) -> int:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    offload = Offload()
    for at in (0, 50_000):
        assert offload.move(source, at, 50_000, target, at) == 50_000
    assert len(calls) == 1
    assert offload.worth(source)
    assert path.read_bytes() == DATA


def test_short_moves_and_interruptions(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, path = files
    real, calls = os.copy_file_range, []

    def short(src: int, dst: int, count: int, at: int, offset: int) -> int:
        calls.append(count)
        if len(calls) % 2:
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(src, dst, min(count, 1000), at, offset)

    monkeypatch.setattr(os, "copy_file_range", short)
    assert move_all(Offload(), source, target, len(DATA)) == len(DATA)
    assert path.read_bytes() == DATA


def test_the_end_of_the_file_is_left_to_reading(files: Any) -> None:
    source, target, _ = files
    offload = Offload()
    assert offload.worth(source)
    assert offload.move(source, len(DATA), 10, target, 0) == 0
    assert not offload.worth(source)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
def test_faults_are_no_refusals(files: Any, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        Offload().move(files[0], 0, 10, files[1], 0)


def test_a_pipe_that_does_not_block(files: Any) -> None:
    source, _, _ = files
    read, write = os.pipe()
    os.set_blocking(write, False)
    found = bytearray()

    def drain() -> None:
        while data := os.read(read, 1000):
            found.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    pipe = Pipe(write)
    done = 0
    while done < len(DATA):
        done += pipe.send(source, done, len(DATA) - done)
    pipe.write(memoryview(DATA))
    pipe.zeros(100_000)
    os.close(write)
    reader.join()
    os.close(read)
    assert found == DATA + DATA + bytes(100_000)
