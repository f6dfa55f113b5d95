# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit unlock``: remove the locks that a dead program has left beside a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.render import out, out_json

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "unlock",
        help="remove the locks that a dead program has left",
        description="Remove the lock directories (DISK.lck) that programs of this machine have left who are no more. "
        "Those of living programs stay.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument(
        "--force", action="store_true", help="remove locks of other machines too, once you know that nobody uses DISK"
    )
    parser.add_argument("--allow-path", metavar="DIR", action="append", default=[], help="see 'vmdkit info --help'")
    parser.set_defaults(func=unlock_verb)


def unlock_verb(args: Namespace) -> int:
    """Unpack the arguments and remove locks."""
    from vmdkit.checker import unlock

    removed = unlock(args.disk, force=args.force, allow_paths=tuple(args.allow_path))
    if args.json:
        out_json({"file": args.disk, "removed": removed})
    elif not args.quiet:
        for line in removed:
            out(f"removed {line}")
        if not removed:
            out(f"{args.disk}: no lock was left")
    return 0
