# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit copy``: bytes into a disk that is there: a device, an export, an image."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk, without_blas_threads
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.proof import Proof, add_proof_options
from vmdkit.cli.render import say
from vmdkit.errors import FormatError, UsageError
from vmdkit.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from vmdkit.cli.parser import Parser, Verbs
    from vmdkit.device import Device
    from vmdkit.ops.copy import CopyOptions, Tally

_PIPE = "-"
_HOW = ("raw", "salvage", "single_link", "directory", "ignore_cid", "ignore_journal")  # decides what a source reads as


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "copy",
        help="copy bytes into a disk that is there",
        description="Write the bytes of SRC over those of DST, which exists: a block device, an NBD address, a VMDK, a "
        "raw file. DST may be larger; what lies behind stays. '-' is standard input or output, as raw bytes.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    for side in ("source", "destination"):
        parser.add_argument(f"--raw-{side}", action="store_true", help=f"only the {side} is raw bytes")
    parser.add_argument(
        "--destination-is-zero",
        "--target-is-zero",
        action="store_true",
        help="DST reads as zero: holes of SRC need not be written",
    )
    parser.add_argument("--allocated", action="store_true", help="allocate DST where SRC has holes or zeros")
    parser.add_argument("--flush", action="store_true", help="wait until DST is on stable storage")
    parser.add_argument(
        "-S", dest="sparse", metavar="SIZE", help="zeros of SIZE bytes become holes (default 4k; 0: none)"
    )
    add_rate_limit(parser)
    add_resume_options(parser)
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    add_threads(parser, default=0)
    add_proof_options(parser)
    add_disk_options(parser)
    parser.set_defaults(func=copy_verb)


def add_rate_limit(parser: Parser) -> None:
    """Add --rate-limit."""
    parser.add_argument(
        "--rate-limit", metavar="RATE", default="0", help="bytes a second at most, for example 20M; zeros are free"
    )


def add_resume_options(parser: Parser) -> None:
    """Add what long copies need."""
    parser.add_argument("--resume", action="store_true", help="keep a journal, and go on where it says")
    parser.add_argument("--journal", metavar="FILE", help="where it is kept (default: beside DST, or here)")
    parser.add_argument(
        "--checkpoint", metavar="SECONDS", type=float, help="how often DST is flushed for it (default 5)"
    )


def rate_limit(args: Namespace) -> int:
    """Return the bytes a second that --rate-limit allows; 0 for no limit."""
    return parse_size(args.rate_limit.removesuffix("/s"))


def copy_verb(args: Namespace) -> int:
    """Unpack the arguments and copy."""
    if args.source == _PIPE and args.target == _PIPE:
        raise UsageError("from standard input to standard output there is nothing to do")
    _check_resume(args)
    options = _options(args)
    proof = Proof(args, "copy")
    if proof.active and _PIPE in (args.source, args.target):
        raise UsageError("a pipe cannot be read again; --verify and --report need a SRC and a DST")
    with ExitStack() as opened:
        if args.target == _PIPE:
            tally = _to_pipe(args, options, opened)
        elif args.source == _PIPE:
            tally = _from_pipe(args, options, opened)
        else:
            tally = _copy(args, options, opened, proof)
    if args.verbose:
        moved, skipped = format_size(tally.moved + tally.read), format_size(tally.skipped)
        say(f"{args.target}: {moved} written, {skipped} skipped as zero")
    return 0


def _options(args: Namespace) -> CopyOptions:
    with without_blas_threads():
        from vmdkit.ops.copy import CopyOptions

    size = None if args.sparse is None else parse_size(args.sparse)
    if args.allocated and size:
        raise UsageError("--allocated leaves no holes, -S makes them")
    return CopyOptions(
        granularity=0 if args.allocated else 4096 if size is None else size,
        scan=bool(size),
        destination_is_zero=args.destination_is_zero,
        threads=args.threads,
        rate=rate_limit(args),
    )


def _check_resume(args: Namespace) -> None:
    if not args.resume:
        if args.journal is not None or args.checkpoint is not None:
            raise UsageError("--journal and --checkpoint say how to --resume")
    elif _PIPE in (args.source, args.target):
        raise UsageError("a pipe cannot be resumed")


