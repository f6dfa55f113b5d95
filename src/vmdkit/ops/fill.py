# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Copy what comes through a pipe, of a length that nobody knows before it ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError
from vmdkit.ops.copier import CopyOptions, Tally
from vmdkit.ops.plan import naming
from vmdkit.ops.pool import CHUNK
from vmdkit.ops.rate import Throttle
from vmdkit.ops.zeros import data_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device


def fill(
    fd: int,
    destination: Device,
    options: CopyOptions = CopyOptions(),  # noqa: B008  # immutable
    progress: Callable[[int], None] = lambda _: None,
    tally: Tally | None = None,
) -> Tally:
    """Write what ``fd`` gives until its end to the beginning of ``destination``; does not flush.

    Of ``options`` granularity, rate and destination_is_zero count. Raises UsageError where more comes than the
    destination holds: what came before is written then.
    """
    tally = Tally() if tally is None else tally
    throttle = Throttle(options.rate)
    clean = options.destination_is_zero and options.granularity > 0
    buf, offset = memoryview(bytearray(CHUNK)), 0
    while count := _read(fd, buf):
        if count > destination.size - offset:
            raise UsageError(f"more bytes come than the {destination.size} that it holds", path=destination.name)
        view = buf[:count]
        with naming(offset, count, destination):
            end = 0
            for at, length in data_runs(view, options.granularity):
                _zero(destination, offset + end, at - end, options, clean=clean)
                destination.pwrite(view[at : at + length], offset + at)
                tally.read += length
                end = at + length
            _zero(destination, offset + end, count - end, options, clean=clean)
        tally.skipped = offset + count - tally.read
        offset += count
        progress(count)
        throttle.passed(count)
    return tally


def _zero(destination: Device, offset: int, count: int, options: CopyOptions, *, clean: bool) -> None:
    if count and not clean:
        destination.zero(count, offset, no_hole=not options.granularity)


def _read(fd: int, buf: memoryview) -> int:
    """Fill ``buf`` as far as there is anything; a pipe gives a little at a time."""
    done = 0
    while done < len(buf):
        count = os.readv(fd, [buf[done:]])
        if not count:
            break
        done += count
    return done
