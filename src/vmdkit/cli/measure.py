# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit measure``: forecast how large a disk becomes in a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.create import add_recipe_options, recipe_options
from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.render import out, out_json
from vmdkit.errors import UsageError
from vmdkit.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "measure",
        help="forecast how large a disk becomes in a format",
        description="Say how many bytes SRC needs as FORMAT, and how many when it is full. No data are read.",
    )
    parser.add_argument("source", metavar="SRC", nargs="?")
    parser.add_argument("--size", metavar="SIZE", help="an empty disk of SIZE, instead of SRC")
    parser.add_argument("-O", dest="format", metavar="FORMAT", default="raw", help="default: raw")
    add_recipe_options(parser)
    add_disk_options(parser)
    parser.set_defaults(func=measure_verb)


def measure_verb(args: Namespace) -> int:
    """Unpack the arguments and measure."""
    from vmdkit.vmdk.create import SHAPES, Recipe
    from vmdkit.vmdk.measure import FORMATS, measure

    options = recipe_options(args.options)
    kind = options.pop("subformat", args.format)
    if kind.lower() not in (name.lower() for name in FORMATS):
        raise UsageError(f"cannot measure {kind!r}, only {', '.join(FORMATS)}")
    recipe = Recipe(kind, **options) if kind.lower() in SHAPES else None
    if (args.source is None) == (args.size is None):
        raise UsageError("either a disk or --size is due")
    if args.size is not None:
        found = measure(parse_size(args.size), kind, recipe)
    else:
        with open_disk(args, args.source) as source:
            found = measure(source, kind, recipe)
    if args.json:
        out_json({"required": found.required, "fully-allocated": found.fully_allocated})
    else:
        out(f"required size: {found.required}")
        out(f"fully allocated size: {found.fully_allocated}")
    return 0
