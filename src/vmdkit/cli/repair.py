# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit repair``: mend a disk, or say how that would be done. The exit code is that of a check afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.cli.render import out, out_json, say
from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Verbs
    from vmdkit.repairer import Repaired


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "repair",
        help="mend a disk, or say how",
        description="Do what is provably safe: nothing that could be read before reads otherwise afterwards, unless "
        "you ask for it. What changed places held goes to DISK.undo. Exit: as 'vmdkit check' afterwards.",
    )
    parser.add_argument("disk", metavar="DISK")
    parser.add_argument("--plan", action="store_true", help="say each step and its risk, change nothing")
    parser.add_argument("--onto", metavar="FILE", help="leave DISK alone, make a repaired copy; salvages streams")
    parser.add_argument("--discard-damaged", action="store_true", help="give up entries that lead nowhere: data loss")
    parser.add_argument(
        "--prefer", choices=("primary", "redundant"), default="", help="of two copies that may both be right"
    )
    parser.add_argument("--relink", action="store_true", help="accept a parent that has changed since: it may not fit")
    parser.add_argument("--no-undo", action="store_true", help="do not write DISK.undo")
    parser.add_argument("--revert", action="store_true", help="DISK is an undo file: put back what it kept")
    group = parser.add_argument_group("descriptors")
    group.add_argument(
        "--rebuild-descriptor", action="store_true", help="DISK is an extent file: make the descriptor it has lost"
    )
    group.add_argument("--flat-type", choices=("vmfs", "monolithicFlat"), default="", help="for a -flat file")
    group.add_argument("--parent", metavar="DISK", default="", help="what a delta was made from")
    parser.add_argument("--allow-path", metavar="DIR", action="append", default=[], help="see 'vmdkit info --help'")
    parser.usage_code = 1
    parser.set_defaults(func=repair_verb)


def repair_verb(args: Namespace) -> int:
    """Unpack the arguments, repair, print."""
    from vmdkit import repairer
    from vmdkit.vmdk.repair_steps import Consent

    if args.revert:
        for name in repairer.revert(args.disk):
            out(f"{name}: as it was")
        return 0
    consent = Consent(discard_damaged=args.discard_damaged, prefer=args.prefer, relink=args.relink)
    if args.rebuild_descriptor:
        done = repairer.rebuild_descriptor(args.disk, plan=args.plan, flat_type=args.flat_type, parent=args.parent)
    elif args.onto is not None:
        if args.plan:
            raise UsageError("--plan changes nothing, --onto makes a copy: one of them")
        done = repairer.repair_onto(args.disk, args.onto, consent=consent, allow_paths=tuple(args.allow_path))
    else:
        if args.relink and not args.plan:
            say("--relink: where the child holds nothing, the guest sees what the parent has now, not what it had")
        done = repairer.repair(
            args.disk, plan=args.plan, consent=consent, undo=not args.no_undo, allow_paths=tuple(args.allow_path)
        )
    if args.json:
        out_json(done.facts())
    elif not args.quiet:
        _print(done)
    return done.report.exit_code


def _print(done: Repaired) -> None:
    from vmdkit.cli.check import print_report

    for number, step in enumerate(done.steps, start=1):
        out(f"{number}. {step.path}: {step.text}")
        if step.risk:
            out(f"   risk: {step.risk}")
    if not done.steps:
        out("nothing to do that is safe" if done.report.exit_code else "nothing to do")
    if done.undo:
        out(f"what was changed is kept in {done.undo}; 'vmdkit repair --revert {done.undo}' puts it back")
    out("afterwards:" if not done.is_plan else "would be afterwards:")
    print_report(done.report)
