# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Torture of our own writer, in this process: record it on files in memory, judge it with everything there is.

A state is judged by the second reader through either copy of the tables, by our own reader likewise, by its check, and
by recovery: the disk is opened for writing, read, written, and cut again.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmdkit.errors import VmdkitError
from vmdkit.filters.record_writes import FOREVER, Journal
from vmdkit.torture import harness, reader
from vmdkit.torture.choose import choose
from vmdkit.torture.files import Folder
from vmdkit.torture.harness import Finding, Recording
from vmdkit.torture.promise import Expected, Promises, compare
from vmdkit.torture.replay import Replay
from vmdkit.torture.tell import tell
from vmdkit.torture.workload import Driver, Mix, actions, run, run_threads
from vmdkit.units import KIB
from vmdkit.vmdk.check import check_disk
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmdkit.torture.files import Faults
    from vmdkit.torture.fixtures import Plan
    from vmdkit.torture.harness import Files, Result
    from vmdkit.torture.replay import Op, State
    from vmdkit.vmdk.disk import VmdkDisk

UNREADABLE = "unreadable"
DISAGREE = "readers disagree"
CHECK = "check finds worse than leaks"
REFUSED = "recovery refused"
RUNNING = "wrong while running"
SILENT = "change not announced"

_BAD = (Severity.ERROR, Severity.UNCHECKED)  # a crash may leave leaks, and what is mended without loss


@dataclass(frozen=True, slots=True)
class Effort:
    """How one disk is tortured: requests before the end, threads that send them, and whether it is closed."""

    requests: int = 30
    threads: int = 1
    close: bool = True
    mix: Mix = field(default_factory=Mix)
    recover: float = 0.5  # share of states that are opened again for writing
    again: int = 3  # states of a second crash, for each of them


@dataclass(frozen=True, slots=True)
class Law:
    """What a state is held to: the client's promises, and what the files must say about a change of content.

    ``before`` is what the disk held when it was opened, with content ID ``cid``; from ``closing`` on the flags may
    say that it was closed.
    """

    expected: Expected
    before: bytes
    cid: str
    closing: int


def open_disk(folder: Folder, name: str, *, writable: bool = False, redundant: bool = False) -> VmdkDisk:
    """Open a disk in memory; raises VmdkitError or OSError."""
    storage = folder.device(name, writable=writable)
    text = read_descriptor(storage)
    if text is None:
        raise VmdkitError("there is no descriptor in it", path=name)
    return open_image(storage, text, folder, Options(writable=writable, redundant=redundant))


def record(plan: Plan, seed: int, effort: Effort = Effort(), faults: Faults | None = None) -> Recording:
    """Write a disk of this plan, and return what was recorded."""
    fixture = plan.make(seed)
    journal = Journal()
    folder = Folder(fixture.files, journal, faults)
    disk = open_disk(folder, fixture.top, writable=True)
    driver = Driver(disk, journal, fixture.content, seed)
    work = actions(len(fixture.content), fixture.grain, effort.requests, seed, effort.mix)
    if effort.threads > 1:
        run_threads(driver, work, effort.threads, 64 * KIB)
    else:
        run(driver, work)
    if effort.close:
        try:
            disk.close()
        except (OSError, VmdkitError):
            if faults is None:
                raise

    def label(name: str, op: Op) -> str:
        return fixture.label(name, op.offset)

    findings = [Finding(RUNNING, text) for text in driver.differed]
    promises = Promises(fixture.content, driver.requests)
    return Recording(plan.name, fixture.files, journal.entries, promises, label, findings)


def torture(plan: Plan, seed: int, *, states: int, effort: Effort = Effort(), faults: Faults | None = None) -> Result:
    """Record our writer on a disk of this plan, cut its power, and return what came of it."""
    recording = record(plan, seed, effort, faults)
    judge = OwnJudge(plan, recording, seed, effort)
    result = harness.run(recording, judge, states=states, seed=seed)
    result.states += judge.again
    return result


