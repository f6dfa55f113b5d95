# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit compare``: tell whether two disks hold the same bytes."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import describe, out, out_json, say
from vmdkit.errors import VmdkitError
from vmdkit.ops.compare import Comparison, compare
from vmdkit.ops.differences import Differences, differences

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs

SAME, DIFFER, NOT_OPENED, NOT_READ = 0, 1, 2, 4
_USUAL, _MOST = 1000, 1_000_000  # ranges listed


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "compare",
        help="tell whether two disks hold the same bytes",
        description="Exit 0: the same; 1: they differ, and where first; 2: could not open; 4: could not read. "
        "Of disks of two sizes the longer one's tail must be zero.",
    )
    parser.add_argument("one", metavar="A")
    parser.add_argument("two", metavar="B")
    parser.add_argument("-s", "--strict", action="store_true", help="sizes must be the same too")
    parser.add_argument("--all", action="store_true", help="list all ranges of sectors that differ")
    parser.add_argument(
        "--limit", type=_limit, default=_USUAL, metavar="N", help=f"list at most N ranges (default {_USUAL})"
    )
    parser.add_argument("-p", dest="bar", action="store_true", help="show a bar where stderr is a terminal (default)")
    add_threads(parser)
    for letter, name in (("a", "A"), ("b", "B")):
        parser.add_argument(f"--raw-{letter}", action="store_true", help=f"only {name} is raw bytes")
    add_disk_options(parser)
    parser.set_defaults(func=compare_verb)


def compare_verb(args: Namespace) -> int:
    """Unpack the arguments, compare, and return the exit code that scripts rely on."""
    with ExitStack() as opened:
        try:
            one = opened.enter_context(open_disk(args, args.one, raw=args.raw or args.raw_a))
            two = opened.enter_context(open_disk(args, args.two, raw=args.raw or args.raw_b))
        except (VmdkitError, OSError) as error:
            say(describe(error))
            return NOT_OPENED
        try:
            with shown(args, max(one.size, two.size)) as progress:
                how = {"strict": args.strict, "progress": progress, "threads": args.threads}
                if args.all:
                    every = differences(one, two, limit=args.limit, **how)
                else:
                    found = compare(one, two, **how)
        except (VmdkitError, OSError) as error:
            say(describe(error))
            return NOT_READ
    if args.all:
        _list(every, args.json, args.quiet)
        return SAME if every.same else DIFFER
    _tell(found, args.json, args.quiet, args.strict)
    return SAME if found.same else DIFFER


def _limit(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MOST:
        raise argparse.ArgumentTypeError(f"from 1 to {_MOST} ranges, not {count}")
    return count


def _list(found: Differences, as_json: bool, quiet: bool) -> None:
    if as_json:
        out_json(
            {
                "same": found.same,
                "offset": found.ranges[0][0] if found.ranges else None,
                "sizes": list(found.sizes),
                "read": found.read,
                "skipped": found.skipped,
                "ranges": [{"offset": offset, "length": length} for offset, length in found.ranges],
                "differing": found.count,
                "complete": found.complete,
            }
        )
        return
    if found.sizes[0] != found.sizes[1] and not quiet:
        say(f"warning: sizes differ: {found.sizes[0]} and {found.sizes[1]} bytes")
    if quiet:
        return
    for offset, length in found.ranges:
        out(f"{offset:>16} {length:>16}")
    if found.same:
        out("Images are identical.")
        return
    count = f"{len(found.ranges)} range{'' if len(found.ranges) == 1 else 's'} of sectors"
    more = "" if found.complete else "; there are more, --limit lists more"
    out(f"{count} with {found.count} bytes differ{'s' if len(found.ranges) == 1 else ''}{more}.")


def _tell(found: Comparison, as_json: bool, quiet: bool, strict: bool) -> None:
    one, two = found.sizes
    if as_json:
        out_json(
            {
                "same": found.same,
                "offset": found.offset,
                "sizes": [one, two],
                "read": found.read,
                "skipped": found.skipped,
            }
        )
        return
    if quiet:
        return
    if one != two and strict:
        out(f"Sizes differ: {one} and {two} bytes.")
        return
    if one != two:
        say(f"warning: sizes differ: {one} and {two} bytes")
    out("Images are identical." if found.same else f"Content mismatch at offset {found.offset}!")
