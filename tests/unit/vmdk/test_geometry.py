# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from vmdkit.units import GIB, MIB
from vmdkit.vmdk.geometry import geometry


@pytest.mark.parametrize(
    ("size", "adapter", "expected"),
    [
        (2 * MIB, "lsilogic", (2, 64, 32)),  # ESX's own 2 MiB disk (format spec 1.6)
        (512, "lsilogic", (1, 64, 32)),
        (GIB - 512, "buslogic", (1023, 64, 32)),
        (GIB, "lsilogic", (512, 128, 32)),
        (2 * GIB, "lsilogic", (1024, 128, 32)),
        (2 * GIB + 512, "lsilogic", (261, 255, 63)),
        (10 * GIB, "lsilogic", (1305, 255, 63)),
        (10 * GIB, "ide", (20805, 16, 63)),
        (83220 * 16 * 63 * 512, "ide", (83220, 16, 63)),  # Fusion's example: no cap
    ],
)
def test_as_vmware_writes_it(size: int, adapter: str, expected: tuple[int, int, int]) -> None:
    assert geometry(size, adapter) == expected
