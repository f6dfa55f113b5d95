# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from vmdkit.ops.rate import Throttle

MIB = 1 << 20


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_a_steady_rate() -> None:
    time = Time()
    throttle = Throttle(10 * MIB, clock=time.clock, sleep=time.sleep)
    for _ in range(100):
        throttle.passed(MIB)
    assert time.now == pytest.approx(110, abs=0.3)


def test_what_was_not_used_is_not_saved_up() -> None:
    time = Time()
    throttle = Throttle(MIB, clock=time.clock, sleep=time.sleep)
    time.now += 1000
    for _ in range(10):
        throttle.passed(MIB)
    assert time.now == pytest.approx(1110, abs=0.3)


def test_no_limit_never_waits() -> None:
    throttle = Throttle(0, sleep=lambda _: pytest.fail("waits"))
    throttle.passed(1 << 40)
    assert throttle.step == 0


@pytest.mark.parametrize(("rate", "step"), [(1, 65536), (MIB, 262144), (1 << 40, 16 * MIB)])
def test_steps_are_small_where_the_rate_is(rate: int, step: int) -> None:
    assert Throttle(rate).step == step
