# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Fail our writer's changes one after the other, and cut its power afterwards: full disks, broken disks."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmdkit.torture import own
from vmdkit.torture.files import FailAt
from vmdkit.torture.harness import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.torture.fixtures import Plan

# What fails, with which number, and how many in a row: a full disk stays full for a while.
KINDS = (
    (("write",), errno.ENOSPC, 3),
    (("write",), errno.EIO, 1),
    (("resize",), errno.ENOSPC, 3),
    (("flush",), errno.EIO, 1),
    (("trim", "zero"), errno.EIO, 1),
    (("write", "resize"), errno.ENOSPC, 3),
)


def _firsts() -> Iterator[int]:
    """Yield which change is the first to fail: each of the first ones, then some."""
    yield from range(1, 16)
    yield from range(16, 80, 5)


def torture(plan: Plan, seed: int, *, states: int, effort: own.Effort) -> Result:
    """Return what came of ``states`` states after each fault; ``extra`` says how many faults were met."""
    total = Result(f"{plan.name} faults", str(seed), extra={"faults": 0})
    for verbs, number, count in KINDS:
        for first in _firsts():
            faults = FailAt(number, verbs, first=first, count=count)
            result = own.torture(plan, seed, states=states, effort=effort, faults=faults)
            if faults.seen < first:
                break  # the workload has no more of them
            total.extra["faults"] += 1
            total.states += result.states
            total.failing += result.failing
            total.kinds.update(result.kinds)
            total.examples += result.examples
    return total
