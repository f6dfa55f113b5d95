# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A disk that is full or fails in the middle: the client is told, and what was flushed stays, power cuts or not."""

from __future__ import annotations

import errno

import pytest

from vmdkit.torture import own
from vmdkit.torture.files import FailAt
from vmdkit.torture.fixtures import plans

PLANS = plans()
FAULTS = {
    "data or tables do not fit": (errno.ENOSPC, ("write",), 3),
    "the file cannot grow": (errno.ENOSPC, ("resize",), 3),
    "a write fails": (errno.EIO, ("write",), 1),
    "a barrier fails": (errno.EIO, ("flush",), 1),
    "a hole cannot be punched": (errno.EIO, ("trim", "zero"), 1),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["sparse-on-demand", "split-v2-child", "cowd"])
def test_nothing_is_lost(name: str, fault: str) -> None:
    number, verbs, count = FAULTS[fault]
    effort = own.Effort(requests=24, again=1)
    met = 0
    for first in (1, 2, 3, 5, 8, 13, 21):
        faults = FailAt(number, verbs, first=first, count=count)
        result = own.torture(PLANS[name], 2, states=3, effort=effort, faults=faults)
        assert not result.failing, (first, result.examples)
        met += faults.seen >= first
    assert met > 2


def test_the_client_is_told() -> None:
    recording = own.record(PLANS["sparse"], 1, own.Effort(), FailAt(errno.EIO, ("flush",), first=4))
    assert any(request.failed for request in recording.promises.requests)
