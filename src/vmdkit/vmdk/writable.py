# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A VmdkDisk that can be written: the one write loop, the one zero loop.

An extent says where bytes are; what is there is overwritten in place, what is not is given grains by the extent's
TableWriter. Order and durability are the writer's and the session's business, not the loops'.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmdkit.device import Can, ExtentFlags
from vmdkit.errors import ReadOnlyError, UnsupportedError
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.extent_file import ExtentFile, Run, RunKind
from vmdkit.vmdk.structs import UNALLOCATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.session import Session

_ABSENT = (RunKind.PARENT, RunKind.ZERO)


class WritableDisk(VmdkDisk):
    """A virtual disk opened for writing. Made by ``vmdkit.open(..., writable=True)``."""

    def __init__(
        self,
        descriptor: Descriptor,
        extents: list[ExtentFile],
        session: Session,
        storage: Device,
        *,
        parent: Device | None = None,
        identity: object = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Take over what ``image`` has opened; ``storage`` holds the descriptor, ``release`` gives up the locks."""
        super().__init__(descriptor, extents, parent=parent, identity=identity)
        # Several processes would each have tables of their own, so no FORK; flush covers all connections of this one.
        self._set_can(self.can & ~Can.FORK | Can.WRITE | Can.FUA | Can.ZERO | Can.FAST_ZERO | Can.TRIM)
        self._session = session
        self._storage = storage
        self._release = release
        self._moves = any(extent.writer is not None for extent in extents)

    # ── reading: an address that was looked up must not be given away meanwhile ──────────────────────────────

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if not self._moves:
            super()._pread_into(view, offset)
            return
        epochs = self._session.epochs
        side = epochs.enter()
        try:
            super()._pread_into(view, offset)
        finally:
            epochs.leave(side)

    # ── writing past the loops, as servers do ────────────────────────────────────────────────────────────────

    @property
    def in_place(self) -> bool:
        """Grains stay where they are until they are trimmed or zeroed; the first change is left to ``pwrite``."""
        return self._session.writing

    def overwritten(self) -> None:
        """Have the next flush do something."""
        self._session.wrote()

    # ── the write loop ───────────────────────────────────────────────────────────────────────────────────────

    def _pwrite(self, view: memoryview, offset: int) -> None:
        session = self._session
        session.begin()
        side = session.epochs.enter()
        try:
            done = 0
            while done < len(view):
                at = offset + done
                extent, start = self._extent_at(at)
                length = min(len(view) - done, start + extent.length - at)
                done += self._write_run(extent, start, view[done : done + length], at)
        finally:
            session.wrote()
            session.epochs.leave(side)

    def _write_run(self, extent: ExtentFile, start: int, piece: memoryview, at: int) -> int:
        """Write the beginning of ``piece`` at ``at``; return how many bytes, perhaps none yet."""
        run = extent.map(at - start, len(piece))
        storage = _writable_storage(extent, run, at - start)
        if run.kind is RunKind.DATA:
            storage.pwrite(piece[: run.length], run.at)
            return run.length
        if run.kind in _ABSENT and extent.writer is not None:
            return extent.writer.allocate(piece, at - start, self._filler(start))
        raise extent.refusal(at - start, run.kind)

    def _filler(self, start: int) -> Callable[[memoryview, int], None] | None:
        """Return what gives the bytes below an extent that begins at ``start`` of the disk; None for zeros."""
        if self.parent is None:
            return None

        def fill(view: memoryview, offset: int) -> None:
            self._read_parent(view, start + offset)

        return fill

    # ── zero and trim ────────────────────────────────────────────────────────────────────────────────────────

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        with self._changing():
            end = offset + count
            while offset < end:
                extent, start = self._extent_at(offset)
                length = min(end, start + extent.length) - offset
                offset += self._zero_run(extent, start, length, offset, no_hole=no_hole, fast=fast)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._session.begin()
        with self._session.epochs.operation():
            try:
                yield
            finally:
                self._session.wrote()

    def _zero_run(self, extent: ExtentFile, start: int, length: int, at: int, *, no_hole: bool, fast: bool) -> int:
        """Zero the beginning of ``length`` bytes at ``at``; return how many bytes, perhaps none yet."""
        run = extent.map(at - start, length)
        storage = _writable_storage(extent, run, at - start)
        if run.kind is RunKind.DATA:
            freed = 0 if no_hole else self._free_grains(extent, at - start, run.length)
            if not freed:
                freed = self._head(extent, at - start, run.length)
                storage.zero(freed, run.at, no_hole=no_hole, fast=fast)
            return freed
        if run.kind not in _ABSENT or extent.writer is None:
            raise extent.refusal(at - start, run.kind)
        if not no_hole:
            if run.kind is RunKind.ZERO or self._parent_is_zero(at, run.length):
                return run.length
            freed = self._free_grains(extent, at - start, run.length)
            if freed:
                return freed
        if fast:
            raise UnsupportedError("zeros would have to be written here", path=extent.path)
        piece = memoryview(bytes(self._head(extent, at - start, min(run.length, _ZERO_STEP))))
        return extent.writer.allocate(piece, at - start, self._filler(start))

    def _trim(self, count: int, offset: int) -> None:
        """Give back whole grains, and holes of flat files; what that would change into the parent's is left."""
        with self._changing():
            end = offset + count
            while offset < end:
                extent, start = self._extent_at(offset)
                length = min(end, start + extent.length) - offset
                run = extent.map(offset - start, length)
                if run.kind is RunKind.DATA and extent.storage is not None and extent.storage.writable:
                    freed = self._free_grains(extent, offset - start, run.length)
                    if not freed:
                        freed = self._head(extent, offset - start, run.length)
                        extent.storage.trim(freed, run.at)
                    offset += freed
                else:
                    offset += run.length

    def _free_grains(self, extent: ExtentFile, offset: int, length: int) -> int:
        """Drop the whole grains that a range begins with; return their bytes, 0 where it begins with none.

        Over a parent a grain is dropped only where the format has an entry that hides the parent.
        """
        writer = extent.writer
        if writer is None:
            return 0
        code = UNALLOCATED if self.parent is None else writer.zero_code
        grain = extent.grain
        first, last = -(-offset // grain), (offset + length) // grain
        if offset + length == extent.length:
            last = -(-extent.length // grain)
        if code is None or first * grain != offset or last <= first:
            return 0
        writer.free(first, last, code)
        return min(last * grain - offset, length)

    def _head(self, extent: ExtentFile, offset: int, length: int) -> int:
        """Return the bytes up to the first whole grain, where that could be dropped; else all of ``length``."""
        if extent.writer is None or (self.parent is not None and extent.writer.zero_code is None):
            return length
        skip = -offset % extent.grain
        return min(length, skip) if skip else length

    def _parent_is_zero(self, at: int, length: int) -> bool:
        """Tell whether what shows through is zero already."""
        return all(flags & ExtentFlags.ZERO for _, _, flags in self._parent_extents(at, length, depth=False))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        self._session.flush()

    def _close(self) -> None:
        try:
            self._session.close()
        finally:
            super()._close()
            self._storage.close()
            if self._release is not None:
                self._release()


_ZERO_STEP = 4 * 1024 * 1024  # bytes of zeros written at once


def _writable_storage(extent: ExtentFile, run: Run, offset: int) -> Device:
    """Return the file to write to; raises ReadOnlyError where the descriptor or the type forbids it."""
    if run.kind in (RunKind.CORRUPT, RunKind.NOACCESS):
        raise extent.refusal(offset, run.kind)
    if extent.storage is None:
        raise ReadOnlyError(f"a {extent.kind} extent holds no data that could be written")
    if not extent.storage.writable:
        raise ReadOnlyError("this extent is marked RDONLY in the descriptor", path=extent.path)
    return extent.storage
