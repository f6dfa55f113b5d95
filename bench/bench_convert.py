# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Measure ``vmdkit convert`` against ``qemu-img convert``: paired, interleaved, every output compared byte by byte.

Inputs are made by qemu-img from a raw disk that is half full, in runs of 64 KiB to 4 MiB. One JSON object a case goes
to stdout, then a table with the median of the ratios and their range. "unsafe" cases wait for no disk on either side
(qemu-img's default); "durable" ones end with a flush on both.

    python3 bench/bench_convert.py [--quick] [--rounds N] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SUBFORMATS = {"sparse": "monolithicSparse", "flat": "monolithicFlat", "stream": "streamOptimized"}
WORDS = b"the quick brown fox jumps over a lazy dog; lorem ipsum dolor sit amet 0123456789 INFO error warning\n".split()


@dataclass
class Case:
    name: str
    source: str
    theirs: list[str]
    ours: list[str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"theirs": [], "ours": []})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"theirs": [], "ours": []})


CASES = (
    ("sparse to raw, unsafe", "sparse", [], ["--no-sync"]),
    ("sparse to raw, durable", "sparse", ["-t", "writeback"], []),
    ("flat to raw, unsafe", "flat", [], ["--no-sync"]),
    ("stream to raw, unsafe", "stream", [], ["--no-sync"]),
)


def library(dice: random.Random) -> list[bytes]:
    """Return random bytes, text and records with counters; long enough that deflate sees no repetition of them."""
    most = 4 * MIB
    text = b" ".join(dice.choices(WORDS, k=most // 4))
    records = b"".join(n.to_bytes(4, "little") + dice.randbytes(4) + bytes(8) for n in range(most // 16))
    return [dice.randbytes(2 * most), text[: 2 * most], (records * 2)[: 2 * most]]


def make_raw(path: Path, size: int, seed: int = 1) -> None:
    """Write a disk that is half full, in runs of 64 KiB to 4 MiB on grain boundaries."""
    dice = random.Random(seed)
    texts = library(dice)
    with path.open("wb") as file:
        file.truncate(size)
        offset = 0
        while offset < size:
            length = min(64 * KIB * dice.randint(1, 64), size - offset)
            if dice.random() < 0.5:
                file.seek(offset)
                text = dice.choice(texts)
                at = dice.randrange(len(text) - length)
                file.write(text[at : at + length])
            offset += length


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    begun, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True)
    wall, after = time.perf_counter() - begun, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def measure(case: Case, folder: Path, tool: list[str], turn: int) -> None:
    """Run both sides once, in turns A B, B A, and compare what they wrote with the raw disk."""
    image, target = folder / f"{case.source}.vmdk", folder / "out.raw"
    sides = {
        "theirs": ["qemu-img", "convert", "-O", "raw", *case.theirs, str(image), str(target)],
        "ours": [*tool, "convert", "-O", "raw", *case.ours, str(image), str(target)],
    }
    for side in sorted(sides, reverse=turn % 2 == 0):
        command = sides[side]
        wall, cpu = timed(command)
        case.seconds[side].append(wall)
        case.cpu[side].append(cpu)
        subprocess.run(["cmp", str(target), str(folder / "disk.raw")], check=True)
        target.unlink()


def report(case: Case, size: int) -> dict[str, object]:
    """Return what a case has shown."""
    ratios = [a / b for a, b in zip(case.seconds["theirs"], case.seconds["ours"], strict=True)]
    saved = [a / b for a, b in zip(case.cpu["theirs"], case.cpu["ours"], strict=True)]
    ours = statistics.median(case.seconds["ours"])
    return {
        "case": case.name,
        "size": size,
        "rounds": len(ratios),
        "qemu_seconds": round(statistics.median(case.seconds["theirs"]), 3),
        "vmdkit_seconds": round(ours, 3),
        "bytes_per_second": round(size / ours),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "cpu_ratio": round(statistics.median(saved), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small disk and few rounds: under two minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    if shutil.which("qemu-img") is None:
        print("qemu-img is not here", file=sys.stderr)
        return 1
    size = GIB if args.quick else 2 * GIB
    rounds = args.rounds or (3 if args.quick else 7)
    tool = [str(Path(sys.executable).with_name("vmdkit"))]
    version = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout.split("\n")[
        0
    ]
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-convert-") as name:
        folder = Path(name)
        make_raw(folder / "disk.raw", size)
        cases = [Case(*row) for row in CASES if args.only in row[0] and not (args.quick and "durable" in row[0])]
        for source in dict.fromkeys(case.source for case in cases):
            options = ["-O", "vmdk", "-o", f"subformat={SUBFORMATS[source]}"]
            raw, image = str(folder / "disk.raw"), str(folder / f"{source}.vmdk")
            subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, image], check=True)
        os.sync()
        for turn in range(rounds):
            for case in cases:
                measure(case, folder, tool, turn)
        found = [report(case, size) for case in cases]
    for row in found:
        print(json.dumps({**row, "peer": version}))
    print("\n| conversion | qemu-img s | vmdkit s | ratio [min-max] | CPU |\n|---|---|---|---|---|")
    for row in found:
        span = f"{row['ratio']}x [{row['ratio_min']}-{row['ratio_max']}]"
        print(f"| {row['case']} | {row['qemu_seconds']} | {row['vmdkit_seconds']} | {span} | {row['cpu_ratio']}x |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
