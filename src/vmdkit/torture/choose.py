# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Choose which of the states that a power cut could leave are looked at: the nasty ones always, others by chance.

Where few changes are pending, every subset of them is taken. Else: nothing, everything, each change alone, everything
but each change, everything up to each change and from each change on, and each label alone and left out (a label is
what a change is for, such as one copy of the tables; by default its size). Each of these with the file's size
following the data, and with all new sizes and no data. The rest is random: whole changes, and torn ones.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmdkit.torture.replay import Op, Replay, State

    Label = Callable[[str, Op], str]

_FEW = 6  # changes of which every subset is taken
_MANY = 48  # changes beyond which single ones are sampled
_NASTY_SHARE = 0.6  # of the states, at most


def by_size(_name: str, op: Op) -> str:
    """Label a change by its size: pointers are small, data are large."""
    return "small" if op.length <= SECTOR else "large"


def choose(
    replay: Replay, cuts: Iterable[int], moments: Iterable[int], count: int, seed: int | str, label: Label = by_size
) -> Iterator[State]:
    """Yield about ``count`` different states, by rising cut: nasty ones at ``cuts``, random ones at any of ``moments``.

    A given recording, count and seed give the same states.
    """
    rng = random.Random(f"states {seed}")
    seen: set[State] = set()
    for cut in sorted(set(cuts)):
        seen.update(_nasty(replay, cut, label, rng))
    nasty = sorted(seen)
    if len(nasty) > count * _NASTY_SHARE:
        nasty = rng.sample(nasty, int(count * _NASTY_SHARE))
    chosen = dict.fromkeys(nasty)
    places = list(moments)
    for _ in range(4 * count):
        if len(chosen) >= count:
            break
        chosen[_random(replay, rng.choice(places), rng)] = None
    yield from sorted(chosen)


def _nasty(replay: Replay, cut: int, label: Label, rng: random.Random) -> Iterator[State]:
    pending = replay.pending(cut)
    count = len(pending)
    names = replay.names.pending(cut)
    renamed = [dict.fromkeys(names, 0), {home: len(ops) for home, ops in names.items()}] if names else [{}]
    for kept in _subsets(pending, label, rng):
        flags = [index in kept for index in range(count)]
        masks: dict[str, list[int]] = {}
        for (name, op), flag in zip(pending, flags, strict=True):
            masks.setdefault(name, []).append(op.whole if flag else 0)
        state = replay.state(cut, masks)
        for names_kept in renamed:
            yield state_with(state, names=names_kept)
        if any(op.size is not None for _, op in pending):
            yield replay.state(cut, masks, sized=_all_sizes(pending))
            yield replay.state(cut, masks, sized=dict.fromkeys(masks, 0))


def state_with(state: State, *, names: dict[str, int]) -> State:
    """Return ``state`` with other names."""
    from dataclasses import replace

    return replace(state, names=tuple(sorted(names.items()))) if names else state


def _all_sizes(pending: list[tuple[str, Op]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, op in pending:
        sizes[name] = sizes.get(name, 0) + (op.size is not None)
    return sizes


def _subsets(pending: list[tuple[str, Op]], label: Label, rng: random.Random) -> set[frozenset[int]]:
    """Return sets of changes to keep, by their places in ``pending``."""
    count = len(pending)
    everything = frozenset(range(count))
    sets = {frozenset[int](), everything}
    if count <= _FEW:
        for flags in product((False, True), repeat=count):
            sets.add(frozenset(index for index, flag in enumerate(flags) if flag))
        return sets
    some = everything if count <= _MANY else frozenset(rng.sample(range(count), _MANY))
    by_time = sorted(everything, key=lambda index: (pending[index][1].ended, pending[index][1].begun))
    for index in some:
        sets.add(frozenset({index}))
        sets.add(everything - {index})
        sets.add(frozenset(by_time[:index]))
        sets.add(frozenset(by_time[index:]))
    labels: dict[str, set[int]] = {}
    for index, (name, op) in enumerate(pending):
        labels.setdefault(label(name, op), set()).add(index)
        labels.setdefault(f"file {name}", set()).add(index)
    for members in labels.values():
        sets.add(frozenset(members))
        sets.add(everything - members)
    return sets


def _random(replay: Replay, cut: int, rng: random.Random) -> State:
    chance = rng.choice((0.1, 0.3, 0.5, 0.7, 0.9))
    torn = rng.choice((0.0, 0.0, 0.3, 1.0))
    masks: dict[str, list[int]] = {}
    sized: dict[str, int] = {}
    pending = replay.pending(cut)
    for name, op in pending:
        mask = op.whole if rng.random() < chance else 0
        if op.sectors > 1 and rng.random() < torn:
            mask = _torn(op, rng)
        masks.setdefault(name, []).append(mask)
    for name, most in _all_sizes(pending).items():
        if most and rng.random() < 0.5:  # a coin
            sized[name] = rng.randint(0, most)
    state = replay.state(cut, masks, sized)
    names = {home: rng.randint(0, len(ops)) for home, ops in replay.names.pending(cut).items()}
    return state_with(state, names=names)


def _torn(op: Op, rng: random.Random) -> int:
    """Return some of a change's sectors: a beginning, an end, or any."""
    how = rng.randrange(3)
    if how == 0:
        return (1 << rng.randint(1, op.sectors - 1)) - 1
    if how == 1:
        return op.whole ^ ((1 << rng.randint(1, op.sectors - 1)) - 1)
    return rng.getrandbits(op.sectors)
