# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit commit``: merge a child into its parent."""

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
        "commit",
        help="merge a child into its parent",
        description="Write everything that CHILD holds into its parent; then CHILD is emptied, and may be used on. "
        "What was interrupted is finished by the same command.",
    )
    parser.add_argument("child", metavar="CHILD")
    parser.add_argument("-d", "--keep", action="store_true", help="leave the data in CHILD too (as qemu-img's -d)")
    parser.add_argument("--delete", action="store_true", help="remove CHILD; disks made from it move to its parent")
    parser.add_argument(
        "--with-children", action="store_true", help="though other disks were made from the parent, and are lost"
    )
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    add_allow_path(parser)
    parser.set_defaults(func=commit_verb)


def commit_verb(args: Namespace) -> int:
    """Unpack the arguments and commit."""
    from vmdkit.maker import Workshop, commit
    from vmdkit.vmdk.commit import to_merge

    files = Workshop(allow_paths=args.allow_path)
    with files.open_disk(args.child, single_link=True) as child:
        total = to_merge(child)
    with shown(args, total) as progress:
        done = commit(
            args.child,
            keep=args.keep,
            delete=args.delete,
            with_children=args.with_children,
            progress=progress,
            files=files,
        )
    if args.json:
        out_json({"parent": done.parent, "merged": done.merged, "emptied": done.emptied, "deleted": done.deleted})
    elif not args.quiet:
        after = "; it is removed" if done.deleted else "; it is empty now" if done.emptied else ""
        out(f"{format_size(done.merged)} of {args.child} are in {done.parent}{after}")
    return 0
