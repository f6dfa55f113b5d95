# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The same programs under libnbd and under vmdkit.nbd: one import differs, the output does not."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest

from interop.handle_scripts import PRELUDE, SCRIPTS
from layout import fill
from nbdserver import listening, psk
from require import requires

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIBNBD: Final = "/usr/bin/python3"  # Debian's python3-libnbd is for the system's Python only
SERVE: Final = [sys.executable, "-m", "vmdkit.cli.main", "serve"]


@pytest.fixture(scope="module", autouse=True)
def peers() -> None:
    requires("nbdkit", "qemu-nbd", "psktool")
    if subprocess.run([LIBNBD, "-c", "import nbd"], capture_output=True, check=False).returncode:
        requires("nbdsh")  # says that it is missing


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give what the programs need: a disk, a server on a socket, one with TLS and its keys."""
    at = tmp_path_factory.mktemp("handle")
    disk, sock, secure = at / "disk.raw", at / "nbd.sock", at / "tls.sock"
    with disk.open("wb") as file:
        file.write(fill("A", 65536, 0))
        file.truncate(1 << 20)
    keys = psk(at / "keys.psk")
    plain = ["nbdkit", "-f", "-U", str(sock), "memory", "1M"]
    with_tls = ["nbdkit", "-f", "-U", str(secure), "--tls=require", f"--tls-psk={keys}", "pattern", "1M"]
    servers = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for words in (plain, with_tls)]
    try:
        end = time.monotonic() + 15
        while not (listening(sock) and listening(secure)):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield {
            "DISK": str(disk), "SOCKET": str(sock), "TLS_SOCKET": str(secure), "KEYS": str(keys), "SERVE": repr(SERVE),
        }  # fmt: skip
    finally:
        for server in servers:
            server.kill()
            server.wait()


def told(python: str, program: str, directory: Path) -> list[str]:
    """Run a program and return what it printed, without what may differ between two runs."""
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, timeout=100, check=False, cwd=directory
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return [re.sub(r"socket=/tmp/[^ ]*", "socket=PATH", line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_output(name: str, places: dict[str, str], tmp_path: Path) -> None:
    program = SCRIPTS[name]
    for key, value in places.items():
        program = program.replace("{" + key + "}", value)
    program = PRELUDE + program.replace("{{", "{").replace("}}", "}")
    changed = program.replace("import nbd\n", "import vmdkit.nbd as nbd\n")
    assert changed != program
    theirs, ours = told(LIBNBD, program, tmp_path), told(sys.executable, changed, tmp_path)
    assert len(theirs) > 1
    assert ours == theirs


def test_every_number_has_the_same_value() -> None:
    """Also that no name is missing, except for those of the asynchronous interface."""
    program = "import nbd\nfor n in sorted(dir(nbd)):\n    if n.isupper(): print(n, getattr(nbd, n))"
    listing = subprocess.run([LIBNBD, "-c", program], capture_output=True, text=True, check=True).stdout
    from vmdkit import nbd

    for line in listing.splitlines():
        name, value = line.split(" ", 1)
        if name not in ("NBD",) and not name.startswith("AIO_"):
            assert str(getattr(nbd, name)) == value, name


def test_every_call_is_there() -> None:
    program = "import nbd\nprint(*[n for n in dir(nbd.NBD) if not n.startswith('_')])"
    listing = subprocess.run([LIBNBD, "-c", program], capture_output=True, text=True, check=True).stdout
    from vmdkit.nbd import NBD

    missing = [name for name in listing.split() if not hasattr(NBD, name) and not name.startswith("aio_")]
    assert missing == ["poll"]
