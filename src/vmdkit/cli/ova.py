# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit ova``: appliances. The parsers of all its verbs, and the short ones: info, extract, lint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmdkit import __version__
from vmdkit.cli import ova_build
from vmdkit.cli.disk import without_blas_threads
from vmdkit.cli.parser import Parser, add_general_options, add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import emit, out, out_json, say, table
from vmdkit.errors import VmdkitError
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence

    from vmdkit.cli.parser import Verbs
    from vmdkit.ova.report import Report

_FOR = "comma-separated importers: esxi6, esxi7, esxi8, esxi9, workstation, vbox7, proxmox, aws; all is the default"
_LONGEST = 500  # characters of a line that info prints
_MOST_DISKS = 100


class _Verb(Parser):
    """The parser of a verb below another, which meets its unknown options itself and so has its own exit code."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Refuse what argparse would hand up to the outer parser."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest


def register(verbs: Verbs) -> None:
    """Add the parsers."""
    parser = verbs.add_parser("ova", help="build, check, mend and unpack appliances", description="Work on OVA files.")
    inner = parser.add_subparsers(dest="ova_verb", metavar="VERB", required=True, parser_class=_Verb)
    _register_info(inner)
    ova_build.register_build(inner, _FOR)
    _register_lint(inner)
    ova_build.register_fix(inner, _FOR)
    _register_extract(inner)
    for one in inner.choices.values():
        add_general_options(one)


def _register_info(inner: Any) -> None:
    parser = inner.add_parser("info", help="say what is in an OVA", description="Print machines, disks, networks.")
    parser.add_argument("ova", metavar="X.ova", help="an OVA, an .ovf, or a directory with one")
    parser.set_defaults(func=info_verb)


def _register_extract(inner: Any) -> None:
    parser = inner.add_parser(
        "extract",
        help="take files out of an OVA",
        description="Write the files of an OVA into DIR; digests are checked on the way, and nothing half is left.",
    )
    parser.add_argument("ova", metavar="X.ova")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--disk", metavar="N", help="only this disk: its number from 1, its file or its ID")
    parser.add_argument("--raw", action="store_true", help="disks as raw bytes, as FILE.raw")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until they are on stable storage")
    parser.set_defaults(func=extract_verb)


def _register_lint(inner: Any) -> None:
    parser = inner.add_parser(
        "lint",
        help="say what importers will refuse",
        description="Hold OVAs against the rules of the importers they are meant for (docs/ova.md). "
        "Exit: 0 clean, 1 could not run, 2 errors, 3 warnings only.",
    )
    parser.add_argument("ovas", metavar="X.ova", nargs="+", help="OVAs, .ovf files, or directories with one")
    parser.add_argument("--for", dest="targets", metavar="TARGETS", action="append", default=[], help=_FOR)
    parser.add_argument("--sarif", metavar="FILE", help="write SARIF 2.1.0 as well; - is standard output")
    parser.add_argument("--shallow", action="store_true", help="read neither grains nor digests")
    parser.add_argument("--notes", action="store_true", help="print notes too")
    add_threads(parser)
    parser.usage_code = 1
    parser.set_defaults(func=lint_verb)


# ── info ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def info_verb(args: Namespace) -> int:
    """Print what is in a package."""
    with without_blas_threads():
        from vmdkit.ova.facts import facts
        from vmdkit.ova.package import Package
    with Package(args.ova) as package:
        found = facts(package)
    if args.json:
        out_json(found)
        return 0
    for machine in found["machines"]:
        _print_machine(machine)
    _print_disks(found)
    if found["networks"]:
        out(f"networks:   {_short(one['name'] for one in found['networks'])}")
    _print_proof(found)
    return 0


def _print_machine(machine: dict[str, Any]) -> None:
    product = machine["product"]
    words = [product.get("Vendor"), product.get("Product"), product.get("Version") or product.get("FullVersion")]
    memory = machine.get("memory")
    size = [
        f"{machine['cpus']} CPU" if machine.get("cpus") else "",
        format_size(memory) if memory else "",
        machine.get("family") or "",
        machine.get("firmware", "") + (" with secure boot" if machine.get("secure_boot") else ""),
    ]
    models = {one["id"]: one["model"] or one["type"] for one in machine.get("controllers", ())}
    drives = [f"{one['disk']} on {models.get(one['controller'], '?')}:{one['at']}" for one in machine.get("drives", ())]
    adapters = [f"{one['model']} to {one['network']}" for one in machine.get("adapters", ())]
    for label, text in (
        ("machine", machine["name"][:_LONGEST]),
        ("product", _short(filter(None, words), " ")),
        ("os", machine["os"]),
        ("hardware", _short(filter(None, size))),
        ("drives", _short(drives)),
        ("adapters", _short(adapters)),
        ("others", _short(machine.get("others", ()))),
        ("properties", _short(one["key"] for one in machine["properties"])),
        ("licences", str(machine["eulas"]) if machine["eulas"] else ""),
        ("annotation", _short([machine["annotation"] or ""])),
    ):
        if text:
            out(f"{label + ':':<11} {text}")


def _short(words: Iterable[str], between: str = ", ") -> str:
    """Join words; what would be longer than a few lines is cut, --json has it all."""
    text = between.join(words)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _print_disks(found: dict[str, Any]) -> None:
    if not found["disks"]:
        return
    rows: list[list[object]] = [["DISK", "FILE", "CAPACITY", "POPULATED", "SIZE", "WHAT"]]
    for one in found["disks"][:_MOST_DISKS]:
        sizes = [format_size(one[key]) if one[key] is not None else "?" for key in ("capacity", "populated", "size")]
        rows.append([one["id"][:_LONGEST], one["file"] or "", *sizes, one["what"]])
    table(rows, right=[2, 3, 4], head=False)
    if len(found["disks"]) > _MOST_DISKS:
        out(f"and {len(found['disks']) - _MOST_DISKS} disks more")


def _print_proof(found: dict[str, Any]) -> None:
    manifest, signature = found["manifest"], found["signature"]
    if manifest is None:
        out("manifest:   none")
    else:
        out(
            f"manifest:   {manifest['name']}, "
            + (manifest.get("error") or f"{manifest['digests']} of {manifest['files']} files")
        )
    if signature is not None:
        who = f" by {signature['subject']}" if "subject" in signature else f": {signature.get('reason', '')}"
        out(f"signature:  {signature['name']}, {signature['state']}{who}")


# ── extract ──────────────────────────────────────────────────────────────────────────────────────────────────────


def extract_verb(args: Namespace) -> int:
    """Take files out of a package."""
    with without_blas_threads():
        from vmdkit.ova.extract import Choice, extract, selected, sizes
        from vmdkit.ova.package import Package
    choice = Choice(disk=args.disk, raw=args.raw, overwrite=args.force, sync=not args.no_sync)
    with Package(args.ova) as package:
        total = sizes(package, selected(package, choice), raw=args.raw)
        with shown(args, total) as progress:
            written = extract(package, args.directory, choice, progress=progress)
    if args.json:
        out_json({"files": written})
    elif args.verbose:
        for path in written:
            out(path)
    return 0


# ── lint ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def lint_verb(args: Namespace) -> int:
    """Hold packages against the rules, and print what is wrong."""
    with without_blas_threads():
        from vmdkit.ova.lint import lint, total_bytes
        from vmdkit.ova.report import ERRORS, sarif
        from vmdkit.ova.targets import parse_targets
    targets = parse_targets(args.targets)
    reports: list[Report] = []
    failed = False
    for path in args.ovas:
        try:
            with shown(args, 0 if args.shallow else total_bytes(path)) as progress:
                reports.append(lint(path, targets, threads=args.threads, shallow=args.shallow, progress=progress))
        except (VmdkitError, OSError) as error:
            if len(args.ovas) == 1:
                raise
            from vmdkit.cli.render import describe

            say(describe(error))
            failed = True
    if args.sarif:
        _write_sarif(args.sarif, json.dumps(sarif(reports, __version__), indent=2) + "\n")
    if args.json:
        facts = [report.facts() for report in reports]
        out_json(facts[0] if len(args.ovas) == 1 and facts else facts)
    elif not args.quiet and args.sarif != "-":
        for report in reports:
            print_report(report, notes=args.notes)
    codes = {report.exit_code for report in reports}
    return 1 if failed else ERRORS if ERRORS in codes else max(codes, default=0)


def _write_sarif(path: str, text: str) -> None:
    if path == "-":
        emit(text)
        return
    from vmdkit.storage.target import new_file

    data = text.encode()
    with new_file(path, len(data), overwrite=True, sync=False) as file:
        file.pwrite(data, 0)


def print_report(report: Report, *, notes: bool) -> None:
    """Print findings, the worst first, and the verdict."""
    from vmdkit.ova.rules import RULES, Level

    names = tuple(target.name for target in report.targets)
    hidden = 0
    for finding in report.sorted():
        if finding.level is Level.NOTE and not notes:
            hidden += 1
            continue
        rule = RULES[finding.rule]
        who = "" if finding.targets == names else f" [{', '.join(finding.targets)}]"
        where = f"{finding.where}: " if finding.member else ""
        out(f"{finding.level.value:<7}  {finding.rule}: {where}{finding.text}{who}")
        out(f"{'':<9}{rule.why}; -> {rule.hint}")
    for rule_id, count in report.more.items():
        out(f"{'':<9}and {count} more of {rule_id}")
    counts = [
        f"{count} {level.value}{'s' if count != 1 else ''}"
        for level in (Level.ERROR, Level.WARNING)
        if (count := report.count(level))
    ]
    more = f" ({hidden} notes, see --notes)" if hidden else ""
    out(f"{report.path}: {', '.join(counts) or 'clean'} for {', '.join(names)}{more}")
