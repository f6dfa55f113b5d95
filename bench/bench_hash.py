# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Measure ``vmdkit hash``, ``compare`` and ``convert --verify`` against the programs that people use now.

Hashing is held against ``sha256sum``, and against ``openssl dgst`` (which uses the processor's SHA instructions where
Debian's sha256sum does not), of a file that has just the bytes that the disk has allocated; comparing against
``qemu-img compare`` of the same two disks. Proving is held against ``convert`` without it, and against ``qemu-img
convert``, durable, and ``compare`` afterwards. Runs alternate A B, B A;
what is compared or digested is checked in each. The page cache is warm, but for what --verify drops.

One JSON object a case goes to stdout, then a table: the median of the ratios and their range, CPU, largest memory.

    python3 bench/bench_hash.py [--quick] [--rounds N] [--only WORD] [--dir DIR]
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

from disks import GIB, KIB, MIB, TIB, files, half_full

TOOL = str(Path(sys.executable).with_name("vmdkit"))
SUBFORMATS = {"sparse": "monolithicSparse", "flat": "monolithicFlat", "stream": "streamOptimized"}
COMPARE = ("qemu-img", "compare", "-q")


@dataclass(frozen=True)
class Case:
    """Two commands; their words are names of files in the folder where they are not options."""

    name: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]


CASES = (
    Case("hash raw / sha256sum", ("sha256sum", "allocated"), ("hash", "--raw", "disk.raw")),
    Case("hash sparse / sha256sum", ("sha256sum", "allocated"), ("hash", "sparse.vmdk")),
    Case("hash sparse / openssl", ("openssl", "dgst", "-sha256", "allocated"), ("hash", "sparse.vmdk")),
    Case(
        "hash sparse, one thread / openssl",
        ("openssl", "dgst", "-sha256", "allocated"),
        ("hash", "--threads", "1", "sparse.vmdk"),
    ),
    Case("hash stream / sha256sum", ("sha256sum", "allocated"), ("hash", "stream.vmdk")),
    Case("hash --flat sparse / sha256sum of all", ("sha256sum", "disk.raw"), ("hash", "--flat", "sparse.vmdk")),
    Case("hash --algorithm blake3 sparse / sha256sum", ("sha256sum", "allocated"),
         ("hash", "--algorithm", "blake3", "sparse.vmdk")),
    Case("hash 1 TiB, 16 MiB of it data / sha256sum of those", ("sha256sum", "few"), ("hash", "empty.vmdk")),
    Case("compare sparse, raw", (*COMPARE, "-f", "vmdk", "-F", "raw", "sparse.vmdk", "disk.raw"),
         ("compare", "-q", "--raw-b", "sparse.vmdk", "disk.raw")),
    Case("compare sparse, flat", (*COMPARE, "sparse.vmdk", "flat.vmdk"), ("compare", "-q", "sparse.vmdk", "flat.vmdk")),
    Case("compare stream, sparse", (*COMPARE, "stream.vmdk", "sparse.vmdk"),
         ("compare", "-q", "stream.vmdk", "sparse.vmdk")),
    Case("compare 1 TiB, nearly empty", (*COMPARE, "empty.vmdk", "empty2.vmdk"),
         ("compare", "-q", "empty.vmdk", "empty2.vmdk")),
)  # fmt: skip
PROOFS = ("sparse", "flat", "stream", "raw")


class Run(NamedTuple):
    """What a run took: seconds of wall and CPU, bytes of memory; and what it printed."""

    wall: float
    cpu: float
    memory: int
    told: str


@dataclass
class Sides:
    theirs: list[Run] = field(default_factory=list)
    ours: list[Run] = field(default_factory=list)


def timed(command: list[str], folder: Path) -> Run:
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        told = process.stdout.read() if process.stdout is not None else ""
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB, told)


def measure(case: Case, sides: Sides, folder: Path, turn: int) -> None:
    """Run both sides once, in turns A B, B A."""
    for side in sorted(("theirs", "ours"), reverse=turn % 2 == 0):
        command = [TOOL, *case.ours] if side == "ours" else list(case.theirs)
        getattr(sides, side).append(timed(command, folder))
        for name in ("proved.vmdk", "proved-flat.vmdk", "plain.vmdk", "plain-flat.vmdk"):
            (folder / name).unlink(missing_ok=True)


def check(results: dict[Case, Sides]) -> None:
    """See that one content has one digest, whatever was read."""
    seen: dict[str, set[str]] = {}
    for case, sides in results.items():
        if case.ours[0] == "hash" and "1 TiB" not in case.name:
            kind = next((word for word in case.ours if word in ("--flat", "blake3")), "tree")
            runs = sides.ours + (sides.theirs if kind == "--flat" else [])
            seen.setdefault(kind, set()).update(run.told.split()[0] for run in runs)
    if any(len(digests) > 1 for digests in seen.values()):
        raise SystemExit(f"digests differ: {seen}")


