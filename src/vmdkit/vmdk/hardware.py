# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a new disk says of the virtual hardware it is for (format spec 1.6)."""

from __future__ import annotations

from vmdkit.errors import UsageError
from vmdkit.vmdk.geometry import geometry

ADAPTERS = ("ide", "buslogic", "lsilogic", "legacyESX")
_TOOLS = {"toolsInstallType": "4", "toolsVersion": "2147483647"}  # unmanaged; without it no customization (1.8)


def check_hardware(adapter: str, hwversion: str) -> None:
    """Raise UsageError for an adapter that no descriptor names, or what is no hardware version."""
    if adapter not in ADAPTERS:
        raise UsageError(
            f"adapter {adapter!r} is unknown; {', '.join(ADAPTERS)} are "
            "(disks behind pvscsi, SATA or NVMe say lsilogic too)"
        )
    if not (hwversion.isascii() and hwversion.isdigit() and 1 <= int(hwversion) <= 99):
        raise UsageError(f"hardware version {hwversion!r}; a number from 1 to 99 is due")


def hardware_lines(size: int, adapter: str, hwversion: str) -> dict[str, str]:
    """Return the lines of the disk database that tell the hardware of a disk of ``size`` bytes."""
    cylinders, heads, sectors = geometry(size, adapter)
    return _TOOLS | {
        "adapterType": adapter,
        "geometry.cylinders": str(cylinders),
        "geometry.heads": str(heads),
        "geometry.sectors": str(sectors),
        "virtualHWVersion": hwversion,
    }
