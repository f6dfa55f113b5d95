# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit snapshot``: make a child that gets all writes from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.create import add_allow_path, add_recipe_options, recipe_options, tell_created
from vmdkit.cli.render import out

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "snapshot",
        help="make a child that gets all writes from now on",
        description="Make CHILD (default: NAME-000001.vmdk, or the next free number) a child of DISK. From then on "
        "use CHILD; DISK must not be written any more.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("child", metavar="CHILD", nargs="?")
    add_recipe_options(parser)
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    add_allow_path(parser)
    parser.set_defaults(func=snapshot_verb)


def snapshot_verb(args: Namespace) -> int:
    """Unpack the arguments and take the snapshot."""
    from vmdkit.maker import Workshop, snapshot

    files = Workshop(allow_paths=args.allow_path)
    path = snapshot(args.disk, args.child, overwrite=args.force, files=files, **recipe_options(args.options))
    if not args.quiet and not args.json and not args.verbose:
        out(path)
    tell_created(args, path)
    return 0
