# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit convert``: write a disk in another format."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vmdkit.cli.convert_stream import STREAM_KEYS, add_stream_options, done_with, level_option, to_stdout
from vmdkit.cli.copy import add_rate_limit, rate_limit
from vmdkit.cli.create import add_recipe_options, recipe_options
from vmdkit.cli.disk import add_disk_options, open_disk, without_blas_threads
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.proof import Proof, add_proof_options
from vmdkit.cli.render import say
from vmdkit.errors import UsageError
from vmdkit.units import SECTOR, format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device
    from vmdkit.ops.copy import CopyOptions, Tally

_GENERIC = "vmdk"  # what qemu-img calls them all; the subformat is an option then


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "convert",
        help="write a disk in another format",
        description="Write SRC as a new disk DST; holes stay holes, and a chain becomes one disk. DST appears "
        "whole, or not at all. '-' is standard output, in order, as for a pipe.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument(
        "-O",
        dest="format",
        metavar="FORMAT",
        help="what to write: raw (default), monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, "
        "twoGbMaxExtentFlat, vmfs, vmfsSparse, streamOptimized, vhd, tar.gz",
    )
    parser.add_argument(
        "--target",
        dest="place",
        metavar="PLACE",
        help="what will import it: esxi, workstation, virtualbox, aws, gcp, azure, proxmox; decides format and size",
    )
    add_recipe_options(parser)
    parser.add_argument("-b", "--parent", metavar="DISK", help="make a child that holds what differs from DISK")
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
    add_stream_options(parser)
    add_rate_limit(parser)
    add_threads(parser, default=0)
    parser.add_argument("--no-sync", action="store_true", help="do not wait until DST is on stable storage")
    add_proof_options(parser)
    add_disk_options(parser)
    parser.set_defaults(func=convert_verb)


def convert_verb(args: Namespace) -> int:
    """Unpack the arguments and convert."""
    with without_blas_threads():
        from vmdkit.converter import find_format
    kind, options = _wanted(args)
    if args.place is not None:
        kind, options = _preset(args.place, kind, options)
    kind = find_format(kind or "raw").name
    options |= level_option(args, kind)
    copying = _copying(args)
    proof = Proof(args, "convert", kind)
    if proof.active and args.target == "-":
        raise UsageError("what went to standard output cannot be read again; --verify and --report need a DST")
    with ExitStack() as opened:
        source = opened.enter_context(open_disk(args, args.source))
        opened.enter_context(proof.watching(source))
        tally = _convert(args, source, kind, options, copying, opened, proof)
        proof.conclude(tally, args.target, kind)
    if args.verbose:
        moved, skipped = format_size(tally.moved + tally.read), format_size(tally.skipped)
        say(f"{args.target}: {moved} {done_with(args, kind)}, {skipped} skipped as zero")
    return 0


def _wanted(args: Namespace) -> tuple[str | None, dict[str, Any]]:
    """Return the format, None where none is named, and its options.

    ``-O vmdk -o subformat=NAME`` is qemu-img's way to say ``-O NAME``.
    """
    options = recipe_options(args.options, more=STREAM_KEYS)
    subformat = options.pop("subformat", None)
    if args.format is not None and args.format.lower() == _GENERIC:
        return subformat or "monolithicSparse", options
    if subformat is not None:
        named = args.format or "raw"
        raise UsageError(f"either -O {named} or -o subformat={subformat} is due (or -O vmdk with the latter)")
    return args.format, options


def _preset(place: str, kind: str | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what the importer at ``place`` takes, as near to what was asked as it can be."""
    from vmdkit.presets import find_preset

    row = find_preset(place)
    row.check(options)
    name = row.format(kind)
    return name, {**row.options, **options}


def _size(args: Namespace, source: Device) -> int:
    """Return the size that the new disk gets; say so where it is another."""
    if args.place is None:
        return source.size
    from vmdkit.presets import find_preset

    row = find_preset(args.place)
    size = row.size(source.size)
    if size - source.size >= SECTOR and not args.quiet:
        say(f"{args.target}: {size} bytes, {size - source.size} more than the source: {row.what} takes {row.rule}")
    return size


def _copying(args: Namespace) -> CopyOptions:
    from vmdkit.ops.copy import CopyOptions

    rate = rate_limit(args)
    if args.sparse is None:
        return CopyOptions(threads=args.threads, rate=rate)
    size = parse_size(args.sparse)
    return CopyOptions(granularity=size, scan=size > 0, threads=args.threads, rate=rate)


def _convert(
    args: Namespace,
    source: Device,
    kind: str,
    options: dict[str, Any],
    copying: CopyOptions,
    opened: ExitStack,
    proof: Proof,
) -> Tally:
    """Write to what DST is: a pipe, something that exists, or a new disk."""
    from vmdkit.converter import Order, convert
    from vmdkit.maker import Workshop
    from vmdkit.ops.copy import Tally
    from vmdkit.storage.target import is_block_device

    tally = Tally()
    if args.target == "-":
        return to_stdout(args, source, kind, options, copying, tally, size=_size(args, source))
    if args.no_create or is_block_device(args.target):
        _only_raw(kind, "-n writes" if args.no_create else "a block device takes")
        return _into(args, source, copying, tally, proof)
    files = Workshop(allow_paths=args.allow_path)
    parent = opened.enter_context(files.open_disk(args.parent)) if args.parent is not None else None
    order = Order(
        args.target,
        _size(args, source),
        options,
        parent=parent,
        overwrite=args.force,
        sync=not args.no_sync,
        files=files,
    )
    with shown(args, proof.work(source.size), tally) as proof.progress:
        return convert(source, order, kind, copying, check=proof.check, progress=proof.progress, tally=tally)


def _into(args: Namespace, source: Device, copying: CopyOptions, tally: Tally, proof: Proof) -> Tally:
    """Write over what DST holds."""
    from vmdkit.ops.copy import copy
    from vmdkit.storage.target import in_place, refuse_own_files

    if not args.no_create and not args.force:
        raise UsageError("it is a block device; -n writes over what it holds", path=args.target)
    refuse_own_files(source, args.target, args.target)
    with shown(args, proof.work(source.size), tally) as proof.progress:
        with in_place(args.target, source.size, sync=not args.no_sync) as target:
            copy(source, target, copying, proof.progress, tally)
        proof.reopened(args.target, "raw")
    return tally


def _only_raw(kind: str, what: str) -> None:
    if kind.lower() != "raw":
        raise UsageError(f"{what} raw bytes, not {kind}")
