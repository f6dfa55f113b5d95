# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""VMware's lock directories, ``disk.vmdk.lck/``: Lamport's bakery in a directory (format spec 1.13).

::

    D12345.lck/   somebody is entering: no number that is read now is final
    E12345.lck    a member that is being written, renamed to
    M12345.lck    a member: has the lock, or waits for those with a lower (number, name) that it conflicts with

A member is exactly 512 bytes of text: machine, process, number, S or X, when the process began, properties. What has
another form is deleted by VMware, so nothing of our own is ever put there.

A member is stale when it is of this machine and its process is dead, or began at another time. Stale ones are
removed, others never: neither those of another machine, nor those that cannot be understood.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vmdkit.errors import VmdkitError
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMBER = SECTOR  # bytes of a member, exactly
_NAME = re.compile(r"([MDE])(\d{5})\.lck")
_EXECUTION = re.compile(r"(\d{1,10})-(\d{1,20})(?:\((.*)\))?")
_INITIAL_NAMESPACE = 0xEFFFFFFC  # inode of the first PID namespace (linux/proc_ns.h)
_STEP = 0.05  # seconds between two looks
_ABANDONED = 60.0  # seconds after which a D directory, made and removed within milliseconds, is a dead one's
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class LockedError(VmdkitError):
    """Somebody else has the disk open; ``holder`` says who, as far as that can be known."""

    errno = errno.EBUSY

    def __init__(self, message: str, *, path: str, holder: str = "") -> None:
        super().__init__(message, path=path)
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a lock directory. ``number`` is -1 where its text cannot be understood."""

    name: str
    machine: str = ""
    execution: str = ""
    number: int = -1
    exclusive: bool = True
    created: str = "0"

    @property
    def stale(self) -> bool:
        """Whether its process was on this machine, and is no more."""
        match = _EXECUTION.fullmatch(self.execution)
        if self.machine != machine_id() or match is None:
            return False
        began = process_start(int(match[1]))
        return began is None or (int(match[2]) != 0 and began not in ("0", match[2]))

    @property
    def ours(self) -> bool:
        """Whether it is of this machine."""
        return self.machine == machine_id()

    @property
    def mine(self) -> bool:
        """Whether it is of this very process."""
        match = _EXECUTION.fullmatch(self.execution)
        return self.ours and match is not None and int(match[1]) == os.getpid()

    def __str__(self) -> str:
        match = _EXECUTION.fullmatch(self.execution)
        if self.number < 0:
            return f"an unknown program ({self.name} cannot be understood)"
        who = f"{match[3] or 'a program'} (process {match[1]})" if match else f"a program ({self.execution})"
        if self.mine:
            return f"this very process ({os.getpid()})"
        return f"{who} on this machine, {socket.gethostname()}" if self.ours else f"{who} on machine {self.machine}"


def encode(member: Member, directory: str) -> bytes:
    """Return the 512 bytes of a member of ``directory``."""
    kind = "X" if member.exclusive else "S"
    text = f"{member.machine} {member.execution} {member.number} {kind} {member.created} lc={location_hash(directory)}"
    return text.encode("ascii", "replace").ljust(_MEMBER, b"\0")


def decode(raw: bytes, name: str) -> Member:
    """Return the member that ``raw`` says; one of number -1 where it is none."""
    words = raw.rstrip(b"\0").decode("ascii", "replace").split()
    if len(raw) != _MEMBER or len(words) < 5 or words[3] not in ("S", "X") or not words[2].isdigit():
        return Member(name)
    return Member(name, words[0], words[1], int(words[2]), words[3] == "X", words[4])


def location_hash(directory: str) -> int:
    """Return the hash of a lock directory's path that members carry: 33 times and add, from 5381, 32 bits."""
    value = 5381
    for byte in os.fsencode(directory):
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


@cache
def machine_id() -> str:
    """Return what tells this machine, and this PID namespace, from others.

    A container sees other processes under a number than its host does: it counts as a machine of its own, so that
    nobody takes a living process for a dead one.
    """
    parts = [socket.gethostname()]
    with suppress(OSError), open("/etc/machine-id", encoding="ascii") as file:
        parts.append(file.read().strip())
    with suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
        parts += [str(namespace)] if namespace != _INITIAL_NAMESPACE else []
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()
    return "uuid=" + digest[:16].hex("-")


def process_start(pid: int) -> str | None:
    """Return when a process began, in ticks since the machine did; "0" if that is hidden, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode("ascii")
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"


def process_name(pid: int) -> str:
    """Return the name of a process, in characters that a member may hold."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read().strip()
    except OSError:
        name = b""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", name.decode("ascii", "replace")) or "vmdkit"


@cache
def _ourselves(pid: int) -> tuple[str, str]:
    """Return the execution ID of this process, number ``pid``, and when it began."""
    began = process_start(pid) or "0"
    return f"{pid}-{began}({process_name(pid)})", began


def directory_of(path: str) -> str:
    """Return the lock directory of a file."""
    return os.path.realpath(path) + ".lck"