def _copy(args: Namespace, options: CopyOptions, opened: ExitStack, proof: Proof) -> Tally:
    """Copy; and read again, when DST is closed, what was written."""
    from vmdkit.ops.copy import Tally
    from vmdkit.storage.target import is_block_device

    source = opened.enter_context(open_disk(args, args.source, raw=args.raw or args.raw_source))
    opened.enter_context(proof.watching(source))
    tally = Tally()
    kind = "raw" if args.raw or args.raw_destination or is_block_device(args.target) else "vmdk"
    with shown(args, proof.work(source.size), tally) as proof.progress:
        with ExitStack() as writing:
            target = _open_target(args, source.size, writing, source)
            _write(args, source, target, options, proof.progress, tally)
            if args.flush or proof.active:
                target.flush()
        proof.reopened(args.target, kind)
    proof.conclude(tally, args.target, kind)
    return tally


def _write(
    args: Namespace,
    source: Device,
    target: Device,
    options: CopyOptions,
    progress: Callable[[int], None],
    tally: Tally,
) -> None:
    from vmdkit.ops.copy import copy
    from vmdkit.ops.resume import PERIOD, resumable

    if args.resume:
        how = {key: getattr(args, key) for key in _HOW} | {"raw": args.raw or args.raw_source}
        period = PERIOD if args.checkpoint is None else args.checkpoint
        path = journal_path(args)
        try:
            resumable(source, target, options, path, how=how, progress=progress, tally=tally, period=period)
        except (UsageError, FormatError):  # the journal is not for this copy
            raise
        except BaseException:
            _tell_of_journal(path)
            raise
    else:
        copy(source, target, options, progress, tally)


def _open_target(args: Namespace, size: int, opened: ExitStack, source: Device | None = None) -> Device:
    """Open what is written over; nothing is, if it is too small or what the source is read from."""
    from vmdkit.storage.target import in_place, is_block_device, refuse_own_files

    if source is not None:
        refuse_own_files(source, args.target, args.target)
    if is_block_device(args.target):
        return opened.enter_context(in_place(args.target, size, sync=args.flush))
    raw = args.raw or args.raw_destination
    try:
        target = opened.enter_context(open_disk(args, args.target, writable=True, raw=raw))
    except FileNotFoundError as error:
        if error.filename != args.target:
            raise
        raise UsageError("there is none to write into; 'vmdkit convert' makes new disks", path=args.target) from error
    if target.size < size:
        raise UsageError(f"it holds {target.size} bytes, {size} are needed", path=args.target)
    return target


def _to_pipe(args: Namespace, options: CopyOptions, opened: ExitStack) -> Tally:
    from vmdkit.cli.convert_stream import check_stdout
    from vmdkit.ops.copy import Tally, stream
    from vmdkit.ops.offload import Pipe
    from vmdkit.ops.sink import RawSink

    source = opened.enter_context(open_disk(args, args.source, raw=args.raw or args.raw_source))
    check_stdout(source)
    tally = Tally()
    with shown(args, source.size, tally) as progress:
        return stream(source, RawSink(Pipe(sys.stdout.fileno())), options, progress, tally)


def _from_pipe(args: Namespace, options: CopyOptions, opened: ExitStack) -> Tally:
    from vmdkit.ops.copy import Tally
    from vmdkit.ops.fill import fill

    if sys.stdin is None:
        raise UsageError("standard input is closed")
    target = _open_target(args, 0, opened)
    tally = Tally()
    with shown(args, target.size, tally) as progress:
        fill(sys.stdin.fileno(), target, options, progress, tally)
        if args.flush:
            target.flush()
    return tally


def journal_path(args: Namespace) -> str:
    """Return where the journal is kept: beside a regular file; for devices and addresses in the current directory."""
    if args.journal is not None:
        return str(args.journal)
    if os.path.isfile(args.target):
        return f"{args.target}.vmdkit-resume"
    name = hashlib.sha256(os.fsencode(args.target)).hexdigest()[:12]
    return f"vmdkit-copy-{name}.resume"


def _tell_of_journal(path: str) -> None:
    if os.path.exists(path):
        say(f"{path} says how far it came; the same command goes on from there")
