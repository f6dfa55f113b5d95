# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Go on with a copy that was cut off: a journal says how far it had come, and what it was a copy of.

::

    copied up to N ──► destination.flush() ──► journal says N, by a rename     now and then, and at an interruption
    begun again ─────► same source? same destination? same bytes at both ends of what is done? ──► from N on
    complete ────────► destination.flush() ──► the journal is removed

What the journal says is durable in the destination before it is said. A source that has changed since is refused:
the result would be of two moments, and no copy of either.
"""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vmdkit.device import Can
from vmdkit.errors import FormatError, UnsupportedError, UsageError, VmdkitError
from vmdkit.ops.copy import CopyOptions, Tally, copy, ignore
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vmdkit.device import Device

    Facts = dict[str, Any]

FORMAT: Final = "vmdkit copy journal"
VERSION: Final = 1
PERIOD: Final = 5.0  # seconds between two notes: each costs a flush, and at most that much is copied again
_LARGEST = MIB  # bytes of a journal
_SAMPLE = MIB  # bytes compared at either end of what is done


@dataclass(slots=True)
class Journal:
    """The file ``path``. ``facts`` are what must be the same for the copy to go on; ``done`` bytes are durable."""

    path: str
    facts: Facts
    done: int = 0

    def load(self) -> bool:
        """Take ``done`` from the file; False where there is none. Raises FormatError; UsageError where facts differ."""
        try:
            with open(self.path, "rb") as file:
                raw = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return False
        try:
            found = json.loads(raw)
            done, known = found["done"], (found["format"], found["version"])
            facts = found["facts"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError("this is no journal of a copy; remove it to begin anew", path=self.path) from error
        if known != (FORMAT, VERSION) or not isinstance(done, int) or not isinstance(facts, dict) or done < 0:
            raise FormatError("this is no journal of a copy; remove it to begin anew", path=self.path)
        changed = _difference(facts, json.loads(json.dumps(self.facts)))
        if changed:
            raise UsageError(f"{changed}; remove the journal to begin anew", path=self.path)
        self.done = done
        return True

    def store(self, done: int) -> None:
        """Say that ``done`` bytes are durable in the destination."""
        text = json.dumps({"format": FORMAT, "version": VERSION, "done": done, "facts": self.facts}, indent=1)
        temporary = f"{self.path}.{os.getpid()}.part"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            with open(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(fd)
            os.rename(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self.done = done

    def remove(self) -> None:
        """Forget the copy."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)


def resumable(
    source: Device,
    destination: Device,
    options: CopyOptions,
    path: str,
    *,
    how: Mapping[str, Any],
    progress: Callable[[int], None] = ignore,
    tally: Tally | None = None,
    period: float = PERIOD,
    clock: Callable[[], float] = time.monotonic,
) -> Tally:
    """Copy as ``ops.copy.copy`` does, with a journal at ``path``: what it says is done is not copied again.

    ``how`` is what else decides what the source reads as, JSON-ready. Flushes the destination, and removes the
    journal when the copy is complete. Raises UsageError where source or destination are not those of the journal,
    FormatError where that is none, UnsupportedError for a destination that cannot be flushed, and what copying does.
    """
    if Can.FLUSH not in destination.can:
        raise UnsupportedError("it cannot be flushed, so no journal can say what is safe there", path=destination.name)
    journal = Journal(path, {"source": identity(source), "destination": identity(destination), "how": dict(how)})
    if journal.load():
        _check_done(source, destination, journal)
        progress(journal.done)
    else:
        journal.store(0)
    end, noted, trusted = journal.done, clock(), True

    def note() -> None:
        nonlocal noted, trusted
        trusted = False  # a flush that failed is not tried again: the second one would know nothing of the loss
        destination.flush()
        journal.store(end)
        noted, trusted = clock(), True

    def settled(offset: int) -> None:
        nonlocal end
        end = offset
        if clock() - noted >= period:
            note()

    try:
        tally = copy(source, destination, replace(options, offset=end), progress, tally, settled=settled)
        destination.flush()
    except Exception:
        raise
    except BaseException:  # the user's wish to stop, and no fault of the destination
        if trusted and end > journal.done:
            with suppress(OSError, VmdkitError):
                note()
        raise
    journal.remove()
    return tally


def identity(device: Device) -> Facts:
    """Return what tells a device from others and from itself changed, JSON-ready."""
    facts: Facts = {"name": _real(device.name), "size": device.size, "files": sorted(_files(device), key=str)}
    text = getattr(device, "descriptor", None)
    if text is not None and not device.writable:
        facts["cid"] = f"{text.cid:08x}"
    return facts


def _files(device: Device) -> Iterator[Facts]:
    """Yield the regular files below; of those that are written only what writing does not change."""
    waiting, seen = [device], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        waiting.extend(part.parts())
        fd = part.fileno()
        if fd is None:
            continue
        status = os.fstat(fd)
        facts: Facts = {"path": _real(part.name), "inode": status.st_ino}
        if stat.S_ISREG(status.st_mode) and not part.writable:
            facts |= {"size": status.st_size, "mtime": status.st_mtime_ns}
        yield facts


def _real(name: str) -> str:
    """Return the path that ``name`` is from everywhere; a name that is no path stays."""
    return os.path.realpath(name) if os.path.lexists(name) else name


def _difference(before: Facts, now: Facts) -> str:
    """Say what is not as it was; empty where all is."""
    for side in ("source", "destination", "how"):
        old, new = before.get(side), now.get(side)
        if old == new:
            continue
        if not isinstance(old, dict) or not isinstance(new, dict):
            return f"the {side} is not the one that this copy was begun with"
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        what = {
            "source": "the source has changed since the copy was begun",
            "destination": "the destination is another",
        }
        if old.get("name") != new.get("name"):
            return f"the {side} was {old.get('name')!r} when this copy was begun, now it is {new.get('name')!r}"
        return f"{what.get(side, 'other options were given then')} ({', '.join(keys)})"
    return ""


def _check_done(source: Device, destination: Device, journal: Journal) -> None:
    """Compare both ends of what is said to be done: a journal may lie beside a destination that was exchanged."""
    done = journal.done
    if done > source.size:
        raise FormatError(f"{done} bytes are said to be done of {source.size}", path=journal.path)
    for start in {0, max(0, done - _SAMPLE)}:
        count = min(_SAMPLE, done - start)
        if source.pread(count, start) != destination.pread(count, start):
            raise UsageError(
                f"the destination does not hold what the journal says was copied (at {start:#x}); "
                "remove the journal to begin anew", path=journal.path,
            )  # fmt: skip
