# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Writing through NBD, beside qemu-nbd in the same run: `bench_write.py [--quick]`.

Every server gets a fresh disk; rounds are interleaved, the server's closing (its last barrier) is part of the time,
and after each round the disk is compared with what was written. One JSON object for each case, then a table of
ratios: the time of the better qemu-nbd setting (default, --aio=io_uring) by ours, median [least to most].
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


@dataclass(frozen=True)
class Writer:
    """A server: the command that serves ``disk`` at ``socket`` for one client."""

    name: str
    command: Callable[[str, str], list[str]]


WRITERS = [
    Writer("vmdkit", lambda disk, socket: ["vmdkit", "serve", "-t", "-w", "-U", socket, disk]),
    Writer("qemu-nbd", lambda disk, socket: ["qemu-nbd", "-t", "-f", "vmdk", "-k", socket, disk]),
    Writer(
        "qemu-nbd io_uring", lambda disk, socket: ["qemu-nbd", "-t", "--aio=io_uring", "-f", "vmdk", "-k", socket, disk]
    ),
    Writer(
        "qemu-nbd unsafe", lambda disk, socket: ["qemu-nbd", "-t", "--cache=unsafe", "-f", "vmdk", "-k", socket, disk]
    ),
]


@dataclass(frozen=True)
class Case:
    """One workload: ``prepare`` makes the disk, ``client`` writes to it through the URI."""

    name: str
    size: int
    full: bool
    client: Callable[[str, Path, bool], list[str]]
    same: bool  # the disk ends equal to the source


def nbdcopy(uri: str, source: Path, _quick: bool) -> list[str]:
    """Copy the source, and flush."""
    return ["nbdcopy", "--flush", str(source), uri]


def fio(block: str, depth: int, pattern: str, *extra: str) -> Callable[[str, Path, bool], list[str]]:
    """Return a fio job of a fixed number of operations."""

    def command(uri: str, _source: Path, quick: bool) -> list[str]:
        count = "16M" if quick else "64M"
        if block != "4k":
            count = "128M" if quick else "512M"
        return ["fio", "--name=w", "--ioengine=nbd", f"--uri={uri}", f"--rw={pattern}", f"--bs={block}",

                f"--iodepth={depth}", f"--io_size={count}", "--size=512M",
                "--randseed=7", "--output=/dev/null", *extra]  # fmt: skip

    return command


CASES = [
    Case("nbdcopy into an empty disk", 1024 * MIB, False, nbdcopy, True),
    Case("4k random, unallocated, flush each 64", 8192 * MIB, False, fio("4k", 16, "randwrite", "--fsync=64"), False),
    Case("4k rewrite, depth 1", 512 * MIB, True, fio("4k", 1, "randwrite"), False),
    Case("4k rewrite, depth 32", 512 * MIB, True, fio("4k", 32, "randwrite"), False),
    Case("64k rewrite", 512 * MIB, True, fio("64k", 8, "write"), False),
    Case("1M rewrite", 512 * MIB, True, fio("1M", 4, "write"), False),
]


def prepare(case: Case, home: Path) -> Path:
    """Make a fresh disk for a round."""
    disk = home / "disk.vmdk"
    disk.unlink(missing_ok=True)
    if case.full:
        shutil.copyfile(home / "full.vmdk", disk)
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(disk), str(case.size)], check=True)
    os.sync()
    return disk


def once(writer: Writer, case: Case, home: Path, source: Path, quick: bool) -> tuple[float, float]:
    """Run one round; return wall seconds until the server has ended, and its processor seconds."""
    disk = prepare(case, home)
    socket = home / "s"
    socket.unlink(missing_ok=True)
    server = subprocess.Popen(writer.command(str(disk), str(socket)))
    while not socket.exists():
        if server.poll() is not None:
            raise RuntimeError(f"{writer.name} did not start")
        time.sleep(0.01)
    began = time.perf_counter()
    subprocess.run(case.client(f"nbd+unix:///?socket={socket}", source, quick), check=True)
    server.terminate()
    _, status, usage = os.wait4(server.pid, 0)
    wall = time.perf_counter() - began
    server.returncode = status
    if os.waitstatus_to_exitcode(status) not in (0, 128 + 15, -15):
        raise RuntimeError(f"{writer.name} ended with {status}")
    if case.same:
        subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", str(source), str(disk)], check=True)
    subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
    return wall, usage.ru_utime + usage.ru_stime


def measure(case: Case, home: Path, source: Path, rounds: int, quick: bool) -> dict[str, object]:
    """Interleave all writers, ``rounds`` times."""
    walls: dict[str, list[float]] = {writer.name: [] for writer in WRITERS}
    for _ in range(rounds):
        for writer in WRITERS:
            walls[writer.name].append(once(writer, case, home, source, quick)[0])
    ours = walls["vmdkit"]
    better = [min(pair) for pair in zip(walls["qemu-nbd"], walls["qemu-nbd io_uring"], strict=True)]
    ratios = {
        "better": [theirs / mine for theirs, mine in zip(better, ours, strict=True)],
        "default": [theirs / mine for theirs, mine in zip(walls["qemu-nbd"], ours, strict=True)],
        "unsafe": [theirs / mine for theirs, mine in zip(walls["qemu-nbd unsafe"], ours, strict=True)],
    }
    return {"case": case.name, "seconds": walls, "ratios": ratios}


def show(values: list[float]) -> str:
    """Return median [least-most]."""
    return f"{statistics.median(values):.1f}x [{min(values):.1f}-{max(values):.1f}]"


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--case", help="only cases whose name contains this")
    args = parser.parse_args()
    rounds = args.rounds or (1 if args.quick else 5)
    os.environ["PATH"] = f"{Path(__file__).resolve().parent.parent / '.venv' / 'bin'}:{os.environ['PATH']}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        source = home / "source.raw"
        with source.open("wb") as file:
            for _ in range(1024):
                file.write(os.urandom(MIB))
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(home / "full.vmdk"), "512M"], check=True)
        part = home / "part.raw"
        with part.open("wb") as file, source.open("rb") as whole:
            shutil.copyfileobj(_Limited(whole, 512 * MIB), file)  # type: ignore[arg-type]
        subprocess.run(["qemu-img", "convert", "-O", "vmdk", str(part), str(home / "full.vmdk")], check=True)
        part.unlink()
        for case in CASES:
            if args.case and args.case not in case.name:
                continue
            result = measure(case, home, source, rounds, args.quick)
            print(json.dumps(result), flush=True)
            rows.append(result)
    print("\n| writing | beside the better qemu-nbd | its default | its --cache=unsafe |\n|---|---|---|---|")
    for row in rows:
        ratios = row["ratios"]
        print(f"| {row['case']} | {show(ratios['better'])} | {show(ratios['default'])} | {show(ratios['unsafe'])} |")  # type: ignore[index]


class _Limited:
    """The first bytes of a file."""

    def __init__(self, file: object, left: int) -> None:
        self._file, self._left = file, left

    def read(self, count: int = MIB) -> bytes:
        """Read no further than the limit."""
        data: bytes = self._file.read(min(count, self._left))  # type: ignore[attr-defined]
        self._left -= len(data)
        return data


if __name__ == "__main__":
    main()
