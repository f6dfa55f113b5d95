#!/usr/bin/env python3
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Copy from one NBD server to another, beside nbdcopy: whole processes, in turn, the bytes compared afterwards.

Prints a line of JSON for a pair of servers: median seconds, and the ratio to nbdcopy in each round (over 1: faster).
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
COMMANDS = {
    "nbdcopy": ["nbdcopy"],
    "vmdkit": [sys.executable, "-m", "vmdkit.cli.main", "copy", "-q"],
}
# what serves, with SOCK, SIZE (bytes) and FILE to be filled in
SERVERS = {
    "nbdkit memory": ["nbdkit", "-f", "-U", "SOCK", "memory", "SIZE"],
    "nbdkit file": ["nbdkit", "-f", "-U", "SOCK", "file", "FILE"],
    "qemu-nbd raw": ["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", "SOCK", "FILE"],
}


@contextlib.contextmanager
def serving(name: str, directory: str, role: str, size: int) -> Iterator[str]:
    sock, file = os.path.join(directory, f"{role}.sock"), os.path.join(directory, f"{role}.raw")
    with open(file, "wb") as made:
        made.truncate(size)
    words = [{"SOCK": sock, "SIZE": str(size), "FILE": file}.get(word, word) for word in SERVERS[name]]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + 20
            while not os.path.exists(sock):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"{words} does not serve")
                time.sleep(0.01)
            time.sleep(0.1)
            yield f"nbd+unix:///?socket={sock}"
        finally:
            process.kill()


def fill(uri: str, directory: str, size: int) -> None:
    """Put random bytes on a server."""
    path = os.path.join(directory, "content.raw")
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    subprocess.run(["nbdcopy", path, uri], check=True)
    os.unlink(path)


def measure(name: str, size: int, rounds: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        one, two = (stack.enter_context(serving(name, directory, role, size)) for role in ("one", "two"))
        fill(one, directory, size)
        for turn in range(rounds + 1):  # the first warms up
            for command, words in COMMANDS.items():
                begun = time.perf_counter()
                subprocess.run([*words, one, two], check=True)
                if turn:
                    seconds[command].append(time.perf_counter() - begun)
        compare = [sys.executable, "-m", "vmdkit.cli.main", "compare", "-q", one, two]
        subprocess.run(compare, check=True)
    ratios = [theirs / ours for theirs, ours in zip(seconds["nbdcopy"], seconds["vmdkit"], strict=True)]
    return {
        "case": f"{name}, {size // MIB} MiB",
        "seconds": {command: round(statistics.median(each), 3) for command, each in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less, and fewer rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--size", type=int, help="MiB")
    parser.add_argument("--case", action="append", default=[], metavar="WORD", help="only servers whose name has WORD")
    args = parser.parse_args()
    size = (args.size or (512 if args.quick else 2048)) * MIB
    for name in SERVERS:
        if not args.case or any(word in name for word in args.case):
            print(json.dumps(measure(name, size, args.rounds or (3 if args.quick else 7))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
