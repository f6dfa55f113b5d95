# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Extents that need no map: FLAT and VMFS files, devices, and ZERO lines (format spec 1.5, 1.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.device import ExtentFlags
from vmdkit.errors import CorruptError
from vmdkit.vmdk.extent_file import Doubt, ExtentFile, Run, RunKind

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.errors import VmdkitError


class FlatExtent(ExtentFile):
    """Raw bytes from ``start`` (bytes) of a file. What the file is too short for cannot be read."""

    is_plain = True

    def __init__(self, length: int, storage: Device, *, start: int, kind: str) -> None:
        super().__init__(length, storage, kind=kind)
        self.start = start
        self._held = max(0, min(length, storage.size - start))
        if self._held < length:
            self.doubts.append(
                Doubt(
                    f"the file ends {length - self._held} bytes early: it has {storage.size}, "
                    f"and {start + length} are due; what is missing cannot be read",
                    self.path,
                    storage.size,
                )
            )

    def map(self, offset: int, count: int) -> Run:
        """Everything is data, up to the end of the file."""
        if offset < self._held:
            return Run(min(count, self._held - offset), RunKind.DATA, self.start + offset)
        return Run(count, RunKind.CORRUPT)

    def refusal(self, offset: int, kind: RunKind) -> VmdkitError:
        """Say that the file is too short."""
        if kind is not RunKind.CORRUPT:
            return super().refusal(offset, kind)
        return CorruptError(
            f"the file ends before this part of the disk; {self.start + self.length} bytes are due",
            structure=f"{self.kind} extent",
            path=self.path,
            offset=self.start + offset,
        )

    def allocated(self) -> int:
        """Return how many bytes are no holes of the file."""
        if self.storage is None or not self._held:
            return 0
        held = self.storage.extents(self._held, self.start)
        return sum(run.length for run in held if not run.flags & ExtentFlags.HOLE)

    def facts(self) -> dict[str, object]:
        """Add where in the file the extent begins."""
        return {**super().facts(), "start": self.start}


class ZeroExtent(ExtentFile):
    """A ZERO line: no file, reads as zero."""

    def __init__(self, length: int) -> None:
        super().__init__(length, None, kind="ZERO")

    def map(self, offset: int, count: int) -> Run:  # noqa: D102  # nothing to add
        return Run(count, RunKind.ZERO)


class NoAccessExtent(ExtentFile):
    """A NOACCESS line: the range exists, and reading it fails."""

    def __init__(self, length: int, kind: str) -> None:
        super().__init__(length, None, kind=kind)

    def map(self, offset: int, count: int) -> Run:  # noqa: D102
        return Run(count, RunKind.NOACCESS)


class MissingTail(ExtentFile):
    """The part of an extent line that its file does not have, where the file's own header says it is smaller."""

    def __init__(self, length: int, path: str) -> None:
        super().__init__(length, None, kind="missing")
        self._path = path

    @property
    def path(self) -> str:
        """The file that is too small."""
        return self._path

    def map(self, offset: int, count: int) -> Run:  # noqa: D102
        return Run(count, RunKind.CORRUPT)

    def refusal(self, offset: int, kind: RunKind) -> VmdkitError:
        """Say which sizes disagree."""
        return CorruptError(
            f"the descriptor gives this extent {self.length} bytes more than its header has",
            structure="extent",
            path=self._path,
        )
