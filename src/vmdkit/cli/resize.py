# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit resize``: make a disk larger or smaller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmdkit.cli.create import add_allow_path
from vmdkit.cli.render import out, out_json
from vmdkit.errors import UsageError
from vmdkit.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "resize",
        help="make a disk larger or smaller",
        description="Give DISK the size SIZE, or change it by +N or -N. The guest's partitions stay as they are.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("size", metavar="SIZE|+N|-N")
    parser.add_argument("--shrink", action="store_true", help="a smaller size is meant: what lies behind it is lost")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that are in the way of new extents")
    parser.add_argument(
        "--with-children", action="store_true", help="though other disks were made from this one, and are lost"
    )
    add_allow_path(parser)
    # argparse takes only plain negative numbers for arguments; -5G is one too.
    parser._negative_number_matcher = re.compile(r"-\d[\d.]*\s*[a-zA-Z]*$")
    parser.set_defaults(func=resize_verb)


def resize_verb(args: Namespace) -> int:
    """Unpack the arguments and resize."""
    from vmdkit.maker import Workshop, resize

    files = Workshop(allow_paths=args.allow_path)
    with files.open_disk(args.disk, single_link=True) as disk:
        size = new_size(disk.size, args.size)
    old, new = resize(
        args.disk, size, shrink=args.shrink, with_children=args.with_children, overwrite=args.force, files=files
    )
    if args.json:
        out_json({"file": args.disk, "old": old, "new": new})
    elif not args.quiet:
        out(f"{args.disk}: {format_size(old)} -> {format_size(new)}")
    return 0


def new_size(old: int, text: str) -> int:
    """Return the size in bytes that ``text`` means for a disk of ``old`` bytes."""
    if text[:1] not in ("+", "-"):
        return parse_size(text)
    by = parse_size(text[1:])
    size = old + by if text[0] == "+" else old - by
    if size < 1:
        raise UsageError(f"{text} leaves nothing of a disk of {old} bytes")
    return size
