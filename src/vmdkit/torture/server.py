# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Torture any NBD server that writes an image: start it under strace, write through it, judge what a cut leaves.

Commands are the user's, with names in braces filled in; they run in the directory that holds the images, so names are
bare. What stands in square brackets of the create command is for disks with a parent only::

    create   qemu-img create -q -f vmdk [-b {parent} -F vmdk] {image} {size}
    server   qemu-nbd -f vmdk -k {socket} {image}
    read     qemu-img convert -f vmdk -O raw {image} {out}
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError, VmdkitError
from vmdkit.torture import strace
from vmdkit.torture.client import Client, Clock
from vmdkit.torture.fixtures import pattern
from vmdkit.torture.harness import Finding, Recording
from vmdkit.torture.promise import Promises, compare
from vmdkit.torture.tell import tell
from vmdkit.torture.workload import Driver, Mix, actions, run
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmdkit.torture.harness import Files
    from vmdkit.torture.promise import Expected
    from vmdkit.torture.replay import State

_PATIENCE = 30.0  # seconds for a server to listen, a command to end
_STEP = MIB
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Commands:
    """What the user gave. ``check`` is run on each state too, where given; its exit codes 0 and 3 are good."""

    create: str
    server: str
    read: str
    check: str = ""
    parent: bool = False
    size: int = 8 * MIB
    image: str = "disk.vmdk"
    base: str = "base.vmdk"

    def fill(self, command: str, *, child: bool = False, **more: str) -> list[str]:
        """Return the words of a command; raises UsageError for a name in braces that means nothing."""
        known = {"image": self.image, "parent": self.base, "size": str(self.size), **more}
        command = _BRACKETS.sub(r"\1" if child else "", command)

        def value(match: re.Match[str]) -> str:
            if match[1] not in known:
                raise UsageError(f"{match[0]} means nothing here; {', '.join(f'{{{name}}}' for name in known)} do")
            return known[match[1]]

        return [_PLACEHOLDER.sub(value, word) for word in shlex.split(command)]


