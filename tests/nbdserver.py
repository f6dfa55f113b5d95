# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Run ``vmdkit serve`` as a process of its own, and look at it from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND: Final = [sys.executable, "-m", "vmdkit.cli.main", "serve"]
PATIENCE: Final = 15.0  # seconds
BUGS: Final = ("Traceback", "this is a bug", "Exception ignored", "Error:")


class Served:
    """A running server: its process, the socket it listens on, what it wrote to stderr."""

    def __init__(self, process: subprocess.Popen[bytes], path: str, stderr: Path) -> None:
        self.process = process
        self.path = path
        self.stderr = stderr

    def uri(self, name: str = "", scheme: str = "nbd+unix") -> str:
        """Return the URI of an export."""
        return f"{scheme}:///{name}?socket={self.path}"

    def qemu(self, name: str = "") -> str:
        """Return what qemu calls that."""
        return f"nbd+unix:///{name}?socket={self.path}"

    def pids(self) -> list[int]:
        """Return the server and its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def descriptors(self) -> int:
        """Return how many files all its processes have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def resident(self) -> int:
        """Return the bytes of memory all its processes hold."""
        page, total = os.sysconf("SC_PAGE_SIZE"), 0
        for pid in self.pids():
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        return total

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """Return what it wrote to stderr."""
        return self.stderr.read_text(errors="replace")

    def bugs(self) -> str:
        """Return what it wrote if that looks like a bug of the server."""
        said = self.said()
        return said if any(word in said for word in BUGS) else ""

    def settle(self, descriptors: int) -> int:
        """Wait until no more than ``descriptors`` are open; returns how many are."""
        return eventually(self.descriptors, descriptors)

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


def listening(path: Path) -> bool:
    """Tell whether somebody takes connections at a Unix socket: its name is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def eventually(count: Callable[[], int], most: int, patience: float = 5.0) -> int:
    """Call ``count`` until it says at most ``most`` or patience ends; returns what it said."""
    end = time.monotonic() + patience
    while True:
        now = count()
        if now <= most or time.monotonic() > end:
            return now
        time.sleep(0.01)


@contextmanager
def serving(directory: Path, *words: object) -> Iterator[Served]:
    """Serve on a socket in ``directory`` until the block ends; the server must then end in order, without a bug."""
    path, log, pid_file = (directory / f"nbd.{suffix}" for suffix in ("sock", "stderr", "pid"))
    command = [*COMMAND, "-U", str(path), "-P", str(pid_file), *map(str, words)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=directory)
    served = Served(process, str(path), log)
    try:
        _wait_for(served, pid_file)
        yield served
    finally:
        if served.alive():
            process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
    assert not served.bugs(), served.bugs()
    assert process.returncode == 0, (process.returncode, served.said())


def _wait_for(served: Served, pid_file: Path) -> None:
    """Wait for the process ID, which is written once clients can connect; a look at the socket would be a client."""
    end = time.monotonic() + PATIENCE
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        if not served.alive():
            raise RuntimeError(f"the server ended with {served.process.returncode}: {served.said()}")
        if time.monotonic() > end:
            raise RuntimeError("the server does not listen")
        time.sleep(0.005)


# ── certificates and keys ────────────────────────────────────────────────────────────────────────────────────────

_CA: Final = 'cn = "a test"\nca\ncert_signing_key\nexpiration_days = 2\n'
_SERVER: Final = 'cn = "localhost"\ndns_name = "localhost"\nip_address = "127.0.0.1"\ntls_www_server\n'
_CLIENT: Final = 'cn = "a client"\ntls_www_client\n'
_LEAF: Final = "signing_key\nencryption_key\nexpiration_days = 2\n"


def certificates(directory: Path) -> Path:
    """Make a CA, and certificates of a server called localhost and of a client, as libnbd and qemu name the files."""
    directory.mkdir()
    _key(directory / "ca-key.pem")
    _sign(directory, "ca-cert.pem", "ca-key.pem", _CA, "--generate-self-signed")
    for name, text in (("server", _SERVER), ("client", _CLIENT)):
        _key(directory / f"{name}-key.pem")
        _sign(
            directory, f"{name}-cert.pem", f"{name}-key.pem", text + _LEAF, "--generate-certificate",
            "--load-ca-certificate", "ca-cert.pem", "--load-ca-privkey", "ca-key.pem",
        )  # fmt: skip
    return directory


def psk(path: Path, user: str = "alice") -> Path:
    """Make a file with a key for ``user``."""
    path.touch(mode=0o600)
    subprocess.run(["psktool", "-u", user, "-p", path], check=True, capture_output=True)
    return path


def _key(path: Path) -> None:
    command = ["certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def _sign(directory: Path, certificate: str, key: str, template: str, *words: str) -> None:
    (directory / "template").write_text(template)
    command = ["certtool", *words, "--load-privkey", key, "--template", "template", "--outfile", certificate]
    subprocess.run(command, check=True, capture_output=True, cwd=directory)
