# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit torture``: cut the power of a writer of images, and see what it had promised."""

from __future__ import annotations

import argparse
import logging
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from vmdkit.cli.render import out, out_json, say, table
from vmdkit.errors import UsageError
from vmdkit.units import MIB, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from vmdkit.cli.parser import Verbs
    from vmdkit.torture.harness import Result

_EPILOG = """\
Without commands our own writer is tortured, in memory. With --create, --server and --read any NBD server is: it is
started under strace, written through, and every state that a power cut could leave is read by the read command and
held against what the server had promised. Names in braces are filled in: {image} {parent} {size} {socket} {out};
what stands in square brackets is for disks with a parent:

  vmdkit torture --parent --create 'qemu-img create -q -f vmdk [-b {parent} -F vmdk] {image} {size}' \\
      --server 'qemu-nbd -f vmdk -k {socket} {image}' --read 'qemu-img convert -f vmdk -O raw {image} {out}'

Exit status: 0 nothing wrong, 1 promises were broken.
"""
_VERBS = ("write", "zero", "allocate", "trim", "flush")


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "torture",
        help="cut the power of a writer",
        description="Cut the power of a writer of disk images, and judge what is left.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("any NBD server")
    server.add_argument("--create", metavar="CMD", help="makes the image")
    server.add_argument("--server", metavar="CMD", help="serves it for writing, at the Unix socket {socket}")
    server.add_argument("--read", metavar="CMD", help="writes its bytes to {out}")
    server.add_argument("--check", metavar="CMD", help="checks the image; exit status 0 and 3 (leaks) are good")
    server.add_argument("--parent", action="store_true", help="torture a child of a disk full of data")
    server.add_argument("--size", type=_size, default=8 * MIB, metavar="N", help="of the disk (default 8M)")
    server.add_argument("--requests-of", metavar="VERBS", help=f"of {','.join(_VERBS)} (default: what is offered)")
    server.add_argument("--keep", metavar="FILE", help="keep the recording, to be judged again")
    server.add_argument("--replay", metavar="FILE", help="judge a recording that was kept; its commands are known")
    own = parser.add_argument_group("our own writer")
    own.add_argument("--disk", metavar="NAME", action="append", default=[], help="kind of disk (repeatable; 'list')")
    own.add_argument(
        "--operation", metavar="NAME", action="append", default=[],
        help="create, commit and so on (repeatable; 'all', 'list'); without --disk and --operation all of both",
    )  # fmt: skip
    own.add_argument("--faults", action="store_true", help="disk full and EIO, one after the other; states after each")
    own.add_argument("--rounds", type=int, default=1, metavar="N", help="seeds for each kind, from --seed on")
    own.add_argument("--threads", type=int, default=1, metavar="N", help="clients at once (not repeatable by seed)")
    own.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--states", type=int, default=400, metavar="N", help="states of each disk (default 400)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chooses workload and states (default 1)")
    parser.add_argument("--requests", type=int, default=30, metavar="N", help="requests before the end (default 30)")
    parser.set_defaults(func=torture_verb)


def _size(text: str) -> int:
    size = parse_size(text)
    if not 0 < size <= 256 * MIB or size % MIB:
        raise argparse.ArgumentTypeError("whole MiB are due, up to 256M: all of a disk is kept in memory")
    return size


def torture_verb(args: Namespace) -> int:
    """Run what was asked for, print the table, return the exit code."""
    began = time.monotonic()
    # Recovery says each time what it has mended, which is what is wanted here thousands of times.
    logging.getLogger("vmdkit.vmdk").setLevel(logging.ERROR)
    given = [name for name in ("create", "server", "read") if getattr(args, name)]
    if args.replay or given:
        if not args.replay and len(given) < 3:  # the three commands
            raise UsageError("--create, --server and --read are needed, all three")
        results = [_server(args)]
    elif "list" in (*args.disk, *args.operation):
        for name in _known()["list" in args.operation]:
            out(name)
        return 0
    else:
        results = list(_own(args))
    _show(args, results, time.monotonic() - began)
    return int(any(result.failing for result in results))


def _server(args: Namespace) -> Result:
    import tempfile

    from vmdkit.torture import harness, keep, server

    with tempfile.TemporaryDirectory(prefix="vmdkit-torture-", dir=_fast_directory()) as home:
        os.mkdir(written := os.path.join(home, "written"))
        os.mkdir(judged := os.path.join(home, "judged"))
        if args.replay:
            recording, known = keep.load(args.replay)
            commands = server.Commands(**{**known, "read": args.read or known["read"], "check": args.check or ""})
        else:
            commands = server.Commands(
                args.create, args.server, args.read, args.check or "", parent=args.parent, size=args.size
            )
            recording = server.record(commands, written, args.seed, args.requests, _chosen(args.requests_of))
            if args.keep:
                keep.save(args.keep, recording, commands)
        judge = server.ServerJudge(commands, judged)
        return harness.run(recording, judge, states=args.states, seed=args.seed)