def call(words: list[str], directory: str) -> None:
    """Run a command to its end; raises UsageError with what it said where it fails."""
    try:
        done = subprocess.run(
            words, cwd=directory, capture_output=True, text=True, timeout=_PATIENCE, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{words[0]}: {error}") from error
    if done.returncode:
        raise UsageError(f"{shlex.join(words)} failed: {(done.stderr or done.stdout).strip()}")


class Server:
    """A running server, perhaps under strace; a context."""

    def __init__(self, words: list[str], directory: str, socket: str, trace: str = "") -> None:
        self._traced = bool(trace)
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed below
        words = strace.command(trace, words) if trace else words
        self._process = subprocess.Popen(
            words, cwd=directory, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self._socket = socket

    def connect(self) -> Client:
        """Return a connection, once the server listens."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if os.path.exists(self._socket):
                try:
                    return Client(self._socket)
                except (ConnectionError, FileNotFoundError):
                    pass
            if self._process.poll() is not None:
                raise UsageError(f"the server has ended: {self.said()}")
            time.sleep(0.02)
        raise UsageError(f"the server does not listen: {self.said()}")

    def said(self) -> str:
        """Return what the server printed."""
        self._log.seek(0)
        return self._log.read().strip()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end by itself for a moment, then ask it to, then make it."""
        for number, patience in ((None, 1.0), (signal.SIGTERM, _PATIENCE), (signal.SIGKILL, _PATIENCE)):
            if number is not None:
                for pid in self._targets():
                    os.kill(pid, number)
            try:
                self._process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self._log.close()

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        for pid in self._targets():
            os.kill(pid, signal.SIGKILL)
        self._process.wait(_PATIENCE)

    def _targets(self) -> list[int]:
        """Return what a signal goes to: the traced program rather than strace."""
        pid = self._process.pid
        if self._process.poll() is not None:
            return []
        if not self._traced:
            return [pid]
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()] or [pid]


def record(commands: Commands, directory: str, seed: int, requests: int, verbs: Sequence[str] = ()) -> Recording:
    """Create the disk in an empty directory, write through the server, and return what was recorded.

    Of ``verbs`` (default: all) those are sent that the server offers.
    """
    with ExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmdkit-torture-"))
        socket, trace = os.path.join(sockets, "nbd.sock"), os.path.join(sockets, "trace")
        initial = bytes(commands.size)
        if commands.parent:
            initial = pattern(1 << 40, commands.size, 0)
            call(commands.fill(commands.create, image=commands.base), directory)
            _fill(commands, directory, socket, initial)
        call(commands.fill(commands.create, child=commands.parent), directory)
        files = read_files(directory)
        server = stack.enter_context(Server(commands.fill(commands.server, socket=socket), directory, socket, trace))
        client = server.connect()
        stack.callback(client.close)
        if client.size != commands.size:
            raise UsageError(f"the server exports {client.size} bytes, {commands.size} were to be created")
        driver = Driver(client, Clock(), initial, seed)
        mix = _mix(client.offers, verbs)
        run(driver, actions(commands.size, 64 * KIB, requests, seed, mix))
        client.close()
        server.__exit__(None, None, None)
        with open(trace, encoding="ascii", errors="replace") as lines:
            entries = strace.parse(lines, directory, files)
        strace.complete(entries, files, read_files(directory))
    findings = [Finding("wrong while running", text) for text in driver.differed]
    name = os.path.basename(commands.fill(commands.server, socket="")[0]) + (" child" if commands.parent else "")
    return Recording(name, files, entries, Promises(initial, driver.requests), findings=findings)


def _mix(offers: set[str], verbs: Sequence[str]) -> Mix:
    usual, offered = Mix(), {"write", *offers, *(("allocate",) if "zero" in offers else ())}
    shares = {
        verb: getattr(usual, verb) if verb in offered and verb in (verbs or offered) else 0
        for verb in ("write", "zero", "allocate", "trim", "flush")
    }
    return replace(usual, **shares, fua=usual.fua if "fua" in offers else 0.0)


def _fill(commands: Commands, directory: str, socket: str, content: bytes) -> None:
    """Write all of the parent."""
    with Server(commands.fill(commands.server, socket=socket, image=commands.base), directory, socket) as server:
        client = server.connect()
        for at in range(0, len(content), _STEP):
            client.pwrite(content[at : at + _STEP], at)
        client.flush()
        client.close()
    if os.path.exists(socket):
        os.unlink(socket)


def read_files(directory: str) -> dict[str, bytes]:
    """Return every file of a directory."""
    files = {}
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                files[entry.name] = file.read()
    return files


def write_files(directory: str, files: Mapping[str, bytes | bytearray]) -> None:
    """Make a directory hold exactly these files."""
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False) and entry.name not in files:
            os.unlink(entry.path)
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)


class ServerJudge:
    """Judges states by the user's reader, in a directory of its own."""

    def __init__(self, commands: Commands, directory: str) -> None:
        self._commands = commands
        self._directory = directory
        self._written: dict[str, bytes | bytearray] = {}

    def __call__(self, files: Files, expected: Expected, state: State) -> Iterator[Finding]:
        """Return what is wrong."""
        self._put(files)
        out = os.path.join(self._directory, "..out")
        try:
            call(self._commands.fill(self._commands.read, out=out), self._directory)
            with open(out, "rb") as file:
                content = file.read()
            os.unlink(out)
        except (VmdkitError, OSError) as error:
            yield Finding("unreadable", str(error))
            return
        for wrong in compare(expected, content.ljust(self._commands.size, b"\0")[: self._commands.size])[:1]:
            yield Finding(wrong.kind, f"sector {wrong.sector} holds {tell(wrong.found)}")
        if self._commands.check:
            yield from self._check()

    def _put(self, files: Files) -> None:
        """Write the files that are not as the last state left them; a reader changes nothing."""
        changed = {name: content for name, content in files.items() if self._written.get(name) is not content}
        for name in self._written.keys() - files.keys():
            os.unlink(os.path.join(self._directory, name))
        for name, content in changed.items():
            with open(os.path.join(self._directory, name), "wb") as file:
                file.write(content)
        self._written = dict(files)

    def _check(self) -> Iterator[Finding]:
        words = self._commands.fill(self._commands.check)
        done = subprocess.run(
            words, cwd=self._directory, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
        if done.returncode not in (0, 3):
            yield Finding("check finds worse than leaks", (done.stdout + done.stderr).strip()[:500])
