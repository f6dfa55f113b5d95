# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Two images whose every number is known, and that several independent readers agree about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from images.assemble import monolithic_flat, se_sparse, vmfs_sparse
from images.sesparse import SeSparse
from layout import SECTOR
from model import Model

if TYPE_CHECKING:
    from pathlib import Path

    from images.base import Image

COWD_SECTORS: Final = {0: "P", 4105: "P", 4106: "A", 4107: "B", 4108: "P", 16383: "P"}
SE_GRAINS: Final = {0: "A", 1: "0", 2: "0", 3: "P", 4: "B", 5: "P", 5000: "C", 5001: "P"}


def cowd_8m(directory: Path) -> Image:
    """Build the 8 MiB delta with two grains in its second table: header free sector 39, GDE[1] = 5."""
    base = monolithic_flat(directory, "8M:P", name="base")
    model = Model("8M:-", base.model)
    model.put("A", SECTOR, 4106 * SECTOR)
    model.put("B", SECTOR, 4107 * SECTOR)
    return vmfs_sparse(directory, model, name="base-000001", parent=base)


def sesparse_100m(directory: Path) -> Image:
    """Build the 100 MiB delta with each kind of entry, and one whose index needs the high bits.

    The base has data only where it is looked at: a flat file of 100 MiB is slow to write.
    """
    under = Model(100 << 20)
    under.put("P", 64 << 10, 0)
    under.put("P", 64 << 10, 5000 * 4096)
    base = monolithic_flat(directory, under, name="base")
    model = Model(100 << 20, base.model)
    for grain, what in SE_GRAINS.items():
        if what != "P":
            model.put(what, 4096, grain * 4096)
    image = se_sparse(
        directory,
        model,
        SeSparse(index={0: 0, 4: 4097, 5000: 1}),
        name="base-000001",
        parent=base,
    )
    image.poke_entry(2, 1 << 60)  # unmapped instead of zero: also reads as zeros
    return image
