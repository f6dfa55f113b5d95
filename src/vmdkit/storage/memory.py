# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes in memory as a Device: for programs that have them there, and the reference of the conformance suite."""

from __future__ import annotations

from vmdkit.device import BlockSize, Can, Device


class MemoryDevice(Device):
    """A bytearray; writes change it. It has no extents but data, and nothing volatile to flush."""

    def __init__(
        self,
        data: bytes | bytearray | int,
        *,
        name: str = "memory",
        writable: bool = True,
        block_size: BlockSize = BlockSize(),  # noqa: B008  # immutable
    ) -> None:
        self._data = bytearray(data)
        can = Can.FLUSH | Can.CACHE | Can.MULTI_CONN
        if writable:
            can |= Can.WRITE | Can.FUA | Can.ZERO | Can.TRIM
        super().__init__(len(self._data), name=name, can=can, block_size=block_size)

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = memoryview(self._data)[offset : offset + len(view)]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._data[offset : offset + len(view)] = view

    def _cache(self, count: int, offset: int) -> None:
        """Nothing is nearer than memory."""
