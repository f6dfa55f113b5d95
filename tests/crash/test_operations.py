# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Power cuts during whole operations: a few states of each, and proof that a careless one would be caught."""

from __future__ import annotations

import pytest

from vmdkit.torture import operations
from vmdkit.torture.operations import MemoryFiles
from vmdkit.torture.scenes import CHANGED, REFUSED, UNREADABLE
from vmdkit.torture.scenes import operations as all_operations

OPERATIONS = all_operations()
WITHOUT_BARRIERS = {
    "create twoGbMaxExtentSparse": {UNREADABLE},
    "snapshot vmfsSparse": {UNREADABLE},
    "commit monolithicSparse to monolithicSparse": {CHANGED, UNREADABLE, REFUSED},
    "rebase monolithicSparse": {CHANGED, UNREADABLE},
    "resize monolithicSparse to 71680k": {CHANGED, UNREADABLE},
    "compact monolithicSparse": {CHANGED, UNREADABLE},
    "repair sparse shared": {CHANGED, UNREADABLE},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_lost(name: str) -> None:
    result = operations.torture(OPERATIONS[name], 1, states=8)
    assert not result.failing, result.examples


@pytest.mark.parametrize("name", WITHOUT_BARRIERS)
def test_missing_barriers_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = MemoryFiles._device

    def careless(self: MemoryFiles, path: str, name: str, *, writable: bool) -> object:
        made = device(self, path, name, writable=writable)
        monkeypatch.setattr(made, "_flush", lambda: None)
        return made

    monkeypatch.setattr(MemoryFiles, "_device", careless)
    monkeypatch.setattr(MemoryFiles, "sync_directory", lambda self, path: None)
    result = operations.torture(OPERATIONS[name], 1, states=60)
    assert set(result.kinds) & WITHOUT_BARRIERS[name]
