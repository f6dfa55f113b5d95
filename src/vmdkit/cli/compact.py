# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit compact``: make a disk's files as small as its data."""

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
        "compact",
        help="make a disk's files as small as its data",
        description="Drop zeros, move the last grains to free places and cut the rest off; in place. DISK reads as "
        "before, also after a power cut.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    add_allow_path(parser)
    parser.set_defaults(func=compact_verb)


def compact_verb(args: Namespace) -> int:
    """Unpack the arguments and compact."""
    from vmdkit.maker import Workshop, compact

    files = Workshop(allow_paths=args.allow_path)
    with files.open_disk(args.disk, single_link=True) as disk:
        total = sum(extent.allocated() for extent in disk.extent_files)
    with shown(args, total) as progress:
        done = compact(args.disk, progress=progress, files=files)
    if args.json:
        out_json({"file": args.disk, "before": done.before, "after": done.after, "punched": done.punched})
    elif not args.quiet:
        holes = f"; {format_size(done.punched)} became holes" if done.punched else ""
        out(f"{args.disk}: {format_size(done.before)} -> {format_size(done.after)}{holes}")
    return 0
