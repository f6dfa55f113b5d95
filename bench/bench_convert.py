# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Measure ``vmdkit convert`` against ``qemu-img convert``: paired, interleaved, every output compared.

The disk is half full of files of this system's /usr; images of it are made by qemu-img, page cache warm. Raw outputs
are compared byte by byte after every run, others in the first round, by ``qemu-img compare``. "unsafe" cases wait for
no disk on either side (qemu-img's default); "durable" ones end with a flush on both.

One JSON object a case goes to stdout, then a table: the median of the ratios of each round and their range; how many
times the CPU seconds of ours theirs are; the largest memory of a process; the size of what was written.

    python3 bench/bench_convert.py [--quick] [--rounds N] [--only WORD] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from disks import GIB, KIB, MIB, compile_package, files, half_full

SUBFORMATS = {"sparse": "monolithicSparse", "flat": "monolithicFlat", "stream": "streamOptimized"}


@dataclass(frozen=True)
class Case:
    """A conversion: ``source`` and ``target`` are "raw" or a key of SUBFORMATS; options of either side."""

    name: str
    source: str
    target: str
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ("--no-sync",)


CASES = (
    Case("sparse to raw, unsafe", "sparse", "raw"),
    Case("sparse to raw, durable", "sparse", "raw", ("-t", "writeback"), ()),
    Case("raw to sparse, unsafe", "raw", "sparse"),
    Case("raw to sparse, durable", "raw", "sparse", ("-t", "writeback"), ()),
    Case("flat to raw, unsafe", "flat", "raw"),
    Case("raw to flat, unsafe", "raw", "flat"),
    Case("stream to raw, unsafe", "stream", "raw"),
    Case("raw to stream, unsafe", "raw", "stream"),
    Case("raw to stream, one thread", "raw", "stream", (), ("--no-sync", "--threads", "1")),
    Case("raw to stream, --fast", "raw", "stream", (), ("--no-sync", "--fast")),
    Case("raw to stream, --fast, one thread", "raw", "stream", (), ("--no-sync", "--fast", "--threads", "1")),
)


class Run(NamedTuple):
    """What a run of a command took: seconds of wall and CPU, bytes of memory, bytes written."""

    wall: float
    cpu: float
    memory: int
    written: int


@dataclass
class Sides:
    theirs: list[Run] = field(default_factory=list)
    ours: list[Run] = field(default_factory=list)


def timed(command: list[str], folder: Path) -> Run:
    """Run a command that writes into ``folder``."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    written = sum(path.stat().st_size for path in folder.iterdir())
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB, written)


def image_of(kind: str, folder: Path) -> Path:
    return folder / ("disk.raw" if kind == "raw" else f"{kind}.vmdk")


def measure(case: Case, sides: Sides, folder: Path, turn: int) -> None:
    """Run both sides once, in turns A B, B A, and compare what they wrote with the raw disk."""
    raw, made = folder / "disk.raw", folder / "made"
    source, target = image_of(case.source, folder), made / ("out.raw" if case.target == "raw" else "out.vmdk")
    theirs = ["-O", "raw"] if case.target == "raw" else ["-O", "vmdk", "-o", f"subformat={SUBFORMATS[case.target]}"]
    ours = ["-O", "raw" if case.target == "raw" else SUBFORMATS[case.target]]
    given = ["-f", "raw"] if case.source == "raw" else []  # qemu-img would warn, we never guess raw
    told = ["--raw"] if case.source == "raw" else []
    tool = [str(Path(sys.executable).with_name("vmdkit"))]
    commands = {
        "theirs": ["qemu-img", "convert", *given, *theirs, *case.theirs, str(source), str(target)],
        "ours": [*tool, "convert", *told, *ours, *case.ours, str(source), str(target)],
    }
    for side in sorted(commands, reverse=turn % 2 == 0):
        made.mkdir()
        getattr(sides, side).append(timed(commands[side], made))
        if case.target == "raw":
            subprocess.run(["cmp", str(target), str(raw)], check=True)
        elif turn == 0:
            compare = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", str(raw), str(target)]
            subprocess.run(compare, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(made)


def report(case: Case, sides: Sides, size: int) -> dict[str, object]:
    """Return what a case has shown."""
    ratios = [a.wall / b.wall for a, b in zip(sides.theirs, sides.ours, strict=True)]
    ours = statistics.median(run.wall for run in sides.ours)
    return {
        "case": case.name,
        "size": size,
        "rounds": len(ratios),
        "qemu_seconds": round(statistics.median(run.wall for run in sides.theirs), 3),
        "vmdkit_seconds": round(ours, 3),
        "bytes_per_second": round(size / ours),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "cpu_ratio": round(statistics.median(a.cpu / b.cpu for a, b in zip(sides.theirs, sides.ours, strict=True)), 2),
        "qemu_memory": max(run.memory for run in sides.theirs),
        "vmdkit_memory": max(run.memory for run in sides.ours),
        "qemu_written": sides.theirs[-1].written,
        "vmdkit_written": sides.ours[-1].written,
    }


def make_inputs(folder: Path, size: int, cases: list[Case]) -> None:
    """Make the raw disk and the images of it that ``cases`` read."""
    raw = folder / "disk.raw"
    # In a process of its own: the memory of this one would count as that of every command it starts.
    maker = multiprocessing.get_context("spawn").Process(target=make_raw, args=(raw, size))
    maker.start()
    maker.join()
    for kind in {case.source for case in cases} - {"raw"}:
        options = ["-O", "vmdk", "-o", f"subformat={SUBFORMATS[kind]}"]
        subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, image_of(kind, folder)], check=True)
    os.sync()


def make_raw(path: Path, size: int) -> None:
    half_full(path, size, files())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small disk and few rounds: under two minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name contains this")
    args = parser.parse_args()
    if shutil.which("qemu-img") is None:
        print("qemu-img is not here", file=sys.stderr)
        return 1
    compile_package()
    size = GIB if args.quick else 2 * GIB
    rounds = args.rounds or (3 if args.quick else 7)
    told = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout
    version = told.split("\n")[0]
    cases = [case for case in CASES if args.only in case.name and not (args.quick and "durable" in case.name)]
    results = {case: Sides() for case in cases}
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-convert-") as name:
        make_inputs(Path(name), size, cases)
        for turn in range(rounds):
            for case in cases:
                measure(case, results[case], Path(name), turn)
    found = [report(case, results[case], size) for case in cases]
    for row in found:
        print(json.dumps({**row, "peer": version}))
    print("\n| conversion | qemu-img s | vmdkit s | ratio [min-max] | CPU | memory MiB | written |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        span = f"**{row['ratio']}x** [{row['ratio_min']}-{row['ratio_max']}]"
        memory = f"{row['qemu_memory'] // MIB} / {row['vmdkit_memory'] // MIB}"  # type: ignore[operator]
        written = f"{row['vmdkit_written'] / row['qemu_written']:.3f}"  # type: ignore[operator]
        print(
            f"| {row['case']} | {row['qemu_seconds']} | {row['vmdkit_seconds']} | {span} | {row['cpu_ratio']}x "
            f"| {memory} | {written} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
