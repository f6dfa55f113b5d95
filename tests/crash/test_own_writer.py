# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Our writer under power cuts: some states of every kind of disk. `vmdkit torture` looks at as many as one likes."""

from __future__ import annotations

import pytest

from vmdkit.torture import own
from vmdkit.torture.fixtures import plans

PLANS = plans()


@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_lost(name: str) -> None:
    result = own.torture(PLANS[name], 1, states=10, effort=own.Effort(requests=24, recover=0.4, again=2))
    assert result.states > 10
    assert not result.failing, result.examples


@pytest.mark.parametrize("name", ["sparse-64k-child", "split-v2-child", "cowd"])
def test_nothing_is_lost_by_clients_at_once(name: str) -> None:
    result = own.torture(PLANS[name], 1, states=10, effort=own.Effort(requests=40, threads=3))
    assert not result.failing, result.examples
