# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What repairing is made of: consent, steps, and files whose changes wait for a barrier.

A repair is written as if it changed the file at once. It changes a ``Staged`` file, which keeps what is written until
``flush``: then what the changed places held before goes to the undo file, durably, and only then the changes to the
file, durably. A plan is the same repair on a staged file that never passes anything on.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmdkit.device import Can, Device
from vmdkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = 4096  # bytes kept together of what was changed
_TITLE = {"vmdkit-undo": 1}


@dataclass(frozen=True, slots=True)
class Consent:
    """What repair may do beyond what is safe.

    ``discard_damaged`` gives up entries that lead nowhere: what they hold reads as zero, or as the parent's, instead
    of failing. ``prefer`` decides between two copies of a table that are both sound: ``primary`` or ``redundant``.
    ``relink`` makes a child accept a parent that has changed.
    """

    discard_damaged: bool = False
    prefer: str = ""
    relink: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that repair does. ``risk`` is empty where nothing reads otherwise afterwards, and nothing is lost."""

    code: str
    path: str
    text: str
    risk: str = ""

    def facts(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"code": self.code, "file": self.path, "text": self.text, "risk": self.risk}


@dataclass(slots=True)
class Steps:
    """The steps of one repair, in order, and what is not done because it takes consent."""

    consent: Consent = field(default_factory=Consent)
    is_plan: bool = False
    done: list[Step] = field(default_factory=list)

    def add(self, code: str, path: str, text: str, risk: str = "") -> None:
        """Say what is about to be done."""
        self.done.append(Step(code, path, text, risk))


class Staged(Device):
    """A file whose changes wait for ``flush``; with ``commit`` false they never reach it. Owns ``storage``."""

    def __init__(self, storage: Device, *, commit: bool, undo: UndoLog | None = None) -> None:
        super().__init__(storage.size, name=storage.name, can=Can.WRITE | Can.FLUSH | Can.RESIZE)
        self._storage = storage
        self._commit = commit
        self._undo = undo
        self._pages: dict[int, bytearray] = {}
        self._writes: list[tuple[int, bytes]] = []

    def fileno(self) -> int | None:
        """There is none: what waits is not in the file."""
        return None

    def _pread_into(self, view: memoryview, offset: int) -> None:
        held = max(0, min(len(view), self._storage.size - offset))
        if held:
            self._storage.pread_into(view[:held], offset)
        view[held:] = bytes(len(view) - held)
        if not self._pages:
            return
        end = offset + len(view)
        for number in range(offset // _PAGE, -(-end // _PAGE)):
            page = self._pages.get(number)
            if page is not None:
                low, high = max(offset, number * _PAGE), min(end, (number + 1) * _PAGE)
                view[low - offset : high - offset] = page[low - number * _PAGE : high - number * _PAGE]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        end = offset + len(view)
        for number in range(offset // _PAGE, -(-end // _PAGE)):
            page = self._pages.get(number)
            if page is None:
                page = bytearray(_PAGE)
                start = number * _PAGE
                held = max(0, min(_PAGE, self._storage.size - start))
                page[:held] = self._storage.pread(held, start) if held else b""
                self._pages[number] = page
            low, high = max(offset, number * _PAGE), min(end, (number + 1) * _PAGE)
            page[low - number * _PAGE : high - number * _PAGE] = view[low - offset : high - offset]
        if self._commit:
            self._writes.append((offset, bytes(view)))

    def _resize(self, size: int, *, reserve: bool) -> None:
        """Only ever grows, when what waits is passed on."""

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        if self._pages or offset + count > self._storage.size:
            yield offset, count, 0
        else:
            yield from self._storage.extents(count, offset, context=context)

    def _flush(self) -> None:
        if not self._commit:
            return
        if self._undo is not None and (self._writes or self.size != self._storage.size):
            self._undo.save(self._storage, [(offset, len(data)) for offset, data in self._writes])
        if self.size > self._storage.size:
            self._storage.resize(self.size)
        for offset, data in self._writes:
            self._storage.pwrite(data, offset)
        self._storage.flush()
        self._writes.clear()
        self._pages.clear()

    def _close(self) -> None:
        self._storage.close()


class UndoLog:
    """What changed places held before: one JSON object a line. Made when there is first something to keep."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._sizes: dict[str, int] = {}

    def save(self, storage: Device, ranges: list[tuple[int, int]]) -> None:
        """Keep, durably, what ``ranges`` (offset, length) of ``storage`` hold now; raises OSError."""
        lines = []
        name = os.path.abspath(storage.name)
        if name not in self._sizes:
            self._sizes[name] = storage.size
            lines.append({"file": name, "size": storage.size})
        for offset, length in ranges:
            held = max(0, min(length, self._sizes[name] - offset))
            if held:
                data = base64.b64encode(storage.pread(held, offset)).decode("ascii")
                lines.append({"file": name, "offset": offset, "data": data})
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            lines.insert(0, dict(_TITLE))
        raw = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))
        while raw:
            raw = raw[os.write(self._fd, raw) :]
        os.fsync(self._fd)
        if len(self._sizes) == 1 and lines and "vmdkit-undo" in lines[0]:
            directory = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    @property
    def used(self) -> bool:
        """Whether there is such a file."""
        return self._fd >= 0

    def close(self) -> None:
        """Close the file; it stays."""
        if self._fd >= 0:
            os.close(self._fd)


def read_undo(path: str) -> tuple[dict[str, int], list[tuple[str, int, bytes]]]:
    """Return (sizes of files, changes as (file, offset, old bytes), the oldest first) of an undo file.

    A last line that a power cut has left unfinished is none: what it would undo was not written. Raises FormatError.
    """
    sizes: dict[str, int] = {}
    changes: list[tuple[str, int, bytes]] = []
    with open(path, encoding="ascii", errors="replace") as file:
        if not file.readline().startswith('{"vmdkit-undo": 1}'):
            raise FormatError("this is no undo file of vmdkit", path=path)
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if "size" in entry:
                sizes[entry["file"]] = int(entry["size"])
            else:
                changes.append((entry["file"], int(entry["offset"]), base64.b64decode(entry["data"])))
    return sizes, changes
