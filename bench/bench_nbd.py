# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Measure ``vmdkit serve`` against ``qemu-nbd``, default and ``--aio=io_uring``, on the same images, page cache warm.

The three servers of a case run side by side, only one has work at a time, and their turns rotate: what is kept are
the ratios of each round to the better of the two qemus. Before the first round everything is copied out of our
server and compared with what qemu-img reads. The stream holds files of this system's /usr, the others noise. One
JSON object a case goes to stdout, then a table: median [min-max]. CPU is that of all processes of a server for each
operation, against the cheaper qemu.

    python3 bench/bench_nbd.py [--quick] [--rounds N] [--case WORD]... [--directory DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from disks import GIB, compile_package, files, half_full, noise

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS_CLIENT = """
import nbd, random, sys, time
h = nbd.NBD(); h.add_meta_context("base:allocation"); h.connect_uri(sys.argv[1])
size, window, count = h.get_size(), 65536, 0
dice = random.Random(5)
end = time.monotonic() + float(sys.argv[2])
begun = time.monotonic()
while time.monotonic() < end:
    for _ in range(100):
        h.block_status(window, dice.randrange(size // window) * window, lambda *_: 0)
    count += 100
print(count / (time.monotonic() - begun))
"""


MAP_CLIENT = """
import nbd, sys, time
end = time.monotonic() + float(sys.argv[2])
begun, count = time.monotonic(), 0
while time.monotonic() < end:
    h = nbd.NBD(); h.add_meta_context("base:allocation"); h.connect_uri(sys.argv[1])
    size, at = h.get_size(), 0
    def take(context, offset, entries, error):
        global at
        at = offset + sum(entries[::2])
    while at < size:
        h.block_status(min(size - at, 2**32 - 65536), at, take)
    h.shutdown()
    count += 1
print(count / (time.monotonic() - begun), count)
"""


@dataclass(frozen=True)
class Case:
    """One image and one kind of work; ``kind`` is fio, copy, nbdinfo, map (without the start of a client) or status."""

    name: str
    image: str
    kind: str
    block: str = ""
    depth: int = 1
    jobs: int = 1
    random: bool = True


CASES = (
    Case("sparse 4K random q32", "half.vmdk", "fio", "4k", 32),
    Case("sparse 4K random q32 x4", "half.vmdk", "fio", "4k", 32, 4),
    Case("sparse 4K random q1", "half.vmdk", "fio", "4k", 1),
    Case("sparse 4K random q1 x4", "half.vmdk", "fio", "4k", 1, 4),
    Case("sparse 64K sequential q8", "half.vmdk", "fio", "64k", 8, random=False),
    Case("sparse 1M sequential q4", "half.vmdk", "fio", "1m", 4, random=False),
    Case("flat 4K random q32", "whole.vmdk", "fio", "4k", 32),
    Case("flat 64K sequential q8", "whole.vmdk", "fio", "64k", 8, random=False),
    Case("flat 1M sequential q4", "whole.vmdk", "fio", "1m", 4, random=False),
    Case("sparse nbdcopy", "half.vmdk", "copy"),
    Case("flat nbdcopy", "whole.vmdk", "copy"),
    Case("stream 4K random q1", "stream.vmdk", "fio", "4k", 1),
    Case("stream 4K random q32", "stream.vmdk", "fio", "4k", 32),
    Case("stream 4K random q32 x4", "stream.vmdk", "fio", "4k", 32, 4),
    Case("stream 64K sequential q8", "stream.vmdk", "fio", "64k", 8, random=False),
    Case("stream nbdcopy", "stream.vmdk", "copy"),
    Case("sparse status 64K windows", "half.vmdk", "status"),
    Case("sparse map", "half.vmdk", "map"),
    Case("1 TiB empty nbdinfo --map", "empty.vmdk", "nbdinfo"),
    Case("1 TiB empty map", "empty.vmdk", "map"),
)


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def make_inputs(directory: Path, size: int) -> None:
    """Make the images that are not there yet, with qemu-img."""

    def image(*command: str) -> None:
        target = directory / command[-1] if command[0] == "convert" else directory / command[-2]
        if not target.exists():
            subprocess.run(["qemu-img", *command], cwd=directory, check=True, stdout=subprocess.DEVNULL)

    for name, content in (("half.raw", noise()), ("files.raw", files())):
        if not (directory / name).exists():
            half_full(directory / name, size if name == "half.raw" else size // 4, content)
    image("convert", "-f", "raw", "-O", "vmdk", "half.raw", "half.vmdk")
    image("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", "half.raw", "whole.vmdk")
    image("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "files.raw", "stream.vmdk")
    image("create", "-q", "-f", "vmdk", "empty.vmdk", "1T")


def warm(directory: Path, image: str) -> None:
    """Bring an image into the page cache."""
    stem = image.removesuffix(".vmdk")
    for path in (directory / image, directory / f"{stem}-flat.vmdk"):
        if path.exists() and path.stat().st_blocks > 2048:
            subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Running:
    """A server, and how to reach it."""

    process: subprocess.Popen[bytes]
    socket: str

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def cpu(self) -> float:
        """Return the seconds all its processes have used, their threads that ended included."""
        return sum(time.clock_gettime(_clock(pid)) for pid in _family(self.process.pid))


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _clock(pid: int) -> int:
    """Return the number of a process's CPU clock (clock_getcpuclockid): nanoseconds; /proc/PID/stat has ticks."""
    return (~pid << 3) | 2


COMMANDS = {
    "vmdkit": [sys.executable, "-m", "vmdkit.cli.main", "serve", "-t", "-U"],
    "qemu D": ["qemu-nbd", "-r", "-t", "-e", "16", "-f", "vmdk", "-k"],
    "qemu U": ["qemu-nbd", "-r", "-t", "-e", "16", "-f", "vmdk", "--aio=io_uring", "-k"],
}


@contextlib.contextmanager
def servers(image: Path, scratch: str) -> Iterator[dict[str, Running]]:
    """Run the three servers of an image."""
    running: dict[str, Running] = {}
    with contextlib.ExitStack() as stack:
        for name, command in COMMANDS.items():
            path = os.path.join(scratch, f"{name.replace(' ', '')}.sock")
            process = stack.enter_context(subprocess.Popen([*command, path, str(image)]))
            stack.callback(process.terminate)
            running[name] = Running(process, path)
        for each in running.values():
            deadline = time.monotonic() + 20
            while not os.path.exists(each.socket):
                if time.monotonic() > deadline or each.process.poll() is not None:
                    raise SystemExit(f"{each.process.args!r} does not serve")
                time.sleep(0.01)
        yield running


# ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def work(case: Case, uri: str, seconds: float) -> tuple[float, float]:
    """Do the work once; returns operations a second and how many there were."""
    if case.kind == "fio":
        return _fio(case, uri, seconds)
    if case.kind == "status":
        rate = float(_run("/usr/bin/python3", "-c", STATUS_CLIENT, uri, str(seconds)))
        return rate, rate * seconds
    if case.kind == "map":
        rate, count = _run("/usr/bin/python3", "-c", MAP_CLIENT, uri, str(seconds)).split()
        return float(rate), int(count)
    begun = time.perf_counter()
    if case.kind == "copy":
        _run("nbdcopy", uri, "null:")
    else:
        _run("nbdinfo", "--map", "--totals", uri)
    return 1 / (time.perf_counter() - begun), 1


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def _fio(case: Case, uri: str, seconds: float) -> tuple[float, float]:
    told = _run(
        "fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--rw=" + ("randread" if case.random else "read"),
        f"--bs={case.block}", f"--iodepth={case.depth}", f"--numjobs={case.jobs}", "--time_based",
        f"--runtime={round(seconds * 1000)}ms", "--group_reporting", "--output-format=json", "--randrepeat=0",
        "--norandommap", f"--max-jobs={case.jobs}",
    )  # fmt: skip
    read = json.loads(told[told.index("{") :])["jobs"][0]["read"]
    return read["iops"], read["total_ios"]


def verify(directory: Path, image: str, uri: str, scratch: str) -> None:
    """Compare all bytes our server gives with what qemu-img reads."""
    ours, theirs = (os.path.join(scratch, name) for name in ("ours.raw", "theirs.raw"))
    _run("nbdcopy", uri, ours)
    _run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(directory / image), theirs)
    _run("cmp", ours, theirs)
    os.unlink(ours)
    os.unlink(theirs)


def measure(case: Case, directory: Path, rounds: int, seconds: float, verified: set[str]) -> dict[str, object]:
    """Run a case; returns what is to be printed."""
    names = list(COMMANDS)
    rates: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    warm(directory, case.image)
    with tempfile.TemporaryDirectory(dir=directory) as scratch, servers(directory / case.image, scratch) as running:
        if case.image not in verified and case.image != "empty.vmdk":
            verify(directory, case.image, running["vmdkit"].uri, scratch)
            verified.add(case.image)
        for name in names:
            work(case, running[name].uri, min(seconds, 0.3))  # tables are read, code is warm
        for turn in range(rounds):
            for name in names[turn % 3 :] + names[: turn % 3]:
                before = running[name].cpu()
                rate, count = work(case, running[name].uri, seconds)
                rates[name].append(rate)
                costs[name].append((running[name].cpu() - before) / count)
    ours, d, u = (rates[name] for name in names)
    speed = [a / max(b, c) for a, b, c in zip(ours, d, u, strict=True)]
    cpu = statistics.median(costs["vmdkit"]) / max(min(statistics.median(costs[name]) for name in names[1:]), 1e-9)
    return {
        "case": case.name,
        "rate": {name: round(statistics.median(rates[name]), 2) for name in names},
        "cpu_us": {name: round(statistics.median(costs[name]) * 1e6, 2) for name in names},
        "ratio": round(statistics.median(speed), 2),
        "range": [round(min(speed), 2), round(max(speed), 2)],
        "cpu_ratio": round(cpu, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller images, fewer and shorter rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each fio and status run")
    parser.add_argument("--case", action="append", default=[], metavar="WORD", help="only cases whose name has WORD")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "out" / "nbd")
    args = parser.parse_args()
    directory = args.directory / ("quick" if args.quick else "full")
    directory.mkdir(parents=True, exist_ok=True)
    compile_package()
    make_inputs(directory, GIB // 2 if args.quick else 2 * GIB)
    rounds = args.rounds or (3 if args.quick else 5)
    seconds = args.seconds or (0.7 if args.quick else 1.5)
    results, verified = [], set[str]()
    for case in CASES:
        if args.case and not any(word in case.name for word in args.case):
            continue
        results.append(measure(case, directory.resolve(), rounds, seconds, verified))
        print(json.dumps(results[-1]), flush=True)
    print("\n| case | vmdkit | qemu D | qemu U | x better qemu | CPU/op |\n|---|---|---|---|---|---|")
    for each in results:
        cells = " | ".join(f"{each['rate'][name]:,}" for name in COMMANDS)  # type: ignore[index]
        low, high = each["range"]  # type: ignore[misc]
        print(f"| {each['case']} | {cells} | **{each['ratio']}** [{low}-{high}] | {each['cpu_ratio']} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
