# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Writing through NBD, beside qemu-nbd in the same run: `bench_write.py [--quick] [--case WORD]...`.

The servers of a case run side by side, each on its own disk; only one has work at a time and their turns rotate, so
that what is kept are ratios within a round. fio measures itself (operations a second from its JSON, without its
start), nbdcopy is timed as a process, with its final flush. Processor time is the server's own, for each operation,
its last barrier included. Before each turn dirty pages are written back and fresh memory is touched, because a
virtual machine may have to get it from its host, which costs whoever is first.

Copying and allocating get a fresh disk for each turn. After the first round the copies are compared with the source;
all disks must be clean for `qemu-img check`. One JSON object a case goes to stdout, then a table: median
[least - most] of our rate divided by that of the better qemu-nbd (default, --aio=io_uring), of its default, and of
--cache=unsafe, which is told not to make anything durable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Note = Callable[[str, "Running"], None]

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
OURS, DEFAULT, URING, UNSAFE = "vmdkit", "qemu", "qemu io_uring", "qemu unsafe"
COMMANDS = {
    OURS: [sys.executable, "-m", "vmdkit.cli.main", "serve", "-t", "-w", "-U"],
    DEFAULT: ["qemu-nbd", "-t", "-e", "16", "-f", "vmdk", "-k"],
    URING: ["qemu-nbd", "-t", "-e", "16", "-f", "vmdk", "--aio=io_uring", "-k"],
    UNSAFE: ["qemu-nbd", "-t", "-e", "16", "-f", "vmdk", "--cache=unsafe", "-k"],
}


@dataclass(frozen=True)
class Case:
    """One workload on a disk of ``size`` MiB; ``fresh`` takes an empty disk for each turn, else one full of data."""

    name: str
    size: int
    fresh: bool
    block: str = ""  # none: nbdcopy
    depth: int = 1
    pattern: str = "randwrite"
    operations: int = 0  # none: as long as the turn lasts
    flush_each: int = 0


CASES = (
    Case("nbdcopy into an empty disk", 1024, True),
    Case("4K random, unallocated, flush each 64", 8192, True, "4k", 64, operations=16384, flush_each=64),
    Case("4K rewrite q1", 512, False, "4k"),
    Case("4K rewrite q32", 512, False, "4k", 32),
    Case("64K rewrite q8", 512, False, "64k", 8, "write"),
    Case("1M rewrite q4", 512, False, "1m", 4, "write"),
)


def run(*command: str) -> str:
    """Run a program that has to succeed; return what it says."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@dataclass
class Running:
    """A server at work on a disk of its own."""

    process: subprocess.Popen[bytes]
    disk: Path
    socket: str

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def cpu(self) -> float:
        """Return the processor seconds it has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / TICKS

    def peak(self) -> float:
        """Return the most memory it ever held, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextlib.contextmanager
def server(name: str, disk: Path) -> Iterator[Running]:
    """Serve a disk until the block ends; the server has to end well."""
    socket = str(disk.with_suffix(".sock"))
    Path(socket).unlink(missing_ok=True)
    process = subprocess.Popen([*COMMANDS[name], socket, str(disk)])
    try:
        while not os.path.exists(socket):
            if process.poll() is not None:
                raise SystemExit(f"{process.args!r} does not serve")
            time.sleep(0.01)
        yield Running(process, disk, socket)
    finally:
        process.terminate()
        code = process.wait()
    if code not in (0, -15, 128 + 15):
        raise SystemExit(f"{process.args!r} ended with {code}")


def settle(amount: int) -> None:
    """Write back what is dirty, and touch memory that will be needed."""
    os.sync()
    with tempfile.TemporaryFile(dir=".") as file:
        piece = bytes(MIB)
        for _ in range(amount):
            file.write(piece)


def work(case: Case, uri: str, source: Path, seconds: float) -> tuple[float, float]:
    """Do a turn's work; return operations a second (for a copy copies) and how many there were."""
    if not case.block:
        begun = time.perf_counter()
        run("nbdcopy", "--flush", str(source), uri)
        return 1 / (time.perf_counter() - begun), 1
    command = [
        "fio", "--name=w", "--ioengine=nbd", f"--uri={uri}", f"--rw={case.pattern}", f"--bs={case.block}",
        f"--iodepth={case.depth}", f"--size={case.size}m", "--output-format=json", "--randrepeat=0",
    ]  # fmt: skip
    if case.operations:
        command += ["--number_ios", str(case.operations)]
    else:
        command += ["--time_based", f"--runtime={round(seconds * 1000)}ms", "--norandommap"]
    if case.flush_each:
        command.append(f"--fsync={case.flush_each}")
    told = run(*command)
    write = json.loads(told[told.index("{") :])["jobs"][0]["write"]
    return write["iops"], write["total_ios"]


