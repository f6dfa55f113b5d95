# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a server offers: Devices under names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.device import BlockSize, Can
from vmdkit.errors import UsageError
from vmdkit.nbd.protocol import MAX_REQUEST, MAX_STRING, ExportFlag, Mode
from vmdkit.units import KIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmdkit.device import Device


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """A device on a server; the server never closes it.

    ``read_only`` refuses writing even where the device could.
    """

    device: Device
    name: str = ""
    description: str = ""
    read_only: bool = True

    @property
    def writable(self) -> bool:
        """Whether clients may write."""
        return not self.read_only and self.device.writable

    def flags(self, mode: Mode, *, filters: bool = False) -> ExportFlag:
        """Return the transmission flags for a client in ``mode``; ``filters``: it may name contexts per query.

        WRITE_ZEROES goes with every writable export: nbdcopy 1.14 hangs on a multi-conn server that lacks it
        (nbd spec, interop fact 1). Any device can do it, by writing if need be.
        """
        can, flags = self.device.can, ExportFlag.HAS_FLAGS
        if self.writable:
            flags |= ExportFlag.SEND_WRITE_ZEROES | ExportFlag.SEND_FAST_ZERO
            if can & (Can.FLUSH | Can.FUA):
                flags |= ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA
            if can & Can.TRIM:
                flags |= ExportFlag.SEND_TRIM
            if can & Can.MULTI_CONN:
                flags |= ExportFlag.CAN_MULTI_CONN
        else:
            flags |= ExportFlag.READ_ONLY | ExportFlag.SEND_FLUSH
            if not self.device.writable or can & Can.MULTI_CONN:
                flags |= ExportFlag.CAN_MULTI_CONN
        if can & Can.CACHE:
            flags |= ExportFlag.SEND_CACHE
        if mode is not Mode.SIMPLE:
            flags |= ExportFlag.SEND_DF
        if mode is Mode.EXTENDED and filters:
            flags |= ExportFlag.BLOCK_STATUS_PAYLOAD
        return flags

    def block_size(self) -> BlockSize:
        """Return the sizes to advertise: the device's, brought within what the protocol allows.

        It knows powers of two up to 64 KiB as minimum; beside that 1 is told, since the device's edge aligns.
        """
        minimum, preferred, maximum = self.device.block_size
        if minimum > 64 * KIB or minimum & (minimum - 1):
            minimum = 1
        maximum = min(maximum, MAX_REQUEST)
        maximum -= maximum % minimum
        preferred = min(max(preferred, 512, minimum), maximum)
        return BlockSize(minimum, preferred, maximum)

    def shareable(self) -> bool:
        """Tell whether several processes may serve this device at once, each with its own copy of the object.

        The device says so (Can.FORK): reading always may; of what is written only a plain file may, where every
        byte has one fixed place. A disk with tables, or with a content ID to change, has to have one process.
        """
        return bool(self.device.can & Can.FORK) or not self.device.writable


class Exports:
    """The names of a server; the empty name means the first export unless one is really called that."""

    def __init__(self, exports: Sequence[Export]) -> None:
        if not exports:
            raise UsageError("a server needs at least one export")
        self._by_name: dict[str, Export] = {}
        for export in exports:
            for text in (export.name, export.description):
                if len(text.encode()) > MAX_STRING or "\0" in text:
                    raise UsageError(f"{text[:80]!r} is no name for NBD: at most {MAX_STRING} bytes, none of them zero")
            if export.name in self._by_name:
                raise UsageError(f"two exports are called {export.name!r}; give each a name of its own (-x)")
            self._by_name[export.name] = export
        self._default = self._by_name.get("", exports[0])

    def __iter__(self) -> Iterator[Export]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Export | None:
        """Return the export that ``name`` means, or None."""
        return self._by_name.get(name) or (self._default if name == "" else None)
