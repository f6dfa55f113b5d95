# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Cylinders, heads and sectors: cosmetic today, but ESX and old guests look at them (format spec 1.6)."""

from __future__ import annotations

from typing import NamedTuple

from vmdkit.units import GIB, SECTOR

_IDE = (16, 63)
_SCSI = ((GIB, (64, 32)), (2 * GIB + 1, (128, 32)))  # below this many bytes: heads, sectors
_LARGE = (255, 63)


class Geometry(NamedTuple):
    """What the guest's BIOS is told; ``sectors`` are those of a track."""

    cylinders: int
    heads: int
    sectors: int


def geometry(size: int, adapter: str) -> Geometry:
    """Return the geometry that VMware writes for a disk of ``size`` bytes behind ``adapter`` (format spec 1.6).

    Whole cylinders only, at least one: what is left over is still there, as it is on VMware's disks.
    """
    heads, sectors = _IDE if adapter == "ide" else next((shape for below, shape in _SCSI if size < below), _LARGE)
    return Geometry(cylinders(size, heads, sectors), heads, sectors)


def cylinders(size: int, heads: int, sectors: int) -> int:
    """Return how many whole cylinders of that shape ``size`` bytes hold, at least one."""
    return max(1, size // (heads * sectors * SECTOR))
