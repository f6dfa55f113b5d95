# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What the client does: seeded requests that collide, and what it may rely on after each.

Places are drawn from a few hot grains, so that requests overwrite, trim and zero what others have just written; sizes
run from a few bytes to many grains. Every sector of every write says which it is, so that a reader can tell whose
bytes it has found.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import VmdkitError
from vmdkit.torture.fixtures import pattern
from vmdkit.torture.promise import Request
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Clock(Protocol):
        """Tells moments: a Journal, or a real clock."""

        def tick(self) -> int:
            """Return a moment later than all before."""
            ...

    class Client(Protocol):
        """What requests are sent to: a Device, or an NBD connection."""

        def pread(self, count: int, offset: int, /) -> bytes | bytearray: ...  # noqa: D102
        def pwrite(self, buf: bytes, offset: int, /, *, fua: bool = False) -> None: ...  # noqa: D102
        def zero(self, count: int, offset: int, /, *, no_hole: bool = False, fua: bool = False) -> None: ...  # noqa: D102
        def trim(self, count: int, offset: int, /, *, fua: bool = False) -> None: ...  # noqa: D102
        def flush(self) -> None: ...  # noqa: D102


class Action(NamedTuple):
    """One request to be sent; ``verb`` is write, zero, allocate (zero without a hole), trim or flush."""

    verb: str
    offset: int = 0
    length: int = 0
    fua: bool = False


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each verb is drawn; ``fua`` is the share of requests that carry the flag."""

    write: int = 52
    zero: int = 12
    allocate: int = 3
    trim: int = 12
    flush: int = 14
    fua: float = 0.08
    bytewise: float = 0.12  # share of writes and zeros that are no whole sectors


def actions(size: int, grain: int, count: int, seed: int | str, mix: Mix = Mix()) -> list[Action]:
    """Return a workload for a disk of ``size`` bytes; ``grain`` is what its writer allocates at once."""
    rng = random.Random(f"workload {seed}")
    grain = max(grain, 8 * SECTOR)
    hot = [rng.randrange(size // grain) for _ in range(6)]
    verbs = ("write", "zero", "allocate", "trim", "flush")
    weights = (mix.write, mix.zero, mix.allocate, mix.trim, mix.flush)
    out = []
    for _ in range(count):
        verb = rng.choices(verbs, weights)[0]
        if verb == "flush":
            out.append(Action("flush"))
            continue
        offset, length = _place(rng, size, grain, hot)
        if verb != "trim" and rng.random() < mix.bytewise:
            offset += rng.randrange(SECTOR)
            length = min(max(1, length - rng.randrange(SECTOR)), size - offset)
        out.append(Action(verb, offset, length, rng.random() < mix.fua))
    return out


def _place(rng: random.Random, size: int, grain: int, hot: Sequence[int]) -> tuple[int, int]:
    """Draw whole sectors: in a grain, a grain, some grains, or across their edges."""
    number = rng.choice(hot) if rng.random() < 0.7 else rng.randrange(size // grain)  # a share
    start = number * grain
    shape = rng.randrange(5)
    if shape == 0:
        offset, length = start, grain
    elif shape == 1:
        offset, length = start, grain * rng.randint(2, 5)
    elif shape == 2:
        offset, length = start + rng.randrange(grain // SECTOR) * SECTOR, rng.randint(1, 3 * grain // SECTOR) * SECTOR
    else:
        offset = start + rng.randrange(grain // SECTOR) * SECTOR
        length = rng.randint(1, max(1, (start + grain - offset) // SECTOR)) * SECTOR
    return offset, max(SECTOR, min(length, size - offset) // SECTOR * SECTOR)


class Driver:
    """Sends requests, and keeps what the client may rely on."""

    def __init__(self, client: Client, clock: Clock, initial: bytes | bytearray, tag: int) -> None:
        """Drive ``client``, a disk that holds ``initial``; ``tag`` marks what is written."""
        self.requests: list[Request] = []
        self.differed: list[str] = []
        self._client = client
        self._clock = clock
        self._shadow = bytearray(initial)
        self._unsure: set[int] = set()  # sectors that a trim or a failure has left to chance
        self._tag = tag
        self._lock = threading.Lock()

    def send(self, action: Action, *, look: bool = True) -> Request:
        """Send one request and note its moments; failures are noted, not raised. ``look`` reads back."""
        with self._lock:
            request, data = self._prepare(action)
            self.requests.append(request)
        request.sent = self._clock.tick()
        try:
            self._perform(request, data, action)
        except (OSError, VmdkitError):
            request.failed = True
        request.done = self._clock.tick()
        with self._lock:
            if request.failed:
                self._unsure.update(request.sectors)
        if look and not request.failed and request.verb != "flush":
            self._look(request)
        return request

    def _prepare(self, action: Action) -> tuple[Request, bytes]:
        """Work out what the request will leave where."""
        offset, length = action.offset, action.length
        edges = {offset // SECTOR, (offset + length - 1) // SECTOR}
        if (offset % SECTOR or length % SECTOR) and edges & self._unsure:
            offset -= offset % SECTOR  # what a part of an unknown sector becomes is not known either
            length = max(SECTOR, length - length % SECTOR)
        request = Request(action.verb, offset, length, action.fua)
        if action.verb == "flush":
            return request, b""
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        data = b""
        if action.verb == "write":
            whole = pattern((self._tag << 16) + len(self.requests), (last - first) * SECTOR, first * SECTOR)
            data = whole[offset - first * SECTOR :][:length]
        self._shadow[offset : offset + length] = data or bytes(length)
        for sector in range(first, last):
            request.sectors[sector] = bytes(self._shadow[sector * SECTOR : (sector + 1) * SECTOR])
        inside = range(-(-offset // SECTOR), (offset + length) // SECTOR)
        if action.verb == "trim":
            self._unsure.update(inside)
        else:
            self._unsure.difference_update(inside)
        return request, data

    def _perform(self, request: Request, data: bytes, action: Action) -> None:
        offset, length, fua = request.offset, request.length, request.fua
        if request.verb == "write":
            self._client.pwrite(data, offset, fua=fua)
        elif request.verb == "trim":
            self._client.trim(length, offset, fua=fua)
        elif request.verb == "flush":
            self._client.flush()
        else:
            self._client.zero(length, offset, no_hole=action.verb == "allocate", fua=fua)

    def _look(self, request: Request) -> None:
        """Read back what was written, and a little around it."""
        first = max(0, min(request.sectors) - 2)
        last = min(len(self._shadow) // SECTOR, max(request.sectors) + 3)
        found = self._client.pread((last - first) * SECTOR, first * SECTOR)
        for sector in range(first, last):
            value = found[(sector - first) * SECTOR : (sector - first + 1) * SECTOR]
            if sector not in self._unsure and value != self._shadow[sector * SECTOR : (sector + 1) * SECTOR]:
                self.differed.append(f"sector {sector} read wrong after: {request}")
                return


def run(driver: Driver, work: Sequence[Action]) -> None:
    """Send all requests, one after the other."""
    for action in work:
        driver.send(action)


def run_threads(driver: Driver, work: Sequence[Action], threads: int, chunk: int) -> None:
    """Send the requests from several threads; no two in flight touch one ``chunk`` of the disk."""
    busy: set[int] = set()
    changed = threading.Condition()
    rest = iter(work)

    def chunks(action: Action) -> set[int]:
        if action.verb == "flush":
            return set()
        return set(range((action.offset - SECTOR) // chunk, (action.offset + action.length + SECTOR) // chunk + 1))

    def worker() -> None:
        while True:
            with changed:
                action = next(rest, None)
                if action is None:
                    return
                mine = chunks(action)
                while mine & busy:
                    changed.wait()
                busy.update(mine)
            driver.send(action, look=False)
            with changed:
                busy.difference_update(mine)
                changed.notify_all()

    workers = [threading.Thread(target=worker) for _ in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
