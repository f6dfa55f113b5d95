# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit create``: make a new disk, or a child."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit.cli.render import out, out_json, say
from vmdkit.errors import UsageError
from vmdkit.units import TIB, format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from vmdkit.cli.parser import Parser, Verbs

MOST = 2 * TIB  # bytes of a file that its pointers reach (format spec 1.7)
_SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
# what is typed after -o, qemu-img's names among them -> (keyword of Recipe, how it is read)
_TEXT, _SWITCH, _SIZE = "text", "on or off", "a size"
_OPTIONS = {
    "subformat": ("subformat", _TEXT),
    "adapter": ("adapter", _TEXT),
    "adapter_type": ("adapter", _TEXT),
    "hwversion": ("hwversion", _TEXT),
    "grain": ("grain", _SIZE),
    "zeroed_grain": ("zeroed_grain", _SWITCH),
    "thin": ("thin", _SWITCH),
    "preallocate": ("preallocate", _SWITCH),
}
_EPILOG = (
    "Options (-o): subformat=monolithicSparse|twoGbMaxExtentSparse|monolithicFlat|twoGbMaxExtentFlat|vmfs|vmfsSparse, "
    "adapter=lsilogic|buslogic|ide|legacyESX, hwversion=N, grain=SIZE, zeroed_grain=on, thin=on (vmfs), "
    "preallocate=on (other flat disks)."
)


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "create",
        help="make a new disk, or a child",
        description="Make an empty disk of SIZE at PATH. It appears whole, or not at all.",
        epilog=_EPILOG,
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("size", metavar="SIZE", nargs="?", help="for example 10G; a child has its parent's")
    add_recipe_options(parser)
    parser.add_argument("-b", "--parent", metavar="DISK", help="make a child that holds what differs from DISK")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    add_allow_path(parser)
    parser.set_defaults(func=create_verb)


def add_recipe_options(parser: Parser) -> None:
    """Add -o, which may be given several times."""
    parser.add_argument("-o", dest="options", metavar="KEY=VALUE[,...]", action="append", default=[])


def add_allow_path(parser: Parser) -> None:
    """Add --allow-path, the one option for opening disks that makes sense where they are changed."""
    parser.add_argument(
        "--allow-path",
        metavar="DIR",
        action="append",
        default=[],
        help="extents and parents may lie in DIR too (repeatable)",
    )


def create_verb(args: Namespace) -> int:
    """Unpack the arguments and create."""
    from vmdkit.maker import Workshop, create

    options = recipe_options(args.options)
    size = None if args.size is None else parse_size(args.size)
    create(
        args.path,
        size,
        parent=args.parent,
        overwrite=args.force,
        files=Workshop(allow_paths=args.allow_path),
        **options,
    )
    tell_created(args, args.path)
    _warn_of_the_end(args.path, args.allow_path)
    return 0


def _warn_of_the_end(path: str, allow_path: Sequence[str]) -> None:
    """Say so where the file of a sparse extent, when full, would be longer than its pointers reach."""
    from vmdkit import opener
    from vmdkit.vmdk.hosted import HostedExtent

    with opener.open(path, single_link=True, allow_paths=tuple(allow_path)) as disk:
        for extent in getattr(disk, "extent_files", ()):
            over = extent.length + extent.header.overhead - MOST if isinstance(extent, HostedExtent) else 0
            if over > 0:
                say(f"{path}: its file can hold all but {format_size(over)} of the disk: pointers end at 2 TiB")


def tell_created(args: Namespace, path: str) -> None:
    """Say what was made, as far as the user wants to hear it."""
    from vmdkit import opener

    if args.quiet or not (args.json or args.verbose):
        return
    with opener.open(path, allow_paths=tuple(args.allow_path)) as disk:
        facts = getattr(disk, "descriptor", None)
        kind = facts.create_type if facts is not None else ""
        if args.json:
            out_json({"file": path, "subformat": kind, "size": disk.size})
        else:
            out(f"{path}: {kind}, {format_size(disk.size)}")


def recipe_options(words: Sequence[str], *, more: Sequence[str] = ()) -> dict[str, Any]:
    """Return the keywords of ``vmdkit.create`` that ``-o`` means, and ``more`` ones; UsageError for any other."""
    known = _OPTIONS | {key: (key, _TEXT) for key in more}
    options: dict[str, Any] = {}
    for pair in ",".join(words).split(","):
        if not pair:
            continue
        key, equals, value = pair.partition("=")
        if key not in known:
            raise UsageError(f"-o knows no {key!r}, only {', '.join(known)}")
        name, kind = known[key]
        if kind == _SWITCH:
            if (value or "on") not in _SWITCHES:
                raise UsageError(f"-o {key}={value}: on or off is due")
            options[name] = _SWITCHES[value or "on"]
        elif not equals or not value:
            raise UsageError(f"-o {key} needs a value")
        else:
            options[name] = parse_size(value) if kind == _SIZE else value
    return options
