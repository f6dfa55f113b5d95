# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Work out what a power cut could leave of recorded files, and build any such state.

The rules, for a cut at a moment::

    write ─┐                     ended before a barrier of its file that had ended: SURE
    write ─┤ barrier ──┐
    write ─┼───────────┼─ cut    begun before the cut, else: PENDING, each of its sectors is there or not
    write ─┘ barrier   ┘- - - -  begun after the cut: NOT YET

A sector (512 bytes) holds what it held after one of the pending changes to it, or what is sure: never a mixture, as
the page cache writes whole sectors of its newest content. The size of a file is as it was after any pending change of
it, whatever became of the data (metadata before data); what no write has reached reads as zero. Cutting a file short
and losing its tail go together. Names change in their order, each directory for itself; its own barrier makes them
sure. Nothing else is assumed of a file system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmdkit.filters.record_writes import Entry

_CHANGES = ("write", "zero", "resize", "grow")
_NAMES = ("create", "rename", "link", "unlink")


@dataclass(frozen=True, slots=True)
class Op:
    """One change to a file: ``blob`` is what all its sectors, from ``start`` on, hold after it.

    ``size`` is the file's new size where it changes it; ``cut`` is the range that a shrinking resize drops.
    """

    number: int  # in the journal
    verb: str
    offset: int
    length: int
    begun: int
    ended: int
    start: int
    blob: bytes
    size: int | None = None
    cut: tuple[int, int] | None = None

    @property
    def sectors(self) -> int:
        """How many sectors it touches; a change of size alone counts as one."""
        return max(1, len(self.blob) // SECTOR)

    @property
    def whole(self) -> int:
        """The mask that keeps all of it."""
        return (1 << self.sectors) - 1


class FileState(NamedTuple):
    """What is left of one file: a mask of sectors for each pending change, and how many changes of size."""

    kept: tuple[int, ...]
    sized: int


@dataclass(frozen=True, slots=True, order=True)
class State:
    """What a power cut at ``cut`` has left. ``names`` says how many pending changes of names each directory kept."""

    cut: int
    files: tuple[tuple[str, FileState], ...]
    names: tuple[tuple[str, int], ...] = ()

    def key(self) -> str:
        """Return a text that no other state of the recording has."""
        files = ";".join(f"{name}:{file.sized}:{','.join(map(hex, file.kept))}" for name, file in self.files)
        return f"{self.cut} {files} {self.names}"


class History:
    """The changes of one file, in the order of their ends."""

    def __init__(self, name: str, base: bytes, entries: Iterable[tuple[int, Entry]]) -> None:
        self.name = name
        self.base = base
        self.ops: list[Op] = []
        self._flushes: list[tuple[int, int]] = []  # begun, ended
        self._sure = (0, bytes(base))  # how many changes, and what they leave: the last answer of ``_certain``
        content = bytearray(base)
        for number, entry in sorted(entries, key=lambda item: (item[1].ended, item[0])):
            if entry.failed:
                continue
            if entry.verb == "flush":
                self._flushes.append((entry.begun, entry.ended))
            elif entry.verb in _CHANGES:
                self.ops.append(_perform(number, entry, content))

    def sure(self, cut: int) -> int:
        """Return how many changes are sure at ``cut``."""
        begun = max((begun for begun, ended in self._flushes if ended < cut), default=0)
        count = 0
        while count < len(self.ops) and self.ops[count].ended < begun:
            count += 1
        return count

    def pending(self, cut: int) -> list[Op]:
        """Return the changes that may be there or not at ``cut``."""
        return [op for op in self.ops[self.sure(cut) :] if op.begun < cut]

    def build(self, cut: int, state: FileState) -> bytearray:
        """Return what the file holds."""
        content = bytearray(self._certain(self.sure(cut)))
        size, sized = len(content), 0
        for op, mask in zip(self.pending(cut), state.kept, strict=False):
            if op.size is not None:
                sized += 1
                if sized <= state.sized:
                    size = op.size
            if op.cut is not None:
                if sized <= state.sized:
                    start, end = op.cut
                    content[start : min(end, len(content))] = bytes(max(0, min(end, len(content)) - start))
            elif mask:
                _apply(content, op, mask)
        _fit(content, size)
        return content

    def _certain(self, count: int) -> bytes:
        """Return what the first ``count`` changes leave."""
        done, held = self._sure
        if done > count:
            done, held = 0, self.base
        if done < count:
            content = bytearray(held)
            for op in self.ops[done:count]:
                size = len(content) if op.size is None else op.size
                _apply(content, op, op.whole)
                _fit(content, size)
            held = bytes(content)
        self._sure = (count, held)
        return held


def _perform(number: int, entry: Entry, content: bytearray) -> Op:
    """Do an entry to ``content``, and return it as an Op."""
    before = len(content)
    begin, end = entry.offset, entry.offset + entry.length
    size: int | None = None
    cut: tuple[int, int] | None = None
    start, blob = 0, b""
    if entry.verb in ("resize", "grow"):
        size = entry.length if entry.verb == "resize" else max(before, entry.length)
        if size < before:
            cut = (size, before)
        _fit(content, size)
    else:
        if entry.verb == "write":
            _fit(content, max(before, end))
            content[begin:end] = entry.data
            size = end if end > before else None
        else:
            end = max(begin, min(end, before))  # zeroing keeps the size
            content[begin:end] = bytes(end - begin)
        start = begin - begin % SECTOR
        stop = -(-end // SECTOR) * SECTOR
        blob = bytes(content[start:stop]).ljust(stop - start, b"\0")
    return Op(
        number, entry.verb, entry.offset, entry.length, entry.begun, entry.ended, start, blob, size, cut
    )  # fmt: skip


def _apply(content: bytearray, op: Op, mask: int) -> None:
    """Put the sectors of ``op`` that ``mask`` keeps into ``content``, which grows as far as that needs."""
    if not op.blob:
        return
    if len(content) < op.start + len(op.blob):
        _fit(content, op.start + len(op.blob))
    if mask == op.whole:
        content[op.start : op.start + len(op.blob)] = op.blob
        return
    for at in range(op.sectors):
        if mask >> at & 1:
            piece = op.blob[at * SECTOR : (at + 1) * SECTOR]
            content[op.start + at * SECTOR : op.start + at * SECTOR + len(piece)] = piece


def _fit(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(slots=True)
class Names:
    """Which file each name means, and how that changed."""

    base: dict[str, str]
    changes: list[tuple[int, Entry]] = field(default_factory=list)
    flushes: list[Entry] = field(default_factory=list)

    def pending(self, cut: int) -> dict[str, list[Entry]]:
        """Return the changes of each directory that may be there or not at ``cut``, in order."""
        return {home: changes[sure:] for home, (changes, sure) in self._by_directory(cut).items()}

    def _by_directory(self, cut: int) -> dict[str, tuple[list[Entry], int]]:
        found: dict[str, list[Entry]] = {}
        for _, entry in self.changes:
            if entry.begun < cut:
                found.setdefault(os.path.dirname(entry.other if entry.verb == "rename" else entry.file), []).append(
                    entry
                )
        out: dict[str, tuple[list[Entry], int]] = {}
        for home, changes in found.items():
            begun = max((one.begun for one in self.flushes if one.file == home and one.ended < cut), default=0)
            out[home] = (changes, sum(change.ended < begun for change in changes))
        return out

    def build(self, cut: int, kept: Mapping[str, int]) -> dict[str, str]:
        """Return which file each name means."""
        done: list[Entry] = []
        for home, (changes, sure) in self._by_directory(cut).items():
            done += changes[: sure + kept.get(home, 0)]
        names = dict(self.base)
        for entry in sorted(done, key=lambda one: one.ended):
            if entry.verb == "rename":
                names[entry.other] = names.pop(entry.file, names.get(entry.other, entry.other))
            elif entry.verb == "unlink":
                names.pop(entry.file, None)
            elif entry.verb == "link":
                names[entry.other] = names[entry.file]
            else:
                names[entry.file] = entry.other
        return names


class Replay:
    """A recording, to be cut anywhere."""

    def __init__(self, base: Mapping[str, bytes], entries: Sequence[Entry]) -> None:
        """Take what the files held before, by name, and everything that was done to them."""
        self.entries = entries
        numbered = list(enumerate(entries))
        self.names = Names({name: name for name in base})
        files = dict(base)
        for number, entry in numbered:
            if entry.verb in _NAMES and not entry.failed:
                self.names.changes.append((number, entry))
                if entry.verb == "create":
                    files[entry.other] = b""
            elif entry.verb == "flush" and not entry.failed:
                self.names.flushes.append(entry)
        grouped: dict[str, list[tuple[int, Entry]]] = {}
        for number, entry in numbered:
            if entry.verb not in _NAMES:
                grouped.setdefault(entry.file, []).append((number, entry))
        self.still = {name: content for name, content in files.items() if name not in grouped}
        self.histories = {name: History(name, files[name], grouped[name]) for name in sorted(grouped) if name in files}

    def pending(self, cut: int) -> list[tuple[str, Op]]:
        """Return every change that may be there or not, file by file."""
        return [(name, op) for name, history in self.histories.items() for op in history.pending(cut)]

    def state(self, cut: int, kept: Mapping[str, Sequence[int]], sized: Mapping[str, int] | None = None) -> State:
        """Return the state that keeps the given masks; sizes follow the last kept change unless ``sized`` says."""
        files = []
        for name, history in self.histories.items():
            pending = history.pending(cut)
            masks = tuple(kept.get(name, ()))[: len(pending)]
            masks += (0,) * (len(pending) - len(masks))
            if sized is not None and name in sized:
                count = sized[name]
            else:
                count = _following(pending, masks)
            files.append((name, FileState(masks, count)))
        return State(cut, tuple(files), tuple((home, len(ops)) for home, ops in self.names.pending(cut).items()))

    def build(self, state: State) -> dict[str, bytearray | bytes]:
        """Return the files by name; those that nothing was done to are shared."""
        content: dict[str, bytearray | bytes] = dict(self.still)
        for name, kept in state.files:
            content[name] = self.histories[name].build(state.cut, kept)
        if not self.names.changes:
            return content
        return {name: content[key] for name, key in self.names.build(state.cut, dict(state.names)).items()}


def _following(pending: Sequence[Op], masks: Sequence[int]) -> int:
    count = last = 0
    for op, mask in zip(pending, masks, strict=True):
        if op.size is not None:
            count += 1
            if mask:
                last = count
    return last
