# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit info``: say what a disk is. Prints what ``facts()`` of the disk tells, link by link."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.render import out, out_json, table
from vmdkit.errors import UsageError
from vmdkit.opener import scheme_of
from vmdkit.units import SECTOR, format_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device

_SIZES = ("size", "allocated")  # facts in bytes that a reader wants in larger units too


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "info",
        help="say what a disk is",
        description="Print format, subformat, sizes, extents, content IDs, chain, hardware, and every doubt.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("--chain", action="store_true", help="every link: the disk, its parent, and so on")
    parser.add_argument("--list", action="store_true", help="all exports of the server at an NBD address")
    add_disk_options(parser)
    parser.set_defaults(func=info_verb)


def info_verb(args: Namespace) -> int:
    """Unpack the arguments and print the facts."""
    if args.list:
        return _list(args.disk, args.peer_certificates, args.peer_psk, args.json)
    with open_disk(args, args.disk) as device:
        found = [facts_of(link) for link in links(device)]
    if not args.chain:
        found[0].setdefault("links", len(found))
        del found[1:]
    if args.json:
        out_json(found if args.chain else found[0])
        return 0
    for number, facts in enumerate(found):
        if number:
            out()
            out(f"parent {number}:")
        print_facts(facts)
    return 0


def _list(location: str, certificates: str | None, psk: str | None, as_json: bool) -> int:
    if not is_nbd(location):
        raise UsageError("--list is for the address of an NBD server", path=location)
    from vmdkit.nbd.client import list_exports

    found = list_exports(location, certificates, psk)
    if as_json:
        out_json(found)
        return 0
    for number, facts in enumerate(found):
        if number:
            out()
        print_facts(facts)
    return 0


def is_nbd(location: str) -> bool:
    """Tell whether a location is the address of an NBD export."""
    return (scheme_of(location) or "").startswith("nbd")


def links(device: Device) -> Iterator[Device]:
    """Yield a disk and its parents, nearest first."""
    link: Device | None = device
    while link is not None:
        yield link
        link = getattr(link, "parent", None)


def facts_of(device: Device) -> dict[str, Any]:
    """Return what is known of a device, ready for JSON; of what is no VMDK, what its file tells."""
    facts = getattr(device, "facts", None)
    if facts is not None:
        return dict(facts())
    known: dict[str, Any] = {"file": device.name, "format": "raw", "size": device.size}
    fd = device.fileno()
    if fd is not None:
        known["allocated"] = os.fstat(fd).st_blocks * SECTOR  # stat(2) counts in these
    return known


def print_facts(facts: dict[str, Any]) -> None:
    """Print facts: one a line, lists of records as tables, lists of text one a line."""
    simple = {key: value for key, value in facts.items() if not isinstance(value, (list, dict))}
    width = max((len(key) for key in simple), default=0) + 1
    for key, value in simple.items():
        if value is not None:
            out(f"{_label(key) + ':':<{width}} {_text(key, value)}")
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            out(f"{_label(key)}:")
            for name, item in value.items():
                out(f"  {name} = {item}")
        elif isinstance(value, list) and value:
            out(f"{_label(key)}:")
            _print_list(value)


def _print_list(items: list[Any]) -> None:
    if not all(isinstance(item, dict) for item in items):
        for item in items:
            out(f"  {item}")
        return
    keys = list(dict.fromkeys(key for item in items for key in item))
    rows = [["" if item.get(key) is None else _plain(item[key]) for key in keys] for item in items]
    numbers = [at for at in range(len(keys)) if all(isinstance(row[at], int) or row[at] == "" for row in rows)]
    table([["", *map(_label, keys)], *(["", *row] for row in rows)], right=[at + 1 for at in numbers], head=False)


def _label(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> Any:
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _text(key: str, value: Any) -> str:
    value = _plain(value)
    if key in _SIZES and isinstance(value, int):
        return f"{format_size(value)} ({value} bytes)"
    return str(value)
