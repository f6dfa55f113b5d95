# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""docs/ova.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdkit.ova.guests import GUESTS, find, is_known
from vmdkit.ova.machine import CONTROLLERS
from vmdkit.ova.rules import table
from vmdkit.ova.targets import TARGETS

TEXT = (Path(__file__).parents[3] / "docs" / "ova.md").read_text(encoding="utf-8")


def test_the_table_of_rules() -> None:
    assert TEXT.endswith(table() + "\n"), "print vmdkit.ova.rules.table() into docs/ova.md"


@pytest.mark.parametrize("name", [*TARGETS, *CONTROLLERS])
def test_names_are_told(name: str) -> None:
    assert name in TEXT


@pytest.mark.parametrize("name", GUESTS)
def test_guests(name: str) -> None:
    guest = find(name)
    assert is_known(guest.vmware)
    assert find(guest.vmware).vmware == guest.vmware
    assert ("64" in guest.vmware) is guest.virtualbox.endswith("_64")
