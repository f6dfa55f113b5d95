# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit check``: say what is wrong with a disk.

Exit codes are those of qemu-img check: 0 clean, 1 could not run, 2 corrupt, 3 leaks only, 63 not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.parser import add_threads
from vmdkit.cli.render import out, out_json, say
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs
    from vmdkit.vmdk.check_findings import Report

_WORDS = {0: "clean", 1: "not checked", 2: "corrupt", 3: "leaks space, and is sound", 63: "not supported"}


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "check",
        help="say what is wrong with a disk",
        description="Look at descriptor, headers, both copies of the tables, every pointer, compressed grains, and "
        "whether the parents fit. Nothing is changed. Exit: 0 clean, 1 could not run, 2 corrupt, 3 leaks only, "
        "63 not supported.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("--chain", action="store_true", help="check every parent as well")
    parser.add_argument("--shallow", action="store_true", help="do not read and inflate the grains of streams")
    parser.add_argument("--raw", action="store_true", help="the bytes as they are, in which nothing can be wrong")
    parser.add_argument("--untrusted", action="store_true", help="open no other file that the image names")
    parser.add_argument("--allow-path", metavar="DIR", action="append", default=[], help="see 'vmdkit info --help'")
    add_threads(parser)
    parser.usage_code = 1
    parser.set_defaults(func=check_verb)


def check_verb(args: Namespace) -> int:
    """Unpack the arguments, check, print."""
    from vmdkit.checker import check

    if args.raw:
        say(f"{args.disk}: raw bytes have nothing that could be checked")
        return 63
    report = check(
        args.disk, chain=args.chain, shallow=args.shallow, threads=args.threads, untrusted=args.untrusted,
        allow_paths=tuple(args.allow_path),
    )  # fmt: skip
    if args.json:
        out_json(report.facts())
    elif not args.quiet:
        print_report(report)
    return report.exit_code


def print_report(report: Report) -> None:
    """Print the findings, the worst first, and the verdict."""
    order = ("error", "repairable", "unchecked", "leak", "note")
    for finding in sorted(report.findings, key=lambda one: order.index(one.severity.value)):
        out(f"{finding.severity.value:<10} {finding.code}: {finding}")
        if finding.remedy:
            out(f"{'':<10} -> {finding.remedy}")
    leaked = f", {format_size(report.leaked)} leaked" if report.leaked else ""
    files = f"{len(report.files)} file{'s' if len(report.files) > 1 else ''}"
    out(f"{report.path}: {_WORDS[report.exit_code]} ({files}, {report.grains} grains in use{leaked})")