def _fast_directory() -> str | None:
    """Return a directory in memory where there is one: thousands of states are written."""
    fast = "/dev/shm"  # noqa: S108  # only a directory for temporary directories
    return fast if os.access(fast, os.W_OK) else None


def _chosen(text: str | None) -> tuple[str, ...]:
    verbs = tuple(text.split(",")) if text else _VERBS
    if not set(verbs) <= set(_VERBS):
        raise UsageError(f"--requests-of takes {','.join(_VERBS)}")
    return verbs


def _known() -> tuple[list[str], list[str]]:
    """Return the kinds of disks, and the operations."""
    from vmdkit.torture.fixtures import plans
    from vmdkit.torture.scenes import operations

    return list(plans()), list(operations())


class _Work(NamedTuple):
    name: str
    seed: int
    states: int
    requests: int
    threads: int
    faults: bool


def _work(args: Namespace) -> list[_Work]:
    """Return what to do, each with its seed."""
    disks, operations = _known()
    for given, known in ((args.disk, disks), (args.operation, [*operations, "all"])):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UsageError(f"nothing here is called {unknown[0]!r}; --disk list and --operation list say what is")
    if args.faults and args.operation:
        raise UsageError("--faults goes with kinds of disks, not with operations")
    if not args.disk and not args.operation:
        names = disks if args.faults else disks + operations
    else:
        names = args.disk + (operations if "all" in args.operation else args.operation)
    seeds = range(args.seed, args.seed + args.rounds)
    return [
        _Work(name, seed, args.states, args.requests, args.threads, args.faults) for seed in seeds for name in names
    ]


def _own(args: Namespace) -> Iterator[Result]:
    from concurrent.futures import ProcessPoolExecutor

    work = _work(args)
    if args.jobs == 1:
        yield from map(_one, work)
        return
    with ProcessPoolExecutor(args.jobs) as pool:
        for done, result in enumerate(pool.map(_one, work), start=1):
            if args.verbose:
                say(f"{done} of {len(work)}: {result.name} seed {result.seed}: {result.states} states")
            yield result


def _one(work: _Work) -> Result:
    from vmdkit.torture import faults, operations, own, scenes
    from vmdkit.torture.fixtures import plans

    logging.getLogger("vmdkit.vmdk").setLevel(logging.ERROR)
    plan = plans().get(work.name)
    if plan is None:
        return operations.torture(scenes.operations()[work.name], work.seed, states=work.states)
    effort = own.Effort(requests=work.requests, threads=work.threads, again=1 if work.faults else 3)
    torture = faults.torture if work.faults else own.torture
    return torture(plan, work.seed, states=work.states, effort=effort)


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────


def _show(args: Namespace, results: Sequence[Result], seconds: float) -> None:
    states, failing = (sum(getattr(result, name) for result in results) for name in ("states", "failing"))
    if args.json:
        out_json(
            {
                "states": states, "violations": failing, "seconds": round(seconds, 1),
                "writers": [_facts(result) for result in results],
            }
        )  # fmt: skip
        return
    rows: list[Sequence[object]] = [("writer", "seeds", "states", "violations", "kinds")]
    for name in dict.fromkeys(result.name for result in results):
        of = [result for result in results if result.name == name]
        kinds: dict[str, int] = {}
        for result in of:
            for kind, count in result.kinds.items():
                kinds[kind] = kinds.get(kind, 0) + count
        seeds = of[0].seed if len(of) == 1 else f"{of[0].seed} to {of[-1].seed}"
        said = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
        rows.append((name, seeds, sum(one.states for one in of), sum(one.failing for one in of), said or "-"))
    table(rows, right=(2, 3))
    out()
    out(f"{states} states, {failing} with violations, {seconds:.0f} s")
    for result in results:
        for example in result.examples:
            out()
            out(f"{result.name}, seed {result.seed}: {example.finding.kind}: {example.finding.text}")
            for line in example.story:
                out(f"    {line}")


def _facts(result: Result) -> dict[str, Any]:
    return {
        "writer": result.name,
        "seed": result.seed,
        "states": result.states,
        "violations": result.failing,
        "kinds": dict(result.kinds),
        "examples": [
            {"kind": one.finding.kind, "text": one.finding.text, "cut": one.state.cut, "story": one.story}
            for one in result.examples
        ],
    }
