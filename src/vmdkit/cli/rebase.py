# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit rebase``: give a child another parent, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.create import add_allow_path
from vmdkit.cli.progress import shown
from vmdkit.cli.render import out, out_json
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "rebase",
        help="give a child another parent, or none",
        description="Make NEW the parent of CHILD; what differs between the old parent and NEW is copied into CHILD "
        "first, so that it reads as before. With NEW '' CHILD becomes a disk of its own.",
    )
    parser.add_argument("child", metavar="CHILD")
    parser.add_argument("-b", "--parent", metavar="NEW", required=True)
    parser.add_argument(
        "-u", "--unsafe", action="store_true", help="copy nothing: the old parent was moved, or NEW reads the same"
    )
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    add_allow_path(parser)
    parser.set_defaults(func=rebase_verb)


def rebase_verb(args: Namespace) -> int:
    """Unpack the arguments and rebase."""
    from vmdkit.maker import Workshop, rebase

    files = Workshop(allow_paths=args.allow_path)
    with files.open_disk(args.child, single_link=True) as child:
        size = child.size
    with shown(args, 0 if args.unsafe else size) as progress:
        written = rebase(args.child, args.parent or None, unsafe=args.unsafe, progress=progress, files=files)
    if args.json:
        out_json({"parent": args.parent or None, "written": written})
    elif not args.quiet:
        onto = f"is a child of {args.parent}" if args.parent else "has no parent any more"
        out(f"{args.child} {onto}; {format_size(written)} were copied into it")
    return 0
