# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit convert``: write a disk in another format."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import say
from vmdkit.cli.target import in_place, is_block_device, new_file, refuse_own_files
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ops.copy import CopyOptions, Tally, copy, stream
from vmdkit.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from contextlib import AbstractContextManager

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device
    from vmdkit.storage.file import FileDevice

FORMATS = ("raw",)


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "convert",
        help="write a disk in another format",
        description="Write SRC as DST; holes stay holes. DST '-' is standard output, in order, as for a pipe.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("-O", dest="format", metavar="FORMAT", default="raw", help="what to write: raw (default)")
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite DST where it exists")
    parser.add_argument(
        "-n", "--no-create", action="store_true", help="write into DST as it is: a file, a block device"
    )
    parser.add_argument(
        "-S",
        dest="sparse",
        metavar="SIZE",
        help="read everything and leave out zeros of SIZE bytes; default: 4k, where bytes must be read anyway; "
        "0: write zeros too",
    )
    add_threads(parser)
    parser.add_argument("--no-sync", action="store_true", help="do not wait until DST is on stable storage")
    add_disk_options(parser)
    parser.set_defaults(func=convert_verb)


def convert_verb(args: Namespace) -> int:
    """Unpack the arguments and convert."""
    if args.format not in FORMATS:
        raise UnsupportedError(f"cannot write {args.format!r} yet, only {', '.join(FORMATS)}")
    options = CopyOptions(threads=args.threads)
    if args.sparse is not None:
        size = parse_size(args.sparse)
        options = CopyOptions(granularity=size, scan=size > 0, threads=args.threads)
    tally = Tally()
    with open_disk(args, args.source) as source:
        if args.target == "-":
            _check_stdout(source)
            with shown(args, source.size, tally) as progress:
                stream(source, sys.stdout.fileno(), progress, tally, args.threads)
        else:
            refuse_own_files(source, args.target, args.target)
            with _target(args, source) as target, shown(args, source.size, tally) as progress:
                copy(source, target, _knowing(options, args), progress, tally)
    if args.verbose:
        moved, skipped = format_size(tally.moved + tally.read), format_size(tally.skipped)
        say(f"{args.target}: {moved} written, {skipped} skipped as zero")
    return 0


def _knowing(options: CopyOptions, args: Namespace) -> CopyOptions:
    """Say that a file made just now is zero."""
    return CopyOptions(options.granularity, options.scan, not _writes_in_place(args), options.threads)


def _writes_in_place(args: Namespace) -> bool:
    return args.no_create or is_block_device(args.target)


def _target(args: Namespace, source: Device) -> AbstractContextManager[FileDevice]:
    if not _writes_in_place(args):
        return new_file(args.target, source.size, overwrite=args.force, sync=not args.no_sync)
    if not args.no_create and not args.force:
        raise UsageError("it is a block device; -n writes over what it holds", path=args.target)
    return in_place(args.target, source.size, sync=not args.no_sync)


def _check_stdout(source: Device) -> None:
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal; redirect it, or name a file")
    refuse_own_files(source, sys.stdout.fileno(), "standard output")
