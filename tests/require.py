# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Ask for the programs a test is measured against; without them it is skipped, or fails under VMDKIT_REQUIRE=all."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn

import pytest

# Options that print a version; --version where nothing is said.
_ASK: Final = {
    "7zz": ("i",),
    "vmdkinfo": ("-V",),
    "blkid": ("-V",),
    "debugfs": ("-V",),
    "e2fsck": ("-V",),
    "openssl": ("version",),
    "nbdsh": ("-c", "print(h.get_version())"),
}
_WISH: Final = re.compile(r"(?P<tool>[^<>=]+)(?:>=(?P<version>[\d.]+))?")


@functools.cache
def version_of(tool: str) -> tuple[int, ...] | None:
    """Return the version a tool prints, () if it prints none, None if there is no such tool or it does not run."""
    if shutil.which(tool) is None:
        return None
    try:
        told = subprocess.run(
            [tool, *_ASK.get(tool, ("--version",))], capture_output=True, timeout=30, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode:
        return None
    found = re.search(r"\d+(?:\.\d+)+|\b\d{8}\b", told.stdout + told.stderr)
    return tuple(int(number) for number in found.group().split(".")) if found else ()


def requires(*wishes: str) -> None:
    """Skip the test unless each tool is there: ``requires("qemu-img>=7", "nbdcopy")``."""
    for wish in wishes:
        match = _WISH.fullmatch(wish)
        if match is None:
            raise ValueError(f"{wish!r}: a tool, perhaps with >=VERSION, is due")
        have = version_of(match["tool"])
        if have is None:
            _absent(f"{match['tool']} is not installed (or does not run)")
        least = tuple(int(number) for number in (match["version"] or "0").split("."))
        if match["version"] and have < least:
            _absent(f"{wish} is needed, this is {'.'.join(map(str, have)) or 'of no known version'}")


@functools.cache
def _has_module(name: str) -> bool:
    done = subprocess.run(["/usr/bin/python3", "-c", f"import {name}"], capture_output=True, timeout=30, check=False)
    return done.returncode == 0


def requires_module(name: str) -> None:
    """Skip the test unless the system's Python has a module; Debian's packages are no use to ours."""
    if not _has_module(name):
        _absent(f"/usr/bin/python3 has no module {name}")


def golden() -> Path:
    """Return the directory of images made by VMware's own programs; skip the test where there is none."""
    places = [os.environ.get("VMDKIT_GOLDEN"), Path(__file__).parents[1] / "../shared/golden"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place).resolve()
    pytest.skip("no golden images: set VMDKIT_GOLDEN to their directory")


def _absent(reason: str) -> NoReturn:
    if os.environ.get("VMDKIT_REQUIRE") == "all":
        pytest.fail(f"{reason}, and VMDKIT_REQUIRE=all", pytrace=False)
    pytest.skip(reason)
