# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How one device becomes like another: what is done with each run, and by whom. Driven by ``ops.copy``.

A *job* is a segment of the source and what it needs; a *batch* is one long job for the kernel, or about a mebibyte of
jobs for a thread, zeros between them included.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmdkit import ranges
from vmdkit.cores import default_threads
from vmdkit.device import Can
from vmdkit.errors import UsageError
from vmdkit.ops.against import Need, differing
from vmdkit.ops.look import zeros_in_file
from vmdkit.ops.offload import Offload
from vmdkit.ops.plan import Segment, naming, plan
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.rate import Throttle
from vmdkit.ops.zeros import data_runs, different_runs
from vmdkit.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device

_ZERO_STEP = GIB  # bytes of one zero request to a file: few, and a signal is noticed between them
_REMOTE_ZERO_STEP = 32 * MIB  # to anything else: servers have cut longer ones short, and left old bytes (users, 1.3)
_MOST_PIECES = 256  # in one batch: bounds what waits where runs are tiny
_MOST_THREADS = 64
_LEAST_LOOK = 4 * KIB  # bytes; looking at every sector would cost more than moving them


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How to copy.

    ``granularity`` (bytes, a multiple of 8): zero blocks of this size become holes where bytes are read; 0 writes
    zeros as they are, and allocates where the source has holes. ``scan`` reads everything, so that zeros are found
    everywhere. ``destination_is_zero``: what is not written there reads as zero already. ``block`` (bytes, 0: not):
    what the kernel moves is searched for zero blocks of this size, and differences are found in such blocks.
    ``threads``: 0 is as many as source and destination like. ``rate``: bytes a second at most; 0 is no limit.
    ``offset``: where to begin.
    """

    granularity: int = 4 * KIB
    scan: bool = False
    destination_is_zero: bool = False
    block: int = 0
    threads: int = 0
    rate: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        if self.granularity < 0 or self.granularity % 8 or CHUNK % (self.granularity or 1):
            raise UsageError(f"a granularity of {self.granularity} does not divide {CHUNK}, or is no multiple of 8")
        if self.block < 0 or CHUNK % (self.block or 1) or self.block % 8:
            raise UsageError(f"a block of {self.block} does not divide {CHUNK}, or is no multiple of 8")
        if not 0 <= self.threads <= _MOST_THREADS:
            raise UsageError(f"between 1 and {_MOST_THREADS} threads, not {self.threads}")
        if self.rate < 0 or self.offset < 0:
            raise UsageError("a rate and an offset are not below 0")


@dataclass(slots=True)
class Tally:
    """Bytes of the source so far: ``moved`` by the kernel, ``read``, ``skipped`` as zero, ``same`` as the parent's.

    Changes while copying.
    """

    moved: int = 0
    read: int = 0
    skipped: int = 0
    same: int = 0


class Job(NamedTuple):
    """A segment; what it needs; whether the destination reads as zero there."""

    segment: Segment
    need: Need
    clean: bool


class Batch(NamedTuple):
    """Jobs that are done together; a thread is worth its while for a ``heavy`` one."""

    jobs: list[Job]
    heavy: bool


class Copier:
    """One copy. ``batches`` are worked by ``work``, in any threads, and counted in their order."""

    def __init__(
        self, source: Device, destination: Device, options: CopyOptions, tally: Tally, base: Device | None = None
    ) -> None:
        """Copy into ``destination``, which reads as ``base`` where it has not been written, if there is one."""
        self.source = source
        self.destination = destination
        self.options = options
        self.tally = tally
        self.base = base
        self.threads = options.threads or max(default_threads(), source.parallel, destination.parallel)
        self.throttle = Throttle(options.rate)
        self._sparse = options.granularity > 0
        self._zero_step = _ZERO_STEP if destination.fileno() is not None else _REMOTE_ZERO_STEP
        self._local = threading.local()
        self._offload = Offload()
        self._places = Can.PLACE in destination.can and not options.scan

    # ── what there is to do ──────────────────────────────────────────────────────────────────────────────────

    def _jobs(self) -> Iterator[Job]:
        offset = self.options.offset
        if self.base is None:
            clean = self._sparse and self.options.destination_is_zero
            for segment in plan(self.source, self.source.size - offset, offset):
                yield Job(segment, Need.COPY, clean)
            return
        for segment, need in differing(self.source, self.base, offset):
            # What differs from zeros below is data, and what is zero hides data: one of them is always zero.
            yield Job(segment, need, self._sparse and need is Need.COPY and not segment.zero)

    def batches(self) -> Iterator[Batch]:
        """Cut the jobs into batches."""
        jobs: list[Job] = []
        count, heavy = 0, False
        for job in self._jobs():
            segment = job.segment
            if job.need is Need.COPY and segment.fd >= 0 and self._places and self._offload.worth(segment.fd):
                if jobs:
                    yield Batch(jobs, heavy)
                    jobs, count, heavy = [], 0, False
                yield Batch([job], heavy=False)
                continue
            for piece in self._pieces(job):
                jobs.append(piece)
                if not self._is_idle(piece):
                    heavy = True
                    count += 0 if piece.segment.zero else piece.segment.length
                if count >= CHUNK or len(jobs) >= _MOST_PIECES:
                    yield Batch(jobs, heavy)
                    jobs, count, heavy = [], 0, False
        if jobs:
            yield Batch(jobs, heavy)

    def _is_idle(self, job: Job) -> bool:
        """Tell whether nothing has to be done."""
        return job.need is Need.SAME or (job.segment.zero and job.clean)

    def _pieces(self, job: Job) -> Iterator[Job]:
        """Cut a job to what one call does."""
        segment = job.segment
        step = GIB if self._is_idle(job) else self._zero_step if segment.zero else CHUNK
        if self.throttle.step and not segment.zero:
            step = min(step, self.throttle.step)
        for start, length in ranges.split(segment.offset, segment.length, step):
            yield job._replace(segment=Segment(start, length, segment.zero))

    # ── doing it ─────────────────────────────────────────────────────────────────────────────────────────────

    def work(self, batch: Batch) -> Iterator[int]:
        """Do a batch. A heavy one is done when this returns, by a thread; a light one as its numbers are taken."""
        if not batch.heavy:
            return self._light(batch.jobs)
        for job in batch.jobs:
            self._do(job)
        return self._count(batch.jobs)

    def _light(self, jobs: list[Job]) -> Iterator[int]:
        for job in jobs:
            if job.need is Need.COPY and job.segment.fd >= 0:
                yield from self._move(job)
            else:
                self._do(job)
                yield from self._count([job])

    def _do(self, job: Job) -> None:
        if job.need is Need.SAME:
            return
        if job.segment.zero:
            self._zero(job, job.segment.offset, job.segment.length)
        elif job.need is Need.COMPARE:
            self._read_compare_write(job)
        else:
            self._read_write(job)

    def _count(self, jobs: list[Job]) -> Iterator[int]:
        """Count what is done; by the calling thread, as its numbers are taken."""
        same = sum(job.segment.length for job in jobs if job.need is Need.SAME)
        zero = sum(job.segment.length for job in jobs if job.segment.zero and job.need is not Need.SAME)
        total = sum(job.segment.length for job in jobs)
        self.tally.same += same
        self.tally.skipped += zero
        self.tally.read += total - zero - same
        self.throttle.passed(total - zero - same)
        yield total

    # ── by the kernel ────────────────────────────────────────────────────────────────────────────────────────

    def _move(self, job: Job) -> Iterator[int]:
        segment, shift = job.segment, job.segment.at - job.segment.offset
        block = max(self.options.block, _LEAST_LOOK) if self.options.block and job.clean else 0
        spans: Iterator[ranges.Span] = iter([(segment.offset, segment.length, 0)])
        if block:
            spans = zeros_in_file(segment.fd, segment.at, segment.length, segment.offset, block)
        for offset, length, zero in spans:
            if zero:
                self.tally.skipped += length
                yield length
            else:
                yield from self._move_run(job, offset, length, offset + shift)

    def _move_run(self, job: Job, offset: int, length: int, at: int) -> Iterator[int]:
        end = offset + length
        while offset < end:
            moved = self._move_some(job.segment.fd, at, end - offset, offset)
            if not moved:
                break
            self.tally.moved += moved
            self.throttle.passed(moved)
            yield moved
            offset, at = offset + moved, at + moved
        for piece in self._pieces(job._replace(segment=Segment(offset, end - offset, zero=False))):
            self._read_write(piece)
            yield from self._count([piece])

    def _move_some(self, fd: int, at: int, count: int, offset: int) -> int:
        """Have the kernel move the beginning of a run; return how many bytes, 0 where it cannot."""
        with naming(offset, count, self.destination):
            run = self.destination.place(count, offset)
            target = None if run is None or run.storage is None else run.storage.fileno()
            if run is None or target is None:
                self._places = False
                return 0
            return self._offload.move(fd, at, min(run.length, self.throttle.step or run.length), target, run.at)

    # ── by reading ───────────────────────────────────────────────────────────────────────────────────────────

    def _buffers(self) -> tuple[bytearray, bytearray]:
        """Return this thread's buffers; the second has no memory until it is needed."""
        buffers: tuple[bytearray, bytearray] | None = getattr(self._local, "buffers", None)
        if buffers is None:
            buffers = self._local.buffers = (bytearray(CHUNK), bytearray(CHUNK if self.base is not None else 0))
        return buffers

    def _read(self, segment: Segment, device: Device, buf: bytearray) -> memoryview:
        view = memoryview(buf)[: segment.length]
        with naming(segment.offset, segment.length, device):
            device.pread_into(view, segment.offset)
        return view

    def _read_write(self, job: Job) -> None:
        view = self._read(job.segment, self.source, self._buffers()[0])
        self._write(job, view, 0, len(view))

    def _write(self, job: Job, view: memoryview, start: int, end: int) -> None:
        """Write a part of what was read, zero blocks as zeros."""
        offset, part, done = job.segment.offset + start, view[start:end], 0
        with naming(offset, len(part), self.destination):
            for at, length in data_runs(part, self.options.granularity):
                self._zero(job, offset + done, at - done)
                self.destination.pwrite(part[at : at + length], offset + at)
                done = at + length
            self._zero(job, offset + done, len(part) - done)

    def _read_compare_write(self, job: Job) -> None:
        if self.base is None:
            return
        one, two = self._buffers()
        view = self._read(job.segment, self.source, one)
        self._read(job.segment, self.base, two)
        length = job.segment.length
        for start, count in different_runs(one, two, length, self.options.block or CHUNK, job.segment.offset):
            self._write(job, view, start, start + count)

    def _zero(self, job: Job, offset: int, count: int) -> None:
        if job.clean or not count:
            return
        with naming(offset, count, self.destination):
            self.destination.zero(count, offset, no_hole=not self._sparse)
