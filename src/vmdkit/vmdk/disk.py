# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""VmdkDisk: the extents of a VMDK side by side, over its parent, as one Device.

::

    disk      0 ────────── extent 0 ──────────┬────── extent 1 ──────┬─ extent 2 ─ size
                 DATA  ZERO  DEFLATE  PARENT  │                      │
                   │     │      │        └────┼──▶ parent, or zero   │
                storage  0   inflate          │

The only loops over runs stand here: reading, extents and locate ask the extents ``map`` or ``runs`` and act on the
answer. An extent file never copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit.device import ALLOCATION, DEPTH, HOLE_ZERO, BlockSize, Can, Device, Kind, Location
from vmdkit.kernels import ZEROS
from vmdkit.ranges import find
from vmdkit.vmdk.extent_file import Doubt, ExtentFile, Run, RunKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.vmdk.descriptor import Descriptor

_ZEROS = memoryview(ZEROS)
_PREFERRED = 64 * 1024  # bytes; the grain that VMware makes


class VmdkDisk(Device):
    """A virtual disk, opened for reading. Made by ``vmdkit.open``."""

    def __init__(
        self,
        descriptor: Descriptor,
        extents: list[ExtentFile],
        *,
        parent: Device | None = None,
        identity: object = None,
    ) -> None:
        self._starts: list[int] = []
        size = 0
        for extent in extents:
            self._starts.append(size)
            size += extent.length
        super().__init__(
            size,
            name=descriptor.path,
            can=Can.FLUSH | Can.EXTENTS | Can.CACHE | Can.MULTI_CONN | Can.FORK,
            block_size=BlockSize(preferred=_PREFERRED),
            contexts=(ALLOCATION, DEPTH),
        )
        self.descriptor = descriptor
        self.extent_files = extents
        self.parent = parent
        self.identity = identity
        self._single = extents[0] if len(extents) == 1 else None

    # ── where things are ─────────────────────────────────────────────────────────────────────────────────────

    def _extent_at(self, offset: int) -> tuple[ExtentFile, int]:
        """Return the extent that holds ``offset``, and where it begins on the disk."""
        if self._single is not None:
            return self._single, 0
        index = find(self._starts, offset)
        return self.extent_files[index], self._starts[index]

    def _walk(self, count: int, offset: int) -> Iterator[tuple[int, Run, ExtentFile, int]]:
        """Yield (offset on the disk, run, extent, start of the extent) for a range, in bulk."""
        end = offset + count
        while offset < end:
            extent, start = self._extent_at(offset)
            for run in extent.runs(offset - start, min(end, start + extent.length) - offset):
                yield offset, run, extent, start
                offset += run.length

    # ── the read loop ────────────────────────────────────────────────────────────────────────────────────────

    def _pread_into(self, view: memoryview, offset: int) -> None:
        done, count = 0, len(view)
        while done < count:
            at = offset + done
            extent, start = self._extent_at(at)
            run = extent.map(at - start, min(count - done, start + extent.length - at))
            piece = view[done : done + run.length]
            if run.kind is RunKind.DATA and extent.storage is not None:
                extent.storage.pread_into(piece, run.at)
            elif run.kind is RunKind.PARENT and self.parent is not None:
                self._read_parent(piece, at)
            elif run.kind in (RunKind.ZERO, RunKind.PARENT):
                _fill_zero(piece)
            elif run.kind is RunKind.DEFLATE:
                extent.inflate_into(piece, at - start)
            else:
                raise extent.refusal(at - start, run.kind)
            done += run.length

    def _read_parent(self, piece: memoryview, at: int) -> None:
        """Read from the parent; what a smaller parent lacks (only if its size was not checked) is zero."""
        parent = self.parent
        held = max(0, min(len(piece), parent.size - at)) if parent is not None else 0
        if parent is not None and held:
            parent.pread_into(piece[:held], at)
        _fill_zero(piece[held:])

    # ── what is where ────────────────────────────────────────────────────────────────────────────────────────

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        depth = context == DEPTH
        for at, run, extent, _ in self._walk(count, offset):
            if run.kind is RunKind.PARENT:
                yield from self._parent_extents(at, run.length, depth=depth)
            elif depth:
                yield at, run.length, 1
            elif run.kind is RunKind.ZERO:
                yield at, run.length, HOLE_ZERO
            elif run.kind is RunKind.DATA and extent.is_plain and extent.storage is not None:
                for start, length, flags in extent.storage.extents(run.length, run.at):
                    yield at + start - run.at, length, flags
            else:
                yield at, run.length, 0

    def _parent_extents(self, at: int, length: int, *, depth: bool) -> Iterator[tuple[int, int, int]]:
        parent = self.parent
        held = max(0, min(length, parent.size - at)) if parent is not None else 0
        if parent is not None and held:
            context = DEPTH if depth else ALLOCATION
            for start, count, flags in parent.extents(held, at, context=context):
                yield start, count, flags + 1 if depth and flags else flags
        if held < length:
            yield at + held, length - held, 0 if depth else HOLE_ZERO

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        for at, run, extent, _ in self._walk(count, offset):
            storage = extent.storage
            if run.kind is RunKind.PARENT:
                yield from self._parent_locate(at, run.length)
            elif run.kind is RunKind.ZERO:
                yield Location(at, run.length, Kind.ZERO)
            elif run.kind is RunKind.DEFLATE:
                yield Location(at, run.length, Kind.COMPRESSED, storage)
            elif run.kind is not RunKind.DATA or storage is None:
                yield Location(at, run.length, Kind.UNKNOWN)
            elif extent.is_plain:
                for place in storage.locate(run.length, run.at):
                    yield place._replace(offset=at + place.offset - run.at)
            else:
                yield Location(at, run.length, Kind.DATA, storage, run.at)

    def _parent_locate(self, at: int, length: int) -> Iterator[Location]:
        parent = self.parent
        held = max(0, min(length, parent.size - at)) if parent is not None else 0
        if parent is not None and held:
            for place in parent.locate(held, at):
                yield place._replace(depth=place.depth + 1)
        if held < length:
            yield Location(at + held, length - held, Kind.HOLE)

    # ── what it is ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def doubts(self) -> list[Doubt]:
        """What was found doubtful on opening this link; its parent has its own."""
        return [*self.descriptor.doubts, *(doubt for extent in self.extent_files for doubt in extent.doubts)]

    def examine(self) -> Iterator[Doubt]:
        """Yield doubts that take reading all metadata to find: copies that differ, pointers that cannot be."""
        for extent in self.extent_files:
            yield from extent.examine()

    def parts(self) -> Iterator[Device]:
        """Yield the storages of this link, then its parent."""
        yield from (extent.storage for extent in self.extent_files if extent.storage is not None)
        if self.parent is not None:
            yield self.parent

    @property
    def files(self) -> list[str]:
        """Paths of every file that this link is made of, the descriptor's first."""
        return list(dict.fromkeys([self.name, *(extent.path for extent in self.extent_files if extent.path)]))

    def facts(self) -> dict[str, Any]:
        """Return what ``info`` shows of this link, JSON-ready; sizes in bytes."""
        text = self.descriptor
        return {
            "file": self.name,
            "format": "vmdk",
            "subformat": text.create_type,
            "size": self.size,
            "allocated": sum(extent.allocated() for extent in self.extent_files),
            "cid": f"{text.cid:08x}",
            "parent_cid": f"{text.parent_cid:08x}",
            "parent_hint": text.parent_hint or None,
            "parent": self.parent.name if self.parent is not None else None,
            "encoding": text.encoding,
            "adapter": text.ddb.get("adaptertype"),
            "hardware_version": text.ddb.get("virtualhwversion"),
            "uuid": text.ddb.get("uuid"),
            "thin": text.ddb.get("thinprovisioned") == "1",
            "change_tracking": text.change_track_path or None,
            "extents": [extent.facts() for extent in self.extent_files],
            "doubts": [str(doubt) for doubt in (*self.doubts, *self.examine())],
        }

    def _close(self) -> None:
        for extent in self.extent_files:
            extent.close()
        if self.parent is not None:
            self.parent.close()


def _fill_zero(piece: memoryview) -> None:
    for at in range(0, len(piece), len(_ZEROS)):
        step = min(len(_ZEROS), len(piece) - at)
        piece[at : at + step] = _ZEROS[:step]
