# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Show how far a long verb is: a bar on a terminal, JSON lines on request, else nothing."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

_BAR_PERIOD = 0.1  # seconds between two pictures
_JSON_PERIOD = 0.5  # seconds between two lines


class Skips(Protocol):
    """What a tally tells beside the progress: bytes that did not have to be moved."""

    skipped: int


@contextmanager
def shown(args: Namespace, total: int, tally: Skips | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function to be called with numbers of bytes done, of ``total``; shows them as ``args`` asks."""
    mode = "none" if args.quiet and args.progress is None else args.progress or "bar"
    if mode == "json":
        meter = _Json(total, tally)
        yield meter.advance
        meter.show()
    elif mode == "bar" and sys.stderr is not None and sys.stderr.isatty():
        yield from _bar(total, tally)
    else:
        yield lambda _: None


class _Json:
    def __init__(self, total: int, tally: Skips | None) -> None:
        self.total = total
        self.tally = tally
        self.done = 0
        self.started = self.shown = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= _JSON_PERIOD:
            self.shown = now
            self.show()

    def show(self) -> None:
        """Write a line: bytes done and in total, bytes a second since the start, seconds left or null."""
        rate = self.done / max(time.monotonic() - self.started, 1e-6)
        eta = round((self.total - self.done) / rate, 1) if rate else None
        line = {"done": self.done, "total": self.total, "rate": round(rate), "eta": eta}
        if self.tally is not None:
            line["skipped"] = self.tally.skipped
        if sys.stderr is not None:
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()


def _bar(total: int, tally: Skips | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console  # 100 ms: only where a bar is drawn
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[skipped]}", markup=False),
    )
    done, shown = 0, 0.0
    with Progress(*columns, console=Console(stderr=True), transient=False) as picture:
        task = picture.add_task("", total=total, skipped="")

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            now = time.monotonic()
            if now - shown >= _BAR_PERIOD or done >= total:
                shown = now
                skipped = f"{format_size(tally.skipped)} skipped" if tally is not None and tally.skipped else ""
                picture.update(task, completed=done, skipped=skipped)

        yield advance