class OwnJudge:
    """Judges states of one of our own disks."""

    def __init__(self, plan: Plan, recording: Recording, seed: int, effort: Effort = Effort()) -> None:
        self._fixture = fixture = plan.make(seed)
        self._seed = seed
        self._effort = effort
        self._cid = reader.read(fixture.files, fixture.top).cid
        self._closing = _closing(recording)
        self._two = any(what == "redundant tables" for parts in fixture.regions.values() for what, _ in parts)
        self.again = 0  # states of second crashes that were judged

    def __call__(self, files: Files, expected: Expected, state: State) -> Iterable[Finding]:
        """Return what is wrong."""
        law = Law(expected, self._fixture.content, self._cid, self._closing)
        found = list(self._readable(files, law, state.cut))
        chance = random.Random(f"judge {self._seed} {state.key()}")
        if not found and chance.random() < self._effort.recover:
            # The clock of the recovery is another one; what was closed stays closed.
            settled = replace(law, closing=0 if state.cut >= law.closing else FOREVER)
            found += self._recover(files, settled, chance, self._effort.again)
        return found

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self, files: Files, law: Law, cut: int) -> Iterator[Finding]:
        for redundant in (False, True)[: 1 + self._two]:
            side = "by the redundant tables: " if redundant else ""
            try:
                link = reader.read(files, self._fixture.top, redundant=redundant)
            except (reader.UnreadableError, KeyError, ValueError, struct.error) as error:
                yield Finding(UNREADABLE, f"{side}{error}")
                continue
            for wrong in compare(law.expected, link.content)[:1]:
                yield Finding(wrong.kind, f"{side}sector {wrong.sector} holds {tell(wrong.found)}")
            if link.content != law.before:
                if link.cid == law.cid:
                    yield Finding(SILENT, f"{side}the content has changed, the content ID {link.cid} has not")
                if cut < law.closing and not all(link.unclean):
                    yield Finding(SILENT, f"{side}the content is being changed, and a file is not marked unclean")
            yield from self._ours(files, link.content, redundant=redundant)
        yield from self._checked(files, _BAD)

    def _ours(self, files: Files, content: bytearray, *, redundant: bool) -> Iterator[Finding]:
        """Read with our own reader."""
        try:
            with open_disk(Folder(files), self._fixture.top, redundant=redundant) as disk:
                if disk.pread(disk.size, 0) != content:
                    yield Finding(DISAGREE, "our reader and the second one read different bytes")
        except (VmdkitError, OSError) as error:
            yield Finding(UNREADABLE, str(error))

    def _checked(self, files: Files, wrong: tuple[Severity, ...], when: str = "") -> Iterator[Finding]:
        """Check, and find what is as bad as ``wrong``."""
        folder = Folder(files)
        for found in check_disk(folder.device(self._fixture.top), folder).findings:
            if found.severity in wrong:
                yield Finding(CHECK, f"{when}{found.code}: {found}")

    # ── recovery ─────────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self, files: Files, law: Law, chance: random.Random, again: int) -> Iterator[Finding]:
        """Open for writing, write a little, close; then cut the power anywhere in that."""
        before = {name: bytes(content) for name, content in files.items()}
        journal = Journal()
        folder = Folder(before, journal)
        try:
            disk = open_disk(folder, self._fixture.top, writable=True)
        except (VmdkitError, OSError) as error:
            yield Finding(REFUSED, str(error))
            return
        opened = journal.tick()
        held = bytes(disk.pread(disk.size, 0))
        for wrong in compare(law.expected, held)[:1]:
            yield Finding(wrong.kind, f"after recovery sector {wrong.sector} holds {tell(wrong.found)}")
            return
        driver = Driver(disk, journal, held, chance.getrandbits(30) | 1 << 30)
        run(driver, actions(len(held), self._fixture.grain, 6, chance.getrandbits(32)))
        closing = journal.tick()
        disk.close()
        yield from (Finding(RUNNING, f"after recovery: {text}") for text in driver.differed)
        recording = Recording("again", before, journal.entries, Promises(held, driver.requests))
        cid = reader.read(before, self._fixture.top).cid
        end = journal.tick()
        new = Law(recording.promises.at(end), held, cid, closing)
        yield from self._closed(folder.files, new, end)
        if again:
            yield from self._cut_again(recording, (law, opened), new, chance, again)

    def _closed(self, files: dict[str, bytearray], law: Law, end: int) -> Iterator[Finding]:
        """Judge a disk that was closed: nothing may be left to say of it."""
        yield from self._readable(dict(files), law, end)
        link = reader.read(files, self._fixture.top)
        if link.content != law.before:  # else nothing was written, so nothing was opened and closed either
            yield from self._checked(dict(files), (*_BAD, Severity.REPAIRABLE), "after recovery and closing: ")

    def _cut_again(
        self, recording: Recording, old: tuple[Law, int], new: Law, chance: random.Random, again: int
    ) -> Iterator[Finding]:
        replay = Replay(recording.files, recording.entries)
        moments = recording.moments()
        until = [moment for moment in moments if moment <= old[1]]
        cuts = [chance.choice(recording.hard_moments()), *until[-1:]]
        for state in choose(replay, cuts, moments, again, chance.getrandbits(32)):
            if state.cut <= old[1]:
                law = old[0]
            else:
                law = replace(new, expected=recording.promises.at(state.cut))
            self.again += 1
            files = replay.build(state)
            found = list(self._readable(files, law, state.cut)) or list(self._recover(files, law, chance, 0))
            yield from (Finding(one.kind, f"after a second crash: {one.text}") for one in found)


def _closing(recording: Recording) -> int:
    """Return the moment after the last request; what follows is closing."""
    return max((one.done for one in recording.promises.requests), default=0) + 1
