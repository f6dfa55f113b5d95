# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit map``: say where the bytes of a disk are. Streams: a disk of any size takes no memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.render import emit, out, out_json, safe_text
from vmdkit.device import Kind
from vmdkit.ops.plan import placed

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device, Extent, Location

ALLOCATION = {0: "data", 1: "hole", 2: "zero", 3: "hole,zero"}  # as nbdinfo calls them


class Row(NamedTuple):
    """A run as qemu-img map describes it; ``at`` is -1 and ``filename`` empty where the bytes are not verbatim."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool
    at: int
    filename: str


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "map",
        help="say where the bytes of a disk are",
        description="Print the runs of a disk; --json as qemu-img map --output=json does.",
    )
    parser.add_argument("disk", metavar="DISK")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--nbd-json", action="store_true", help="the extents as nbdinfo --map --json prints them")
    form.add_argument("--totals", action="store_true", help="bytes of each type, as nbdinfo --map --totals")
    form.add_argument("--html", metavar="FILE", help="draw the map into a page that needs nothing else; '-': stdout")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite FILE where it exists")
    add_disk_options(parser)
    parser.set_defaults(func=map_verb)


def map_verb(args: Namespace) -> int:
    """Unpack the arguments and print the map in the form that was asked."""
    with open_disk(args, args.disk) as device:
        if args.html is not None:
            from vmdkit.cli.map_html import write_page

            write_page(device, rows(device), args.disk, args.html, overwrite=args.force)
        elif args.totals:
            _print_totals(device.extents(), device.size, args.json)
        elif args.nbd_json:
            _print_array(_nbd_lines(device.extents()), "[\n", "\n]\n")
        elif args.json:
            _print_array(_qemu_lines(rows(device)), "[", "]\n")
        else:
            _print_table(rows(device))
    return 0


def rows(device: Device) -> Iterator[Row]:
    """Yield the map of a device, neighbours joined where they continue one another."""
    last: Row | None = None
    for run, zero in placed(device):
        row = _row(run, zero)
        if last is not None and last[2:7] == row[2:7] and last.filename == row.filename and _continues(last, row):
            last = last._replace(length=last.length + row.length)
            continue
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield last


def kind_of(row: Row) -> str:
    """Return the word for what a run is: data, compressed, zero (stated, or a hole of the file), hole (nowhere)."""
    if not row.present:
        return "hole"
    return "zero" if row.zero else "compressed" if row.compressed else "data"


def _continues(last: Row, row: Row) -> bool:
    return row.at == (last.at + last.length if last.at >= 0 else -1)


def _row(run: Location, zero: bool) -> Row:
    kind = run.kind
    verbatim = kind is Kind.DATA and run.storage is not None
    return Row(
        run.offset,
        run.length,
        run.depth,
        kind is not Kind.HOLE,
        zero,
        kind not in (Kind.HOLE, Kind.ZERO),
        kind is Kind.COMPRESSED,
        run.at if verbatim else -1,
        run.storage.name if verbatim and run.storage is not None else "",
    )


def _qemu_lines(found: Iterable[Row]) -> Iterator[str]:
    names: dict[str, str] = {}
    word = ("false", "true")
    for row in found:
        where = ""
        if row.at >= 0:
            name = names.get(row.filename) or names.setdefault(row.filename, json.dumps(row.filename))
            where = f', "offset": {row.at}, "filename": {name}'
        yield (
            f'{{ "start": {row.start}, "length": {row.length}, "depth": {row.depth}, "present": {word[row.present]}, '
            f'"zero": {word[row.zero]}, "data": {word[row.data]}, "compressed": {word[row.compressed]}{where}}}'
        )


def _nbd_lines(extents: Iterable[Extent]) -> Iterator[str]:
    for offset, length, flags in extents:
        kind = json.dumps(ALLOCATION.get(flags, str(int(flags))))
        yield f'{{ "offset": {offset}, "length": {length}, "type": {int(flags)}, "description": {kind}}}'


def _print_array(lines: Iterable[str], start: str, end: str) -> None:
    lead = start
    for line in lines:
        emit(lead + line)
        lead = ",\n"
    emit(end if lead != start else start + end)


def _print_totals(extents: Iterable[Extent], size: int, as_json: bool) -> None:
    totals: dict[int, int] = {}
    for _, length, flags in extents:
        totals[flags] = totals.get(flags, 0) + length
    found = [(flags, total, 100 * total / size) for flags, total in sorted(totals.items())]
    if as_json:
        out_json(
            [
                {"size": total, "percent": percent, "type": int(flags), "description": ALLOCATION.get(flags, "")}
                for flags, total, percent in found
            ]
        )
        return
    for flags, total, percent in found:
        out(f"{total:>10} {percent:5.1f}% {int(flags):>3} {ALLOCATION.get(flags, '')}")


def _print_table(found: Iterable[Row]) -> None:
    out(f"{'OFFSET':>15} {'LENGTH':>15} {'DEPTH':>5}  {'KIND':<10} {'AT':>15}  FILE")
    for row in found:
        kind = kind_of(row)
        if row.at >= 0:
            file = safe_text(row.filename)
            out(f"{row.start:>15} {row.length:>15} {row.depth:>5}  {kind:<10} {row.at:>15}  {file}")
        else:
            out(f"{row.start:>15} {row.length:>15} {row.depth:>5}  {kind}")
