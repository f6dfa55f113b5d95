# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import UsageError
from vmdkit.ops.copy import CopyOptions, Tally
from vmdkit.ops.fill import fill
from vmdkit.ops.pool import CHUNK
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = b"A" * 5000 + bytes(3 * CHUNK) + b"B" * 17


@contextmanager
def pipe(data: bytes) -> Iterator[int]:
    read, write = os.pipe()

    def send() -> None:
        with open(write, "wb") as file:
            for at in range(0, len(data), 7777):
                file.write(data[at : at + 7777])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield read
    finally:
        os.close(read)
        sender.join()


@pytest.mark.parametrize("options", [CopyOptions(), CopyOptions(granularity=0)])
def test_fills_the_beginning(options: CopyOptions) -> None:
    made, tally = MemoryDevice(b"x" * (len(DATA) + 100)), Tally()
    steps: list[int] = []
    with pipe(DATA) as fd:
        fill(fd, made, options, steps.append, tally)
    assert made.pread(made.size, 0) == DATA + b"x" * 100
    assert sum(steps) == len(DATA) == tally.read + tally.skipped
    assert bool(tally.skipped) == bool(options.granularity)


def test_zeros_are_left_where_zeros_are() -> None:
    made = MemoryDevice(len(DATA))
    made._zero = None  # type: ignore[method-assign,assignment]  # fails if it is called
    with pipe(DATA) as fd:
        fill(fd, made, CopyOptions(destination_is_zero=True))
    assert made.pread(made.size, 0) == DATA


def test_more_than_there_is_room_for() -> None:
    with pytest.raises(UsageError, match="more bytes come than the 100 that it holds"), pipe(b"A" * 101) as fd:
        fill(fd, MemoryDevice(100))


def test_nothing_at_all() -> None:
    with pipe(b"") as fd:
        assert fill(fd, MemoryDevice(b"abc")) == Tally()
