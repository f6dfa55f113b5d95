# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""At least 10,000 random operations over every writable subformat, and what qemu, 7-Zip and libvmdk read in the end.

No peer reads everything: 7-Zip knows no deltas, libvmdk refuses grains below 8 KiB and has no zero grains. VMDKIT_SEED
takes other lives, VMDKIT_OPERATIONS more operations for each kind of disk.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from machine import KINDS, live, ours
from require import requires, requires_module

if TYPE_CHECKING:
    from pathlib import Path

TOTAL = 10_000
OPERATIONS = int(os.environ.get("VMDKIT_OPERATIONS", str(-(-TOTAL // len(KINDS)))))
PYVMDK = """
import pyvmdk, sys
above, kept = None, []
for path in sys.argv[1:]:  # the parent first
    handle = pyvmdk.handle()
    handle.open(path)
    handle.open_extent_data_files()
    if above is not None:
        handle.set_parent(above)
    above = handle
    kept.append(handle)  # a child holds its parent by address only
left = above.get_media_size()
while left:
    piece = above.read_buffer(min(left, 1 << 20))
    if not piece:
        raise SystemExit(f"{left} bytes are missing")
    sys.stdout.buffer.write(piece)
    left -= len(piece)
"""


def run(*words: Any) -> bytes:
    done = subprocess.run([*map(str, words)], capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout[-500:] + done.stderr).decode(errors="replace")
    return done.stdout


def links(path: Path) -> list[str]:
    """Return the chain, the base first."""
    found = []
    with vmdkit.open(path) as disk:
        link: Any = disk
        while link is not None:
            found.append(link.name)
            link = link.parent
    return found[::-1]


def peers(kind: str, path: Path, due: bytes) -> None:
    raw = path.with_suffix(".raw")
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw)
    assert raw.read_bytes() == due, "qemu reads something else"
    run("qemu-img", "check", "-q", "-f", "vmdk", path)
    chain = links(path)
    if len(chain) == 1 and not kind.startswith("cowd"):
        assert run("7zz", "x", "-tvmdk", "-so", path) == due, "7-Zip reads something else"
    if not kind.startswith(("cowd", "vmfs")) and "v2" not in kind:
        assert run("/usr/bin/python3", "-c", PYVMDK, *chain) == due, "libvmdk reads something else"
    ours(path, due)


@pytest.mark.parametrize("kind", KINDS)
def test_a_life_at_random(kind: str) -> None:
    requires("qemu-img>=7", "7zz")
    requires_module("pyvmdk")
    assert OPERATIONS * len(KINDS) >= TOTAL or "VMDKIT_OPERATIONS" in os.environ
    done = live(kind, OPERATIONS, partial(peers, kind))
    assert done.total() >= OPERATIONS
    expected = {
        "pwrite",
        "zero",
        "trim",
        "flush",
        "pread",
        "writers of one grain",
        "reopen",
        "snapshot",
        "commit",
        "compact",
    }
    assert expected <= done.keys(), done
    assert max(done.values()) < OPERATIONS // 2, done  # no verb is nearly all
