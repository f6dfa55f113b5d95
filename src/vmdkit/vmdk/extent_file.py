# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The inner interface: one extent of a VMDK answers where its bytes are, and nothing else.

A subformat *maps*; reading, zero filling, asking the parent and every loop stand once, in disk.py. ``inflate_into``
is the one exception: only a stream knows how its grains are packed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmdkit.errors import CorruptError, UnsupportedError, VmdkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.allocate import TableWriter
    from vmdkit.vmdk.session import Session


class RunKind(Enum):
    """What a run of an extent is."""

    DATA = "data"  # verbatim in the storage
    ZERO = "zero"  # zero, whatever a parent holds
    PARENT = "parent"  # not here: the parent's, or zero without one
    DEFLATE = "deflate"  # compressed in the storage
    NOACCESS = "noaccess"  # the descriptor forbids it
    CORRUPT = "corrupt"  # the metadata is wrong here


class Run(NamedTuple):
    """``length`` bytes of one kind; ``at`` is the byte address in the storage where the kind is DATA."""

    length: int
    kind: RunKind
    at: int = 0


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something about an image that a careful reader should know, though it could be opened."""

    text: str
    path: str = ""
    offset: int | None = None

    def __str__(self) -> str:
        at = f" (at offset {self.offset:#x})" if self.offset is not None else ""
        return f"{self.path}: {self.text}{at}" if self.path else f"{self.text}{at}"


class ExtentFile(ABC):
    """One extent: ``length`` bytes of the disk, held by ``storage`` (None: no file at all).

    ``is_plain`` says that the storage's own holes are holes of the disk, as in flat files.
    """

    is_plain = False
    grain = 0  # bytes; 0 where there are no grains
    writer: TableWriter | None = None  # gives grains, where the extent has any and was opened for writing

    def __init__(self, length: int, storage: Device | None, *, kind: str) -> None:
        self.length = length
        self.storage = storage
        self.kind = kind
        self.doubts: list[Doubt] = []

    @property
    def path(self) -> str:
        """The file's name for messages."""
        return self.storage.name if self.storage is not None else ""

    @abstractmethod
    def map(self, offset: int, count: int) -> Run:
        """Return what begins at ``offset``: at least one byte, at most ``count``, all of one kind."""

    def runs(self, offset: int, count: int) -> Iterator[Run]:
        """Yield runs that cover ``count`` bytes from ``offset``; a driver with tables does this in bulk."""
        end = offset + count
        while offset < end:
            run = self.map(offset, end - offset)
            yield run
            offset += run.length

    def inflate_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from compressed grains; called only for DEFLATE runs."""
        raise UnsupportedError(f"{self.kind} has no compressed grains at {offset}", path=self.path)

    def refusal(self, offset: int, kind: RunKind) -> VmdkitError:
        """Return the error that says why the byte at ``offset`` cannot be read."""
        if kind is RunKind.NOACCESS:
            return VmdkitError("this extent is marked NOACCESS in the descriptor", path=self.path)
        return CorruptError("this part of the extent cannot be read", structure=self.kind, path=self.path)

    def allocated(self) -> int:
        """Return how many bytes of this extent are held by its file."""
        kinds = (RunKind.DATA, RunKind.DEFLATE)
        return sum(run.length for run in self.runs(0, self.length) if run.kind in kinds)

    def facts(self) -> dict[str, object]:
        """Return what ``info`` shows of this extent, JSON-ready."""
        return {"type": self.kind, "file": self.path, "length": self.length}

    def examine(self) -> Iterator[Doubt]:
        """Yield doubts that take reading all metadata to find; ``doubts`` has those seen on opening."""
        yield from ()

    def open_for_writing(self, session: Session) -> None:
        """Get ready to be written; raises UnsupportedError or CorruptError where that would not be safe."""

    def mark_unclean(self, *, unclean: bool) -> None:
        """Write the flag that says whether the file is being written, where the format has one; not yet durable."""

    def close(self) -> None:
        """Close the storage."""
        if self.storage is not None:
            self.storage.close()