def report(case: Case, sides: Sides) -> dict[str, object]:
    ratios = [a.wall / b.wall for a, b in zip(sides.theirs, sides.ours, strict=True)]
    return {
        "case": case.name,
        "rounds": len(ratios),
        "their_seconds": round(statistics.median(run.wall for run in sides.theirs), 3),
        "our_seconds": round(statistics.median(run.wall for run in sides.ours), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "cpu_ratio": round(statistics.median(a.cpu / b.cpu for a, b in zip(sides.theirs, sides.ours, strict=True)), 2),
        "their_memory": max(run.memory for run in sides.theirs),
        "our_memory": max(run.memory for run in sides.ours),
    }


def make_disks(folder: str, size: int) -> None:
    """Make the disk, what it has allocated as one file, and two nearly empty ones."""
    place = Path(folder)
    raw = place / "disk.raw"
    half_full(raw, size, files())
    fd = os.open(raw, os.O_RDONLY)
    with (place / "allocated").open("wb") as file:
        offset = 0
        while offset < size:
            try:
                start = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(fd, start, os.SEEK_HOLE)
            os.sendfile(file.fileno(), fd, start, offset - start)
    os.close(fd)
    (place / "few").write_bytes((place / "allocated").read_bytes()[: 16 * MIB])


def make_images(folder: Path, size: int) -> None:
    # In a process of its own: the memory of this one would count as that of every command it starts.
    maker = multiprocessing.get_context("spawn").Process(target=make_disks, args=(str(folder), size))
    maker.start()
    maker.join()
    for kind, subformat in SUBFORMATS.items():
        options = ["-O", "vmdk", "-o", f"subformat={subformat}", "disk.raw", f"{kind}.vmdk"]
        subprocess.run(["qemu-img", "convert", "-f", "raw", *options], check=True, cwd=folder)
    for name in ("empty.vmdk", "empty2.vmdk"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", name, str(TIB)], check=True, cwd=folder)
        writes = [word for n in range(16) for word in ("-c", f"write -s few {n * 61}G 1M")]
        subprocess.run(["qemu-io", *writes, name], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    os.sync()


def proofs() -> list[Case]:
    """Return the cases of proving: the same conversion without it, and what qemu's users do, are the other side."""
    cases = []
    for kind in PROOFS:
        words = ("convert", "--raw", "disk.raw", "-O", SUBFORMATS.get(kind, kind))
        proved = (*words, "proved.vmdk", "--verify")
        cases.append(Case(f"convert --verify raw to {kind} / without", (TOOL, *words, "plain.vmdk"), proved))
        form = "raw" if kind == "raw" else "vmdk"
        options = "" if kind == "raw" else f"-o subformat={SUBFORMATS[kind]}"
        theirs = (
            f"qemu-img convert -t writeback -f raw -O {form} {options} disk.raw plain.vmdk && "
            f"qemu-img compare -q -f raw -F {form} disk.raw plain.vmdk"
        )
        name = f"convert --verify raw to {kind} / qemu-img convert, compare"
        cases.append(Case(name, ("sh", "-c", theirs), proved))
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small disk and few rounds: under two minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--dir", help="where the disks are made, and found again by the next run (default: a temporary directory)"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name contains this")
    args = parser.parse_args()
    for tool in ("qemu-img", "sha256sum", "openssl"):
        if shutil.which(tool) is None:
            print(f"{tool} is not here", file=sys.stderr)
            return 1
    cases = [case for case in (*CASES, *proofs()) if args.only in case.name]
    results = {case: Sides() for case in cases}
    with tempfile.TemporaryDirectory(prefix="bench-hash-") as made:
        name = args.dir or made
        if not (Path(name) / "empty2.vmdk").exists():
            make_images(Path(name), GIB if args.quick else 2 * GIB)
        for turn in range(args.rounds if args.rounds is not None else 3 if args.quick else 7):
            for case in cases:
                measure(case, results[case], Path(name), turn)
    if args.rounds == 0:  # only make the disks
        return 0
    check(results)
    found = [report(case, results[case]) for case in cases]
    for row in found:
        print(json.dumps(row))
    print("\n| case | their s | our s | ratio [min-max] | CPU | memory MiB |\n|---|---|---|---|---|---|")
    for row in found:
        span = f"**{row['ratio']}x** [{row['ratio_min']}-{row['ratio_max']}]"
        memory = f"{row['their_memory'] // MIB} / {row['our_memory'] // MIB}"  # type: ignore[operator]
        cpu = f"{row['cpu_ratio']}x"
        print(f"| {row['case']} | {row['their_seconds']} | {row['our_seconds']} | {span} | {cpu} | {memory} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
