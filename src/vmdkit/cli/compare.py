# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit compare``: tell whether two disks hold the same bytes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import describe, out, out_json, say
from vmdkit.errors import VmdkitError
from vmdkit.ops.compare import Comparison, compare

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs

SAME, DIFFER, NOT_OPENED, NOT_READ = 0, 1, 2, 4


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
                found = compare(one, two, strict=args.strict, progress=progress, threads=args.threads)
        except (VmdkitError, OSError) as error:
            say(describe(error))
            return NOT_READ
    _tell(found, args.json, args.quiet, args.strict)
    return SAME if found.same else DIFFER


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