def turn(case: Case, running: Running, source: Path, seconds: float) -> tuple[float, float]:
    """Do a turn; return its rate, and the server's processor seconds for each operation."""
    settle(case.size * 3 // 2 if not case.block else 1024 if case.fresh else 64)
    before = running.cpu()
    rate, count = work(case, running.uri, source, seconds)
    return rate, (running.cpu() - before) / count


def on_fresh_disks(case: Case, home: Path, source: Path, orders: list[list[str]], note: Note) -> None:
    """Give each turn an empty disk."""
    disk = home / "disk.vmdk"
    for number, order in enumerate(orders):
        for name in order:
            run("qemu-img", "create", "-q", "-f", "vmdk", str(disk), f"{case.size}M")
            with server(name, disk) as running:
                note(name, running)
            run("qemu-img", "check", "-q", str(disk))
            if not case.block and not number:
                run("qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", str(source), str(disk))
            disk.unlink()


def on_full_disks(case: Case, home: Path, source: Path, orders: list[list[str]], note: Note) -> None:
    """Give each server a disk full of data, for all rounds."""
    disks = {name: home / f"{name.replace(' ', '')}.vmdk" for name in orders[0]}
    with contextlib.ExitStack() as stack:
        for disk in disks.values():
            shutil.copyfile(home / "full.vmdk", disk)
        servers = {name: stack.enter_context(server(name, disk)) for name, disk in disks.items()}
        for running in servers.values():
            work(case, running.uri, source, 0.3)  # tables are read, code is warm
        for order in orders:
            for name in order:
                note(name, servers[name])
    for disk in disks.values():
        run("qemu-img", "check", "-q", str(disk))
        disk.unlink()


def measure(case: Case, home: Path, source: Path, rounds: int, seconds: float) -> dict[str, object]:
    """Run a case; return what is to be printed."""
    names = [name for name in COMMANDS if not case.block or name != UNSAFE]
    rates: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    peak = 0.0

    def note(name: str, running: Running) -> None:
        nonlocal peak
        rate, cost = turn(case, running, source, seconds)
        rates[name].append(rate)
        costs[name].append(cost)
        if name == OURS:
            peak = max(peak, running.peak())

    orders = [names[at % len(names) :] + names[: at % len(names)] for at in range(rounds)]
    if case.fresh:
        on_fresh_disks(case, home, source, orders, note)
    else:
        on_full_disks(case, home, source, orders, note)

    def against(*others: str) -> list[float]:
        best = [max(rates[name][at] for name in others) for at in range(rounds)]
        return [mine / theirs for mine, theirs in zip(rates[OURS], best, strict=True)]

    cheapest = min(statistics.median(costs[name]) for name in (DEFAULT, URING))
    return {
        "case": case.name,
        "rate": {name: round(statistics.median(rates[name]), 3) for name in names},
        "cpu_us": {name: round(statistics.median(costs[name]) * 1e6, 2) for name in names},
        "better": against(DEFAULT, URING),
        "default": against(DEFAULT),
        "unsafe": against(UNSAFE) if UNSAFE in names else [],
        "cpu_ratio": round(statistics.median(costs[OURS]) / max(cheapest, 1e-9), 2),
        "peak_mib": round(peak),
    }


def create(rounds: int, home: Path) -> dict[str, object]:
    """Time making a disk of 2 TiB, as whole processes; the file systems keep its tables as holes."""
    times: dict[str, list[float]] = {OURS: [], DEFAULT: []}
    commands = {
        OURS: [sys.executable, "-m", "vmdkit.cli.main", "create", "-q"],
        DEFAULT: ["qemu-img", "create", "-q", "-f", "vmdk"],
    }
    for _ in range(rounds + 1):
        for name, command in commands.items():
            disk = home / "large.vmdk"
            begun = time.perf_counter()
            run(*command, str(disk), "2048G")
            times[name].append(time.perf_counter() - begun)
            disk.unlink()
    ratios = [theirs / mine for mine, theirs in zip(times[OURS][1:], times[DEFAULT][1:], strict=True)]
    return {
        "case": "create 2 TiB",
        "rate": {name: round(1 / statistics.median(each[1:]), 2) for name, each in times.items()},
        "better": ratios, "default": ratios, "unsafe": [], "cpu_us": {}, "cpu_ratio": "", "peak_mib": "",
        "seconds": max(times[OURS][1:]),
    }  # fmt: skip


def show(values: list[float]) -> str:
    """Return median [least-most]."""
    return f"**{statistics.median(values):.1f}x** [{min(values):.1f}-{max(values):.1f}]" if values else ""


def inputs(home: Path) -> Path:
    """Make a source of 1 GiB and a disk of 512 MiB full of data."""
    source = home / "source.raw"
    with source.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(MIB))
    part = home / "part.raw"
    with part.open("wb") as file, source.open("rb") as whole:
        for _ in range(512):
            file.write(whole.read(MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", str(part), str(home / "full.vmdk"))
    part.unlink()
    return source


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each turn of rewriting")
    parser.add_argument("--case", action="append", default=[], metavar="WORD", help="only cases whose name has WORD")
    parser.add_argument("--directory", help="where to put the disks (default: the system's temporary directory)")
    args = parser.parse_args()
    rounds = args.rounds or (3 if args.quick else 6)
    seconds = args.seconds or (0.7 if args.quick else 1.5)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        os.chdir(folder)
        home = Path(folder)
        source = inputs(home)
        for case in CASES:
            if not args.case or any(word in case.name for word in args.case):
                rows.append(measure(case, home, source, rounds, seconds))
                print(json.dumps(rows[-1]), flush=True)
        if not args.case or any(word in "create 2 TiB" for word in args.case):
            rows.append(create(rounds, home))
            print(json.dumps(rows[-1]), flush=True)
        os.chdir("/")
    print("\n| writing | the better qemu-nbd | its default | its --cache=unsafe | CPU/op | peak MiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = " | ".join(show(row[key]) for key in ("better", "default", "unsafe"))  # type: ignore[arg-type]
        print(f"| {row['case']} | {cells} | {row['cpu_ratio']} | {row['peak_mib']} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
