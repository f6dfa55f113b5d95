# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Keep two writers from one disk: VMware's lock directories, and byte locks that qemu knows (format spec 1.13).

A disk that is opened for writing is locked exclusively, file by file, and its parents shared; reading takes no lock
(docs/locks.md says why). Every lock is both::

    disk.vmdk.lck/     VMware's: honoured by Workstation, Fusion, VDDK, and by ourselves on any machine
    byte locks         qemu's: honoured by qemu-img, qemu-nbd, QEMU and by ourselves on this machine

qemu's are open-file-description locks for reading, of single bytes (measured: strace and /proc/locks of qemu 7.2)::

    100 + n   "I do this":                   n = 0 reading what is consistent, 1 writing, 3 resizing
    200 + n   "nobody else may do this"

Whoever comes takes its own, and then looks whether anybody holds what contradicts them.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.vmdk import lockfile
from vmdkit.vmdk.lockfile import LockedError, Member, Membership

if TYPE_CHECKING:
    from vmdkit.device import Device

WAIT = 3.5  # seconds to wait for a lock directory, as VMware does
_READ, _WRITE, _RESIZE = 0, 1, 3
_DOES, _FORBIDS = 100, 200
_FLOCK = struct.Struct("hh4xqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, process
_NOT_HERE = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_log = logging.getLogger(__name__)
_held: set[LockSet] = set()


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who has a lock on a file; ``member`` where it is by a lock directory."""

    text: str
    stale: bool = False
    member: Member | None = None

    @property
    def mine(self) -> bool:
        """Whether it is this very process."""
        return self.member is not None and self.member.mine

    def __str__(self) -> str:
        return self.text


class LockSet:
    """The locks of one opening. ``wait`` seconds are waited in all."""

    def __init__(self, *, wait: float | None = None) -> None:
        self._deadline = time.monotonic() + (WAIT if wait is None else wait)
        self._members: list[Membership] = []
        self._taken: dict[tuple[int, int], bool] = {}
        self._pid = os.getpid()

    def take(self, storage: Device, *, exclusive: bool) -> None:
        """Lock the file that ``storage`` is; what is no file (memory, a network) has no locks.

        The byte locks end when ``storage`` is closed, the others with ``release``. Raises LockedError, with a
        sentence that names the holder.
        """
        fd = storage.fileno()
        if fd is None:
            return
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if key in self._taken and self._taken[key] >= exclusive:
            return
        if stat.S_ISREG(status.st_mode) and key not in self._taken:
            member = Membership(storage.name, exclusive=exclusive)
            if member.acquire(self._deadline):
                self._members.append(member)
                _held.add(self)
            else:
                _log.info("%s: its directory cannot be written, so no lock directory was made", storage.name)
        _lock_bytes(fd, storage.name, exclusive=exclusive, again=key in self._taken)
        self._taken[key] = exclusive

    def release(self) -> None:
        """Give up the lock directories; does nothing in a process that was forked off."""
        if self._pid == os.getpid():
            members, self._members = self._members, []
            for member in reversed(members):
                member.release()
        _held.discard(self)


def _release_all() -> None:
    for locks in list(_held):
        locks.release()


atexit.register(_release_all)


# ── byte locks ───────────────────────────────────────────────────────────────────────────────────────────────────


def take_bytes(storage: Device) -> None:
    """Lock a file of raw bytes for writing, as qemu does; the lock ends when ``storage`` is closed."""
    fd = storage.fileno()
    if fd is not None:
        _lock_bytes(fd, storage.name, exclusive=True, again=False)


def _lock_bytes(fd: int, path: str, *, exclusive: bool, again: bool) -> None:
    """Take the byte locks; ``again`` leaves out the look at others, of whom one would be ourselves."""
    does = (_READ, _WRITE, _RESIZE) if exclusive else (_READ,)
    forbids = (_WRITE, _RESIZE)
    wanted = [*(_DOES + bit for bit in does), *(_FORBIDS + bit for bit in forbids)]
    contradicts = [*(_FORBIDS + bit for bit in does), *(_DOES + bit for bit in forbids)]
    try:
        for byte in wanted:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        busy = not again and any(_is_locked(fd, byte) for byte in contradicts)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        _log.info("%s: this file system has no byte locks", path)
        return
    if busy:
        for byte in wanted:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))
        holder = _byte_holder(fd)
        raise LockedError(f"it is in use by {holder}", path=path, holder=holder)


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether anybody else has a lock on ``byte``."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _byte_holder(fd: int) -> str:
    """Find a process that has the file open with byte locks; those of other users cannot be seen."""
    status = os.fstat(fd)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                if int(pid) == os.getpid() and int(number) == fd:
                    continue
                if _has_byte_lock(pid, number, status):
                    name = lockfile.process_name(int(pid))
                    if int(pid) == os.getpid():
                        return f"this very process ({pid})"
                    return f"{name} (process {pid}) on this machine, {os.uname().nodename}"
    return "another process on this machine"


def _has_byte_lock(pid: str, number: str, status: os.stat_result) -> bool:
    with suppress(OSError):
        other = os.stat(f"/proc/{pid}/fd/{number}")
        if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
                return "OFDLCK" in file.read()
    return False


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def holders(path: str) -> list[Holder]:
    """Return who is in the lock directory of the file ``path``."""
    return [Holder(str(member), member.stale, member) for member in lockfile.members(path)]


def writer(storage: Device) -> Holder | None:
    """Return who has the file open for writing, as far as locks tell; None where nobody has.

    Two system calls where nobody has.
    """
    fd = storage.fileno()
    if fd is None:
        return None
    for holder in holders(storage.name):
        if holder.member is not None and holder.member.exclusive and not holder.stale:
            return holder
    try:
        if _is_locked(fd, _DOES + _WRITE):
            return Holder(_byte_holder(fd))
    except OSError:
        pass
    return None


# ── clearing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def unlock(path: str, *, force: bool = False) -> list[str]:
    """Remove what is left in the lock directory of ``path``; return what was removed, in words.

    Stale members go; others only with ``force``, and those of a living process of this machine never: raises
    LockedError for them.
    """
    directory, removed = lockfile.directory_of(path), []
    for member in lockfile.members(path):
        alive = member.ours and not member.stale and member.number >= 0
        if not member.stale and (alive or not force):
            hint = "; end it first" if alive else "; if it is no more, --force removes its lock"
            raise LockedError(f"it is locked by {member}{hint}", path=path, holder=str(member))
        plain = not os.path.isdir(directory)
        os.unlink(directory if plain else os.path.join(directory, member.name))
        removed.append(f"the lock of {member}")
    if os.path.isdir(directory):
        lockfile.sweep(directory, force=force)
        with suppress(OSError):
            os.rmdir(directory)
            removed = removed or [f"the empty {directory}"]
    return removed


__all__ = ["WAIT", "Holder", "LockSet", "LockedError", "holders", "take_bytes", "unlock", "writer"]
