# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every writable subformat through random lives; read back through either copy of the tables, and checked.

VMDKIT_OPERATIONS sets how many operations a kind of disk sees; tests/interop/test_life_peers.py asks the peers.
"""

from __future__ import annotations

import os

import pytest

from machine import KINDS, live, ours

OPERATIONS = int(os.environ.get("VMDKIT_OPERATIONS", "60"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_life_at_random(kind: str) -> None:
    assert live(kind, OPERATIONS, ours, steps=30).total() >= OPERATIONS
