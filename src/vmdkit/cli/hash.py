# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit hash``: digest what the guest sees."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import emit, out, out_json
from vmdkit.ops.hash import hash_device, hash_extents

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
        description="Print the digest of the bytes that the guest sees, as sha256sum of the raw image would.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument(
        "--algorithm",
        default="sha256",
        metavar="NAME",
        help="sha256 (default), blake3, or any that Python's hashlib knows",
    )
    parser.add_argument("--per-extent", action="store_true", help="a digest for each extent that holds data")
    add_threads(parser)
    add_disk_options(parser)
    parser.set_defaults(func=hash_verb)


def hash_verb(args: Namespace) -> int:
    """Unpack the arguments and print digests."""
    with open_disk(args, args.disk) as device, shown(args, device.size) as progress:
        if args.per_extent:
            _per_extent(device, args, progress)
            return 0
        digest = hash_device(device, args.algorithm, progress=progress, threads=args.threads)
    if args.json:
        out_json({"disk": args.disk, "algorithm": args.algorithm, "size": device.size, "digest": digest})
    else:
        out(f"{digest}  {args.disk}")
    return 0


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
