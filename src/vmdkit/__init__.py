# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""vmdkit: read and serve VMware .vmdk disks at the block level.

::

    import vmdkit

    with vmdkit.open("disk.vmdk") as disk:
        print(disk.size)
        buf = disk.pread(512, 0)
        for extent in disk.extents():
            print(extent.offset, extent.length, extent.flags)
"""

from __future__ import annotations

from vmdkit.device import BlockSize, Can, Device, Extent, ExtentFlags, Kind, Location
from vmdkit.errors import (
    ChainError,
    CorruptError,
    DescriptorError,
    FormatError,
    GateError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
    UsageError,
    VmdkitError,
)
from vmdkit.maker import create
from vmdkit.opener import open  # noqa: A004  # the library's verb

__version__ = "0.1.0"

__all__ = [
    "BlockSize",
    "Can",
    "ChainError",
    "CorruptError",
    "DescriptorError",
    "Device",
    "Extent",
    "ExtentFlags",
    "FormatError",
    "GateError",
    "Kind",
    "Location",
    "OutOfRangeError",
    "ReadOnlyError",
    "UnsupportedError",
    "UsageError",
    "VmdkitError",
    "create",
    "open",
]