def members(path: str) -> list[Member]:
    """Return the members of the lock directory of ``path``; empty where there is none."""
    directory = directory_of(path)
    try:
        names = sorted(os.listdir(directory))
    except NotADirectoryError:
        return [Member(os.path.basename(directory))]
    except OSError:
        return []
    return [member for name in names if name[0] == "M" and (member := read(directory, name)) is not None]


def read(directory: str, name: str) -> Member | None:
    """Return the member in file ``name``; None where it is gone, or its name is none of a member."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] != "M":
        return None
    try:
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        return Member(name)
    try:
        return decode(os.read(fd, _MEMBER + 1), name) if stat.S_ISREG(os.fstat(fd).st_mode) else Member(name)
    finally:
        os.close(fd)


class Membership:
    """A lock that this process has, or waits for. ``release`` may be called from anywhere, more than once."""

    def __init__(self, path: str, *, exclusive: bool) -> None:
        self.path = path
        self.exclusive = exclusive
        self._directory = directory_of(path)
        self._pid = os.getpid()
        self._member: Member | None = None

    def acquire(self, deadline: float) -> bool:
        """Wait for the lock until ``deadline`` (time.monotonic).

        Returns False where the directory cannot be written: then nobody can have a lock there but by other means.
        Raises LockedError, naming the holder, and OSError.
        """
        while self._member is None:
            if not self._make_directory():
                return False
            try:
                self._enter()
            except FileNotFoundError:  # somebody who left has just removed the directory
                continue
        try:
            self._wait(deadline)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Leave; in a process that was forked off, do nothing: the lock is its parent's."""
        member, self._member = self._member, None
        if member is None or self._pid != os.getpid():
            return
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, member.name))
        with suppress(OSError):
            os.rmdir(self._directory)

    def _make_directory(self) -> bool:
        try:
            os.mkdir(self._directory)
        except FileExistsError:
            if not os.path.isdir(self._directory):
                raise LockedError(
                    f"{self._directory} is a file, the lock of an ESX host; if nobody uses the disk, "
                    "'vmdkit unlock --force' removes it", path=self.path,
                ) from None  # fmt: skip
            return os.access(self._directory, os.W_OK | os.X_OK) or self._refuse_unwritable()
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            return False
        return True

    def _refuse_unwritable(self) -> bool:
        """A lock directory is there, and not ours to enter: a shared lock may do without, an exclusive one not."""
        holders = [member for member in members(self.path) if member.exclusive or self.exclusive]
        if not holders:
            return False
        raise LockedError(f"it is in use by {holders[0]}", path=self.path, holder=str(holders[0]))

    def _enter(self) -> None:
        """Take the next number: announce, look, write, show."""
        number = f"{random.randrange(100000):05d}"
        entering = os.path.join(self._directory, f"D{number}.lck")
        try:
            os.mkdir(entering)
        except FileExistsError:
            return
        try:
            if os.path.lexists(os.path.join(self._directory, f"M{number}.lck")):
                return
            highest = max((member.number for member in members(self.path)), default=0)
            execution, began = _ourselves(os.getpid())
            member = Member(
                f"M{number}.lck", machine_id(), execution, max(highest, 0) + 1, self.exclusive, began
            )  # fmt: skip
            written = os.path.join(self._directory, f"E{number}.lck")
            fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, encode(member, self._directory))
            finally:
                os.close(fd)
            os.rename(written, os.path.join(self._directory, member.name))
            self._member = member
        except FileExistsError:
            return
        finally:
            with suppress(OSError):
                os.rmdir(entering)

    def _wait(self, deadline: float) -> None:
        while True:
            holder = next(self._before_us(), None)
            if holder is None:
                return
            if time.monotonic() >= deadline:
                raise LockedError(f"it is in use by {holder}", path=self.path, holder=holder)
            time.sleep(_STEP)

    def _before_us(self) -> Iterator[str]:
        """Yield who has to leave before the lock is ours; removes what is stale.

        Members are listed after those who are entering: whoever was seen in neither list came after us, and knows.
        """
        own = self._member
        if own is None:
            return
        for name in os.listdir(self._directory):
            if name[0] == "D" and _NAME.fullmatch(name) and not self._is_abandoned(name):
                yield "somebody who is just opening it"
        for name in sorted(os.listdir(self._directory)):
            if name == own.name:
                continue
            member = read(self._directory, name)
            if member is None:
                continue
            if member.stale:
                with suppress(OSError):
                    os.unlink(os.path.join(self._directory, name))
            elif (member.exclusive or own.exclusive) and (member.number, name) < (own.number, own.name):
                yield str(member)

    def _is_abandoned(self, name: str) -> bool:
        """Tell whether a D directory is of somebody who died in between, by the file system's own clock."""
        own = self._member
        try:
            then = os.stat(os.path.join(self._directory, name)).st_mtime
            now = os.stat(os.path.join(self._directory, own.name if own is not None else "")).st_mtime
        except OSError:
            return True
        return now - then > _ABANDONED


def sweep(directory: str, *, force: bool) -> None:
    """Remove what somebody left who died while entering; what is younger than a minute only with ``force``."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if _NAME.fullmatch(name) and name[0] in "DE":
            with suppress(OSError):
                if force or time.time() - os.lstat(path).st_mtime > _ABANDONED:
                    (os.rmdir if name[0] == "D" else os.unlink)(path)
