# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""THE copy engine: any Device into any other Device, or in order into a Sink.

::

    plan(source) ─► zero ───────────────────────────► destination.zero(), nothing where it is zero already
                    verbatim in a file ─────────────► the kernel moves it (Offload), by the calling thread
                    else, or where that is refused ─► read, look for zeros, write: a few threads, bounded memory

In order (``stream`` into what ``ops/sink.py`` describes) threads read and pack, and the calling thread writes.
Holes are never read. What the kernel moves is not searched for zeros: that would cost a read.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmdkit import ranges
from vmdkit.errors import UsageError
from vmdkit.ops.offload import Offload
from vmdkit.ops.plan import Segment, naming, plan, whole
from vmdkit.ops.pool import CHUNK, THREADS, ordered, work_ahead
from vmdkit.ops.sink import Packed, Sender, Sink
from vmdkit.ops.unchanged import unchanged
from vmdkit.ops.zeros import data_runs
from vmdkit.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device

    Progress = Callable[[int], None]

_ZERO_STEP = GIB  # bytes of one zero request: few, and a signal is noticed between them
_ZEROS = 64 * MIB  # bytes of zeros that a sink is given at once: progress moves, and a signal is noticed
_MOST_PIECES = 256  # in one batch: bounds what waits where runs are tiny


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How to copy.

    ``granularity`` (bytes, a multiple of 8): zero blocks of this size become holes where bytes are read; 0 writes
    zeros as they are, and allocates where the source has holes. ``scan`` reads everything, so that zeros are found
    everywhere. ``destination_is_zero``: what is not written there reads as zero already.
    """

    granularity: int = 4 * KIB
    scan: bool = False
    destination_is_zero: bool = False
    threads: int = THREADS

    def __post_init__(self) -> None:
        if self.granularity < 0 or self.granularity % 8 or CHUNK % (self.granularity or 1):
            raise UsageError(f"a granularity of {self.granularity} does not divide {CHUNK}, or is no multiple of 8")
        if self.threads < 1:
            raise UsageError("at least one thread is needed")


@dataclass(slots=True)
class Tally:
    """Bytes of the source so far: ``moved`` by the kernel, ``read``, ``skipped`` as zero; changes while copying."""

    moved: int = 0
    read: int = 0
    skipped: int = 0


class _Batch(NamedTuple):
    segments: list[Segment]
    heavy: bool


def ignore(_: int) -> None:
    """Be the progress nobody asked for."""


def copy(
    source: Device,
    destination: Device,
    options: CopyOptions = CopyOptions(),
    progress: Progress = ignore,
    tally: Tally | None = None,
) -> Tally:
    """Make the first ``source.size`` bytes of ``destination`` equal to ``source``; does not flush.

    ``progress`` gets numbers of bytes, by the calling thread, skipped ones too. Raises UsageError where the
    destination is smaller, VmdkitError where a file of the source was changed meanwhile, and what reading or writing
    raises, with the offset; the lowest offset wins.
    """
    if destination.size < source.size:
        raise UsageError(f"{source.size} bytes do not fit, it has {destination.size}", path=destination.name)
    tally = Tally() if tally is None else tally
    copier = _Copier(source, destination, options, tally)
    work = ordered(copier.work, copier.batches(), threads=options.threads, heavy=lambda batch: batch.heavy)
    with unchanged(source), closing(work) as parts:
        for part in parts:
            for done in part:
                progress(done)
    return tally


def stream(
    source: Device, sink: Sink[Packed], progress: Progress = ignore, tally: Tally | None = None, threads: int = THREADS
) -> Tally:
    """Write all of ``source`` into ``sink`` in order, and finish it. ``threads`` read and pack.

    Raises as ``copy``, what the sink raises, and BrokenPipeError; the sink is not finished then.
    """
    tally = Tally() if tally is None else tally
    sender = sink if isinstance(sink, Sender) else None
    grain = sink.granularity
    segments = plan(source) if sender is not None else whole(plan(source), grain)
    step = grain * max(1, CHUNK // grain)
    work = work_ahead(source, segments, sink.pack, threads=threads, files=sender is not None, step=step)
    with unchanged(source), closing(work) as pieces:
        for segment, packed in pieces:
            if segment.zero:
                for offset, length in ranges.split(segment.offset, segment.length, grain * max(1, _ZEROS // grain)):
                    sink.zeros(offset, length)
                    tally.skipped += length
                    progress(length)
            elif packed is not None:
                sink.put(packed)
                tally.read += segment.length
                progress(segment.length)
            elif sender is not None:
                _send(source, segment, sink, sender, progress, tally)
    sink.finish()
    return tally


def _send(
    source: Device, segment: Segment, sink: Sink[Packed], sender: Sender, progress: Progress, tally: Tally
) -> None:
    """Send a segment that lies in a file; read it where the kernel does not."""
    done = 0
    while done < segment.length:
        moved = sender.send(segment.fd, segment.at + done, segment.length - done)
        if moved:
            tally.moved += moved
        else:
            moved = min(segment.length - done, CHUNK)
            with naming(segment.offset + done, moved, source):
                buf = source.pread(moved, segment.offset + done)
            sink.put(sink.pack(segment.offset + done, memoryview(buf)))
            tally.read += moved
        done += moved
        progress(moved)


class _Copier:
    def __init__(self, source: Device, destination: Device, options: CopyOptions, tally: Tally) -> None:
        self.source = source
        self.destination = destination
        self.options = options
        self.tally = tally
        self.clean = options.destination_is_zero and options.granularity > 0
        self._local = threading.local()
        self.offload = Offload(None if options.scan else destination.fileno())

    def batches(self) -> Iterator[_Batch]:
        """Cut the plan into work: one segment for the kernel, or about CHUNK bytes to read with zeros between."""
        batch: list[Segment] = []
        count = 0
        for segment in plan(self.source):
            if segment.fd >= 0 and self.offload:
                yield _Batch([segment], heavy=False)
                continue
            step = _ZERO_STEP if segment.zero else CHUNK
            for start, length in ranges.split(segment.offset, segment.length, step):
                batch.append(Segment(start, length, segment.zero))
                count += 0 if segment.zero else length
                if count >= CHUNK or len(batch) >= _MOST_PIECES:
                    yield _Batch(batch, heavy=count > 0)
                    batch, count = [], 0
        if batch:
            yield _Batch(batch, heavy=count > 0)

    def work(self, batch: _Batch) -> Iterator[int]:
        """Do a batch. A heavy one is done when this returns, by a thread; a light one as its numbers are taken."""
        if not batch.heavy:
            return self._light(batch.segments)
        self._read_batch(batch.segments)
        return self._count(batch.segments)

    def _count(self, segments: list[Segment]) -> Iterator[int]:
        """Count what is done; by the calling thread, as its numbers are taken."""
        zero = sum(segment.length for segment in segments if segment.zero)
        data = sum(segment.length for segment in segments if not segment.zero)
        self.tally.skipped += zero
        self.tally.read += data
        yield zero + data

    def _light(self, segments: list[Segment]) -> Iterator[int]:
        for segment in segments:
            if segment.zero:
                self._zero(segment)
                self.tally.skipped += segment.length
                yield segment.length
            else:
                yield from self._move(segment)

    def _move(self, segment: Segment) -> Iterator[int]:
        done = 0
        while done < segment.length:
            offset = segment.offset + done
            with naming(offset, segment.length - done, self.destination):
                moved = self.offload.move(segment.fd, segment.at + done, segment.length - done, offset)
            if not moved:
                break
            self.tally.moved += moved
            done += moved
            yield moved
        for start, length in ranges.split(segment.offset + done, segment.length - done, CHUNK):
            piece = [Segment(start, length, zero=False)]
            self._read_batch(piece)
            yield from self._count(piece)

    def _read_batch(self, segments: list[Segment]) -> None:
        buf: bytearray | None = getattr(self._local, "buf", None)
        if buf is None:
            buf = self._local.buf = bytearray(CHUNK)
        for segment in segments:
            if segment.zero:
                self._zero(segment)
            else:
                self._read_write(segment, memoryview(buf)[: segment.length])

    def _read_write(self, segment: Segment, view: memoryview) -> None:
        with naming(segment.offset, segment.length, self.source):
            self.source.pread_into(view, segment.offset)
        with naming(segment.offset, segment.length, self.destination):
            end = 0
            for at, length in data_runs(view, self.options.granularity):
                self._zero(Segment(segment.offset + end, at - end, zero=True))
                self.destination.pwrite(view[at : at + length], segment.offset + at)
                end = at + length
            self._zero(Segment(segment.offset + end, segment.length - end, zero=True))

    def _zero(self, segment: Segment) -> None:
        if self.clean or not segment.length:
            return
        with naming(segment.offset, segment.length, self.destination):
            self.destination.zero(segment.length, segment.offset, no_hole=not self.options.granularity)
