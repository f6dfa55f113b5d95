# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Run work in a few threads and take the results in order, holding a bounded number of them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from vmdkit import ranges
from vmdkit.cores import default_threads
from vmdkit.ops.plan import Segment, naming, plan
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from vmdkit.device import Device

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = default_threads()  # for packing, unpacking, digests; plain copies are bound by memory (nbd spec, 3)
CHUNK = MIB  # bytes a thread takes at once: 16 grains, and small enough to stay in a cache


def always(_: object) -> bool:
    """Say yes."""
    return True


def ordered(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = THREADS,
    ahead: int = 0,
    heavy: Callable[[Item], bool] = always,
) -> Generator[Result, None, None]:
    """Yield ``work(item)`` for each item, in order; at most ``ahead`` items wait (default: three a thread).

    Items that are not ``heavy`` are not worth a thread: they are worked by the caller, when they are due. The first
    error in the order of the items is raised after the running threads have ended; the others are dropped.
    Callers close it (contextlib.closing), so that no thread outlives an error of their own.
    """
    waiting: deque[tuple[Item, Future[Result] | None]] = deque()
    limit = ahead or 3 * threads

    def first() -> Result:
        item, future = waiting.popleft()
        return work(item) if future is None else future.result()

    with ThreadPoolExecutor(threads, thread_name_prefix="vmdkit") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item) if heavy(item) else None))
                while len(waiting) >= limit or (waiting and waiting[0][1] is None):
                    yield first()
            while waiting:
                yield first()
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def read_ahead(
    device: Device, *, threads: int = THREADS, files: bool = False, count: int | None = None, offset: int = 0
) -> Generator[tuple[Segment, memoryview | None], None, None]:
    """Yield the segments of a range with their bytes, in order; a zero segment has None and may be long.

    With ``files`` a segment that is verbatim in a file has None too. A view is good until the next step.
    """
    return work_ahead(device, plan(device, count, offset), lambda _, view: view, threads=threads, files=files)


def work_ahead(
    device: Device,
    segments: Iterable[Segment],
    work: Callable[[int, memoryview], Result],
    *,
    threads: int = THREADS,
    files: bool = False,
    step: int = CHUNK,
) -> Generator[tuple[Segment, Result | None], None, None]:
    """Read segments in pieces that cross no multiple of ``step``; yield each with ``work(offset, view)``, in order.

    Threads do both. A zero segment, and with ``files`` one that is verbatim in a file, is yielded whole with None.
    What ``work`` returns must not refer to its view, unless it is the view: that is good until the next step.
    """
    free: list[bytearray] = []  # as many as are in use at once: one a thread, more only where views are given away

    def heavy(piece: Segment) -> bool:
        return not piece.zero and not (files and piece.fd >= 0)

    def pieces() -> Iterator[Segment]:
        for segment in segments:
            if not heavy(segment):
                yield segment
                continue
            for start, length in ranges.split(segment.offset, segment.length, step):
                yield segment._replace(offset=start, length=length)

    def fetch(piece: Segment) -> tuple[Segment, Result | None, bytearray | None]:
        if not heavy(piece):
            return piece, None, None
        try:
            buf = free.pop()
        except IndexError:
            buf = bytearray(step)
        view = memoryview(buf)[: piece.length]
        with naming(piece.offset, piece.length, device):
            device.pread_into(view, piece.offset)
        result = work(piece.offset, view)
        if result is view:
            return piece, result, buf
        free.append(buf)
        return piece, result, None

    with closing(ordered(fetch, pieces(), threads=threads, heavy=heavy)) as fetched:
        for piece, result, buf in fetched:
            yield piece, result
            if buf is not None:
                free.append(buf)
