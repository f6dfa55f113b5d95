# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit hash --check``: hold disks against digests that were taken of them before."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from vmdkit.cli.disk import open_disk
from vmdkit.cli.progress import shown
from vmdkit.cli.render import describe, out, out_json, say
from vmdkit.errors import UsageError, VmdkitError
from vmdkit.ops.hash import hash_device, hasher
from vmdkit.ops.tree import parse_digest
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.units import MIB

if TYPE_CHECKING:
    from argparse import Namespace

_LARGEST = 16 * MIB  # bytes of a file of digests
_LINE = re.compile(r"(tree-\S+|[0-9a-f]+) [ *](.+)")
MATCHES, DIFFERS = "OK", "FAILED"


class Expected(NamedTuple):
    """A digest that a disk had."""

    digest: str
    disk: str


def check(args: Namespace) -> int:
    """Check all that the file ``args.check`` lists, a report or lines, and return the exit code: 1 where one fails."""
    text = read_text(args.check)
    if text.lstrip().startswith("{"):
        from vmdkit.cli.report import check_report

        return check_report(args, text)
    wanted = expected(text, args.check)
    if args.disks:
        if len(args.disks) > 1 or len(wanted) > 1:
            raise UsageError("a disk goes with --check only where it is one, and one digest is listed", path=args.check)
        wanted = [wanted[0]._replace(disk=args.disks[0])]
    found = [_check_one(args, one) for one in wanted]
    if args.json:
        out_json(found)
    bad = sum(not facts["ok"] for facts in found)
    if bad:
        say(f"{bad} of {len(found)} {'is' if bad == 1 else 'are'} not as it was listed")
    return 1 if bad else 0


def read_text(name: str) -> str:
    """Return the text of a small file, ``-`` is standard input. Raises UsageError for a large one, OSError."""
    if name == "-":
        data = sys.stdin.buffer.read(_LARGEST + 1) if sys.stdin is not None else b""
    else:
        with open(name, "rb") as file:
            data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UsageError("too large for a list of digests", path=name)
    return os.fsdecode(data)


def expected(text: str, name: str) -> list[Expected]:
    """Return what lines as ``hash`` and ``sha256sum`` print them list. Raises UsageError with the number of a line."""
    wanted = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is not None:
            wanted.append(Expected(match[1], match[2]))
        elif line.strip() and not line.startswith("#"):
            raise UsageError(f"line {number} is no digest and disk, two blanks between", path=name)
    if not wanted:
        raise UsageError("it lists no digest", path=name)
    return wanted


def _check_one(args: Namespace, wanted: Expected) -> dict[str, Any]:
    """Digest one disk anew, say what came of it, and return that for JSON."""
    facts: dict[str, Any] = {"disk": wanted.disk, "ok": False, "expected": wanted.digest, "found": None}
    try:
        facts["found"] = _digest(args, wanted)
    except (VmdkitError, OSError) as error:
        facts["error"] = describe(error)
        say(facts["error"])
    facts["ok"] = facts["found"] == wanted.digest
    if not args.json and not (args.quiet and facts["ok"]):
        unread = " to be read" if "error" in facts else ""
        out(f"{wanted.disk}: {MATCHES if facts['ok'] else DIFFERS + unread}")
    return facts


def _digest(args: Namespace, wanted: Expected) -> str:
    if wanted.digest.startswith("tree-"):
        shape, _ = parse_digest(wanted.digest)
        with open_disk(args, wanted.disk) as device, shown(args, device.size) as progress:
            zeros = Zeros.NOBODY if args.read_all else Zeros.PLAN
            return str(tree_hash(device, shape, zeros=zeros, progress=progress, threads=args.threads))
    length = 2 * len(hasher(args.algorithm).digest())
    if len(wanted.digest) != length:
        raise UsageError(
            f"{args.algorithm} has {length} digits, not {len(wanted.digest)}; --algorithm says which digest it is",
            path=wanted.disk,
        )
    with open_disk(args, wanted.disk) as device, shown(args, device.size) as progress:
        return hash_device(device, args.algorithm, progress=progress, threads=args.threads)
