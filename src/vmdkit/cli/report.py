# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit report``: show a report of a copy that was proved; and check disks against one (``hash --check``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit.cli.hash_check import DIFFERS, MATCHES, read_text
from vmdkit.cli.progress import shown
from vmdkit.cli.proof import written_disk
from vmdkit.cli.render import describe, emit, out, out_json, say
from vmdkit.errors import VmdkitError
from vmdkit.filters.slice import SliceDevice
from vmdkit.ops import report as reports
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs
    from vmdkit.device import Device
    from vmdkit.ops.tree import TreeDigest

SOUND, BROKEN, DIFFERENT = 0, 1, 3


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "report",
        help="show what was proved of a copy",
        description="Show the report that --report has written, if its seal is whole. Exit 0: the copy was equal; "
        "3: it was not; 1: this is no report, or no longer what was written. 'vmdkit hash --check FILE' reads the "
        "disk again.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.set_defaults(func=report_verb)


def report_verb(args: Namespace) -> int:
    """Show a report."""
    report = reports.parse(read_text(args.file), args.file)
    if report.get("verdict") == reports.EQUAL:
        reports.source_digest(report)
    if args.json:
        emit(reports.as_json(report))
    elif not args.quiet:
        for line in reports.as_text(report):
            out(line)
    return SOUND if report.get("verdict") == reports.EQUAL else DIFFERENT


def check_report(args: Namespace, text: str) -> int:
    """Hold the disk of a report, or the one that is named, against it; return the exit code."""
    report = reports.parse(text, args.check)
    disk = args.disks[0] if args.disks else reports.text_at(report, "destination", "name")
    facts: dict[str, Any] = {"disk": disk, "ok": False, "expected": reports.text_at(report, "digests", "source")}
    verdict = DIFFERS
    try:
        kind = "raw" if args.raw else _kind(report, disk)
        with written_disk(args, disk, kind) as device, shown(args, device.size) as progress:
            expected = reports.source_digest(report)
            zeros = Zeros.NOBODY if args.read_all else Zeros.PLAN
            device = _compared(report, disk, device)
            found = tree_hash(device, expected.shape, zeros=zeros, progress=progress, threads=args.threads)
            facts |= {"found": str(found), "expected": str(expected)}
            if device.size < expected.size:
                verdict = f"{DIFFERS}: it has {device.size} bytes, {expected.size} are due"
            elif found.digest == expected.grown(device.size).digest:
                facts["ok"], verdict = True, MATCHES
            else:
                facts["difference"] = difference = _difference(expected.grown(device.size), found)
                verdict = f"{DIFFERS}: first in the {format_size(difference['length'])} at {difference['offset']:#x}"
    except (VmdkitError, OSError) as error:
        facts["error"] = describe(error)
        say(facts["error"])
        verdict = f"{DIFFERS} to be read"
    if args.json:
        out_json([facts])
    elif not (args.quiet and facts["ok"]):
        out(f"{disk}: {verdict}")
    return SOUND if facts["ok"] else BROKEN


def _difference(expected: TreeDigest, found: TreeDigest) -> dict[str, int]:
    offset, length = expected.first_difference(found) or (0, found.size)
    return {"offset": offset, "length": length}


def _compared(report: dict[str, Any], disk: str, device: Device) -> Device:
    """Return the part of a disk that was compared: what lies behind a copy into something larger was not."""
    compared = reports.number_at(report, "destination", "compared")
    if not compared or reports.text_at(report, "destination", "name") != disk or device.size < compared:
        return device
    return SliceDevice(device, 0, compared, owned=False)


def _kind(report: dict[str, Any], disk: str) -> str:
    """Return the format of a disk: that of the side that a report names so, else the destination's."""
    for side in ("destination", "source"):
        if reports.text_at(report, side, "name") == disk:
            return reports.text_at(report, side, "format")
    return reports.text_at(report, "destination", "format")
