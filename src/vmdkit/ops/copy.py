# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""THE copy engine: any Device into any other Device, or in order into a Sink.

::

    plan(source) ─► zero ───────────────────────────► destination.zero(), nothing where it is zero already
                    the same as in the base ────────► nothing
                    verbatim in a file ─────────────► destination.place(), and the kernel moves it there (Offload)
                    else, or where that is refused ─► read, look for zeros, write: a few threads, bounded memory

What is done with a run stands in ``copier.py``; here is the loop. In order (``stream`` into what ``ops/sink.py``
describes) threads read and pack, and the calling thread writes. Holes are never read. What the kernel moves is
searched for zeros only by looking at one word of each block (``look.py``).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.cores import default_threads
from vmdkit.errors import UsageError
from vmdkit.ops.copier import Copier, CopyOptions, Tally
from vmdkit.ops.plan import Segment, naming, plan, whole
from vmdkit.ops.pool import CHUNK, ordered, work_ahead
from vmdkit.ops.rate import Throttle
from vmdkit.ops.sink import Packed, Sender, Sink
from vmdkit.ops.unchanged import unchanged
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device

    Progress = Callable[[int], None]

_ZEROS = 64 * MIB  # bytes of zeros that a sink is given at once: progress moves, and a signal is noticed


def ignore(_: int) -> None:
    """Be the progress nobody asked for."""


def copy(
    source: Device,
    destination: Device,
    options: CopyOptions = CopyOptions(),  # noqa: B008  # immutable
    progress: Progress = ignore,
    tally: Tally | None = None,
    *,
    base: Device | None = None,
    settled: Callable[[int], None] | None = None,
) -> Tally:
    """Make the first ``source.size`` bytes of ``destination`` equal to ``source``; does not flush.

    ``progress`` gets numbers of bytes, by the calling thread, skipped ones too. ``base`` is what the destination
    reads as already: only what differs from it is written. ``settled(offset)`` is told now and then, also by the
    calling thread, that everything up to that offset of the disk is written. Raises UsageError where the destination
    is smaller, VmdkitError where a file of the source was changed meanwhile, and what reading or writing raises, with
    the offset; the lowest offset wins.
    """
    if destination.size < source.size:
        raise UsageError(f"{source.size} bytes do not fit, it has {destination.size}", path=destination.name)
    if base is not None and base.size < source.size:
        raise UsageError(f"it has {base.size} bytes, and {source.size} are compared with it", path=base.name)
    tally = Tally() if tally is None else tally
    copier = Copier(source, destination, options, tally, base)
    end = options.offset
    work = ordered(copier.work, copier.batches(), threads=copier.threads, heavy=lambda batch: batch.heavy)
    with unchanged(source, *([] if base is None else [base])), closing(work) as parts:
        for part in parts:
            for done in part:
                progress(done)
                end += done
                if settled is not None:
                    settled(end)
    return tally


def stream(
    source: Device,
    sink: Sink[Packed],
    options: CopyOptions = CopyOptions(),  # noqa: B008  # immutable
    progress: Progress = ignore,
    tally: Tally | None = None,
) -> Tally:
    """Write all of ``source`` into ``sink`` in order, and finish it. Of ``options`` threads and rate count.

    Raises as ``copy``, what the sink raises, and BrokenPipeError; the sink is not finished then.
    """
    tally = Tally() if tally is None else tally
    sender = sink if isinstance(sink, Sender) else None
    grain = sink.granularity
    segments = plan(source) if sender is not None else whole(plan(source), grain)
    step = grain * max(1, CHUNK // grain)
    threads = options.threads or max(default_threads(), source.parallel)
    throttle = Throttle(options.rate)
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
                throttle.passed(segment.length)
            elif sender is not None:
                for moved in _send(source, segment, sink, sender, throttle.step, tally):
                    progress(moved)
                    throttle.passed(moved)
    sink.finish()
    return tally


def _send(
    source: Device, segment: Segment, sink: Sink[Packed], sender: Sender, step: int, tally: Tally
) -> Iterator[int]:
    """Send a segment that lies in a file; read it where the kernel does not. At most ``step`` bytes at once, if any."""
    done = 0
    while done < segment.length:
        count = min(segment.length - done, step or segment.length)
        moved = sender.send(segment.fd, segment.at + done, count)
        if moved:
            tally.moved += moved
        else:
            moved = min(count, CHUNK)
            with naming(segment.offset + done, moved, source):
                buf = source.pread(moved, segment.offset + done)
            sink.put(sink.pack(segment.offset + done, memoryview(buf)))
            tally.read += moved
        done += moved
        yield moved


__all__ = ["CopyOptions", "Tally", "copy", "ignore", "stream"]
