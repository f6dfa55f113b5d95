# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The part of ``vmdkit convert`` that writes in order: how hard to deflate, and standard output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from vmdkit.cli.progress import shown
from vmdkit.errors import UsageError
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Parser
    from vmdkit.device import Device
    from vmdkit.ops.copy import CopyOptions, Tally

STREAM_KEYS = ("cid", "uuid")  # of -o, which other formats do not have


def add_stream_options(parser: Parser) -> None:
    """Add what says how hard to deflate."""
    group = parser.add_argument_group("streamOptimized").add_mutually_exclusive_group()
    group.add_argument("--fast", action="store_true", help="several times as fast, up to a tenth larger")
    group.add_argument(
        "--level", type=int, metavar="N", help="from 1 (fast) to 12 (smallest, very slow); default 6; 0 stores"
    )


def level_option(args: Namespace, kind: str) -> dict[str, Any]:
    """Return the level as an option of the format, if the user has said anything about it."""
    from vmdkit.converter import find_format
    from vmdkit.kernels import FAST, LEVELS, STORED

    if not args.fast and args.level is None:
        return {}
    if "level" not in find_format(kind).options:
        raise UsageError(f"--fast and --level are for formats that deflate, not for {find_format(kind).name}")
    if args.fast:
        return {"level": FAST}
    if args.level != STORED and args.level not in LEVELS:
        raise UsageError(f"--level {args.level}; from {LEVELS[0]} (fast) to {LEVELS[-1]} (smallest) are due, or 0")
    return {"level": args.level}


def done_with(args: Namespace, kind: str) -> str:
    """Say what was done with the bytes of the disk that are no holes."""
    from vmdkit.converter import STDOUT, find_format

    if "level" not in find_format(kind).options:
        return "written"
    return "packed" if args.target == STDOUT else f"packed into {format_size(os.stat(args.target).st_size)}"


def to_stdout(
    args: Namespace,
    source: Device,
    kind: str,
    options: dict[str, Any],
    copying: CopyOptions,
    tally: Tally,
    *,
    size: int,
) -> Tally:
    """Write a disk of ``size`` bytes to standard output, in order.

    Raises UsageError for a terminal, and for formats that need a file.
    """
    from vmdkit.converter import FORMATS, STDOUT, Order, find_format
    from vmdkit.ops.copy import stream
    from vmdkit.ops.offload import Pipe
    from vmdkit.ops.sink import RawSink

    row = find_format(kind)
    if row.sink is None:
        known = ", ".join(other.name for other in FORMATS.values() if other.sink is not None)
        raise UsageError(f"standard output takes only {known}, not {row.name}")
    if args.parent is not None:
        raise UsageError("a child needs a file of its own")
    order = Order(STDOUT, size, options)
    row.check(source, order)
    check_stdout(source)
    pipe = Pipe(sys.stdout.fileno())
    sink = row.sink(order, pipe, source)
    with shown(args, source.size, tally) as progress:
        stream(source, sink, copying, progress, tally)
    if isinstance(sink, RawSink):
        pipe.zeros(size - source.size)
    return tally


def check_stdout(source: Device) -> None:
    """Raise UsageError where standard output is closed, a terminal, or what the source is read from."""
    from vmdkit.storage.target import refuse_own_files

    if sys.stdout is None:
        raise UsageError("standard output is closed")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal; redirect it, or name a file")
    refuse_own_files(source, sys.stdout.fileno(), "standard output")
