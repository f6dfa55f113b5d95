# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Judge the states of one recording, count what is wrong, and make the worst example small.

::

    Recording ──choose──▶ State ──replay──▶ files ──judge──▶ findings
    files, journal,                             ▲
    promises                                    └ what the client was promised at that cut
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmdkit.filters.record_writes import FOREVER
from vmdkit.torture.choose import by_size, choose
from vmdkit.torture.replay import FileState, Replay, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vmdkit.filters.record_writes import Entry
    from vmdkit.torture.choose import Label
    from vmdkit.torture.promise import Expected, Promises

    Files = dict[str, bytearray | bytes]

_EXAMPLES = 3  # findings kept whole, for each kind
_MOST_STEPS = 400  # states tried to make a failing one smaller


class Finding(NamedTuple):
    """One thing wrong with one state."""

    kind: str
    text: str


class Judge(Protocol):
    """Says what is wrong with files that a power cut has left; an empty answer is a good one."""

    def __call__(self, files: Files, expected: Expected, state: State) -> Iterable[Finding]:  # noqa: D102
        ...


@dataclass(slots=True)
class Recording:
    """What a writer did: the files before, every change to them, and what its client was promised when."""

    name: str
    files: Mapping[str, bytes]
    entries: Sequence[Entry]
    promises: Promises
    label: Label = by_size
    findings: list[Finding] = field(default_factory=list)  # what was wrong while it ran

    def moments(self) -> list[int]:
        """Return every moment just after something began or ended."""
        found = {1}
        for entry in self.entries:
            found |= {entry.begun + 1, entry.ended + 1}
        for request in self.promises.requests:
            found |= {request.sent + 1, request.done + 1}
        return sorted(moment for moment in found if moment < FOREVER)

    def hard_moments(self) -> list[int]:
        """Return the moments of most pending changes, and those of most promises."""
        found = {self.moments()[-1]}
        found |= {entry.ended for entry in self.entries if entry.verb == "flush"}
        found |= {one.done + 1 for one in self.promises.requests if one.verb == "flush" or one.fua}
        return sorted(moment for moment in found if moment < FOREVER)


@dataclass(slots=True)
class Example:
    """A failing state, and the changes that it needs to fail."""

    finding: Finding
    state: State
    story: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What became of one recording's states."""

    name: str
    seed: str
    states: int = 0
    failing: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, findings: Sequence[Finding], state: State) -> None:
        """Count one state."""
        self.states += 1
        if not findings:
            return
        self.failing += 1
        for finding in {finding.kind: finding for finding in findings}.values():
            self.kinds[finding.kind] += 1
            if self.kinds[finding.kind] <= _EXAMPLES:
                self.examples.append(Example(finding, state))


def run(recording: Recording, judge: Judge, *, states: int, seed: int | str, shrink: bool = True) -> Result:
    """Judge about ``states`` states of a recording; return the count, and the smallest failing state of each kind."""
    result = Result(recording.name, str(seed))
    if recording.findings:
        result.failing += 1
        result.kinds.update(finding.kind for finding in recording.findings)
        result.examples += [Example(finding, State(0, ())) for finding in recording.findings[:_EXAMPLES]]
    replay = Replay(recording.files, recording.entries)
    cut, expected = -1, recording.promises.at(0)
    for state in choose(
        replay, recording.hard_moments(), recording.moments(), states, seed, recording.label
    ):  # by rising cut
        if state.cut != cut:
            cut, expected = state.cut, recording.promises.at(state.cut)
        result.add(list(judge(replay.build(state), expected, state)), state)
    if shrink:
        result.examples = _smallest(result.examples, recording, replay, judge)
    return result


def _smallest(examples: list[Example], recording: Recording, replay: Replay, judge: Judge) -> list[Example]:
    """Return one small example of each kind."""
    best: dict[str, Example] = {}
    for example in examples:
        if example.finding.kind in best:
            continue
        if example.state.files:
            example.state = shrunk(example.state, example.finding.kind, recording, replay, judge)
            findings = judge(replay.build(example.state), recording.promises.at(example.state.cut), example.state)
            example.finding = next((one for one in findings if one.kind == example.finding.kind), example.finding)
            example.story = list(story(example.state, recording, replay))
        best[example.finding.kind] = example
    return list(best.values())


def shrunk(state: State, kind: str, recording: Recording, replay: Replay, judge: Judge) -> State:
    """Return a state with fewer kept changes, none torn if possible, that fails in the same way."""
    expected = recording.promises.at(state.cut)
    steps = 0

    def fails(candidate: State) -> bool:
        nonlocal steps
        steps += 1
        found = judge(replay.build(candidate), expected, candidate)
        return steps < _MOST_STEPS and any(finding.kind == kind for finding in found)

    progress = True
    while progress and steps < _MOST_STEPS:
        progress = False
        for candidate in _simpler(state, replay):
            if fails(candidate):
                state, progress = candidate, True
                break
    return state


def _simpler(state: State, replay: Replay) -> Iterator[State]:
    """Yield states that keep less than ``state``, or keep whole what it has torn."""
    places = [(name, at) for name, file in state.files for at, mask in enumerate(file.kept) if mask]
    masks = {name: list(file.kept) for name, file in state.files}
    sized = {name: file.sized for name, file in state.files}
    step = len(places)
    while step:  # halves first, single ones last
        for first in range(0, len(places), step):
            fewer = {name: list(kept) for name, kept in masks.items()}
            for name, at in places[first : first + step]:
                fewer[name][at] = 0
            yield replay.state(state.cut, fewer, sized)
        step //= 2
    pending = {name: history.pending(state.cut) for name, history in replay.histories.items()}
    for name, at in places:
        whole = pending[name][at].whole
        if masks[name][at] != whole:
            fewer = {key: list(kept) for key, kept in masks.items()}
            fewer[name][at] = whole
            yield replay.state(state.cut, fewer, sized)
    for name, count in sized.items():
        if count:
            yield replay.state(state.cut, masks, {**sized, name: 0})


def story(state: State, recording: Recording, replay: Replay) -> Iterator[str]:
    """Tell a state: the last requests before the cut, and what became of each pending change."""
    near = [one for one in recording.promises.requests if one.sent < state.cut]
    for request in near[-4:]:
        answered = "answered" if request.done < state.cut else "in flight"
        yield f"client: {request}, {answered}"
    for name, file in state.files:
        yield from _file_story(name, file, replay, state.cut, recording.label)


def _file_story(name: str, file: FileState, replay: Replay, cut: int, label: Callable[..., str]) -> Iterator[str]:
    sized = 0
    for op, mask in zip(replay.histories[name].pending(cut), file.kept, strict=True):
        kept = mask.bit_count()
        fate = "lost" if not kept else "kept" if mask == op.whole else f"torn ({kept} of {op.sectors} sectors kept)"
        if op.size is not None:
            sized += 1
            fate = fate if op.blob else "kept" if sized <= file.sized else "lost"
        what = f"to {op.length}" if op.verb == "resize" else f"{op.length} at {op.offset}"
        yield f"{name}: #{op.number} {op.verb} {what} ({label(name, op)}): {fate}"
