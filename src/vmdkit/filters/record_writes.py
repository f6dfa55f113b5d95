# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write down every change that passes to a device, and every barrier, in the order of a common clock.

::

    writer ──▶ RecordWrites ──▶ device
                   │ begin, end
                   ▼
                Journal   [ write a 0 │ write b 4096 │ flush a │ ... ]

A Journal is shared by all files of one writer, and by whoever wants to note moments between (a client's requests).
What a power cut could have left of it is worked out by ``vmdkit.torture``.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Location

FOREVER = 1 << 62  # the moment at which something ends that never did


@dataclass(slots=True)
class Entry:
    """One change to a file: ``write``, ``zero``, ``resize`` (``length`` is the new size) or ``flush``.

    ``begun`` and ``ended`` are moments of the journal's clock. From ``begun`` on it may be on the disk; a flush covers
    what had ended before it began. Changes of names: ``create`` (``other`` is the file's key), ``rename`` and ``link``
    to ``other``, ``unlink``; a ``flush`` of a directory covers those in it.
    """

    verb: str
    file: str
    offset: int = 0
    length: int = 0
    data: bytes = b""
    other: str = ""
    begun: int = 0
    ended: int = FOREVER
    failed: bool = False


class Journal:
    """The entries of one recording, and its clock. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.entries: list[Entry] = []

    def tick(self) -> int:
        """Return a moment later than all before."""
        with self._lock:
            self._now += 1
            return self._now

    def begin(
        self, verb: str, file: str, offset: int = 0, length: int = 0, data: bytes = b"", *, other: str = ""
    ) -> Entry:
        """Note that a change begins."""
        with self._lock:
            self._now += 1
            entry = Entry(verb, file, offset, length or len(data), data, other, begun=self._now)
            self.entries.append(entry)
            return entry

    def end(self, entry: Entry, *, failed: bool = False) -> None:
        """Note that it has ended."""
        entry.failed = failed
        entry.ended = self.tick()


class RecordWrites(Device):
    """A device in front of another that writes each change into a journal, under the other's name or as ``file``.

    ``trim`` is recorded as zeros, which is what it makes of a file.
    """

    def __init__(self, inner: Device, journal: Journal, *, file: str = "") -> None:
        """Take over ``inner``."""
        super().__init__(
            inner.size, name=inner.name, can=inner.can, block_size=inner.block_size, contexts=inner.contexts
        )
        self._inner = inner
        self._journal = journal
        self._file = file or inner.name

    def parts(self) -> tuple[Device]:
        """Return the device behind."""
        return (self._inner,)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._inner.pread_into(view, offset)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        with _Noted(self._journal, self._journal.begin("write", self._file, offset, data=bytes(view))):
            self._inner.pwrite(view, offset)

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        with _Noted(self._journal, self._journal.begin("zero", self._file, offset, count)):
            self._inner.zero(count, offset, no_hole=no_hole, fast=fast)

    def _trim(self, count: int, offset: int) -> None:
        with _Noted(self._journal, self._journal.begin("zero", self._file, offset, count)):
            self._inner.trim(count, offset)

    def _resize(self, size: int, *, reserve: bool) -> None:
        with _Noted(self._journal, self._journal.begin("resize", self._file, length=size)):
            self._inner.resize(size, reserve=reserve)

    def _flush(self) -> None:
        with _Noted(self._journal, self._journal.begin("flush", self._file)):
            self._inner.flush()

    def _cache(self, count: int, offset: int) -> None:
        self._inner.cache(count, offset)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        yield from self._inner.extents(count, offset, context=context)

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        yield from self._inner.locate(count, offset)

    def _close(self) -> None:
        self._inner.close()


class _Noted:
    """Ends an entry however its work ends."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
        self._journal = journal
        self._entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._journal.end(self._entry, failed=kind is not None)
