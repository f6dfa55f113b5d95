# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit hash``: digest what the guest sees, and check digests."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.hash_check import check
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import emit, out, out_json
from vmdkit.errors import UsageError
from vmdkit.ops.hash import hash_device, hash_extents
from vmdkit.ops.tree import ALGORITHMS, BLOCK, Shape
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device

_ALLOCATION = {0: "data", 1: "hole", 2: "zero", 3: "hole,zero"}


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "hash",
        help="digest the bytes that the guest sees",
        description="Print the tree hash of the bytes that the guest sees (docs/hash.md): the same for every format "
        "that holds them, and free of charge where they are zero.",
    )
    parser.add_argument("disks", metavar="DISK", nargs="*")
    parser.add_argument(
        "--algorithm",
        default="sha256",
        metavar="NAME",
        help=f"{' (default) or '.join(ALGORITHMS)}; with --flat or --per-extent any that Python's hashlib knows",
    )
    parser.add_argument("--block-size", metavar="SIZE", help="block of the tree, a power of two (default: 64k)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--flat", action="store_true", help="one digest over all bytes, as sha256sum of the raw image")
    kind.add_argument("--per-extent", action="store_true", help="a flat digest for each extent that holds data")
    parser.add_argument("--check", metavar="FILE", help="check the digests that FILE lists: lines as this verb prints")
    kind.add_argument("--read-all", action="store_true", help="read holes too, and believe no map")
    add_threads(parser)
    add_disk_options(parser)
    parser.set_defaults(func=hash_verb)


def hash_verb(args: Namespace) -> int:
    """Unpack the arguments and print digests."""
    if args.check is not None:
        if args.flat or args.per_extent or args.block_size is not None:
            raise UsageError("--check knows from each digest how it was made")
        return check(args)
    if not args.disks:
        raise UsageError("no disk to digest is named")
    if args.block_size is not None and (args.flat or args.per_extent):
        raise UsageError("only the tree has blocks; --block-size does not go with --flat or --per-extent")
    if args.per_extent:
        if len(args.disks) > 1:
            raise UsageError("--per-extent takes one disk")
        with open_disk(args, args.disks[0]) as device, shown(args, device.size) as progress:
            _per_extent(device, args, progress)
        return 0
    shape = None if args.flat else _shape(args)
    found = []
    for disk in args.disks:
        facts = _digest(args, disk, shape)
        found.append(facts)
        if not args.json:
            out(f"{facts['digest']}  {disk}")
    if args.json:
        out_json(found if len(found) > 1 else found[0])
    return 0


def _shape(args: Namespace) -> Shape:
    if args.algorithm not in ALGORITHMS:
        raise UsageError(
            f"a tree is made of {' or '.join(ALGORITHMS)}, not {args.algorithm!r}; --flat takes any digest"
        )
    return Shape(args.algorithm, BLOCK if args.block_size is None else parse_size(args.block_size))


def _digest(args: Namespace, disk: str, shape: Shape | None) -> dict[str, Any]:
    """Digest one disk and return what JSON shows of it."""
    with open_disk(args, disk) as device, shown(args, device.size) as progress:
        facts: dict[str, Any] = {"disk": disk, "size": device.size, "algorithm": args.algorithm}
        if shape is None:
            digest = hash_device(device, args.algorithm, progress=progress, threads=args.threads)
            return {**facts, "kind": "flat", "digest": digest}
        zeros = Zeros.NOBODY if args.read_all else Zeros.PLAN
        tree = tree_hash(device, shape, zeros=zeros, progress=progress, threads=args.threads)
    return {**facts, "kind": "tree", "block_size": shape.block, "digest": str(tree)}


def _per_extent(device: Device, args: Namespace, progress: Callable[[int], None]) -> None:
    separator = "[\n"
    digests = hash_extents(device, args.algorithm, progress=progress, threads=args.threads)
    with closing(digests):
        for extent, digest in digests:
            kind = _ALLOCATION.get(extent.flags, str(extent.flags))
            if args.json:
                record = {"offset": extent.offset, "length": extent.length, "type": kind, "digest": digest}
                emit(separator + json.dumps(record))
                separator = ",\n"
            else:
                out(f"{extent.offset:>16} {extent.length:>16} {kind:<9} {digest or '-'}")
    if args.json:
        emit("\n]\n" if device.size else "[]\n")
