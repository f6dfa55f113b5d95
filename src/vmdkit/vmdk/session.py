# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What has to happen around writing: before the first change, after an error, at the end (format spec 4.3, 1 to 4).

::

    opened ──first change──▶ begin: unclean flags │ barrier │ new content ID │ barrier ──▶ writing
    writing ──close──▶ publish │ barrier │ unclean flags cleared │ barrier
    writing ──an error of the disk──▶ failed: nothing more is written, the flags stay
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vmdkit.errors import VmdkitError
from vmdkit.vmdk import descriptor_edit
from vmdkit.vmdk.epochs import Epochs

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.extent_file import ExtentFile


class Session:
    """One opening for writing. Thread-safe."""

    def __init__(self, text: Descriptor, storage: Device) -> None:
        self._text = text
        self._storage = storage
        self._extents: list[ExtentFile] = []
        self._lock = threading.Lock()
        self._begun = False
        self._failure: BaseException | None = None
        self._dirty = False
        self.epochs = Epochs()

    def take(self, extent: ExtentFile) -> None:
        """Answer for an extent; raises UnsupportedError or CorruptError where it cannot be written safely."""
        if extent.storage is not None and extent.storage.writable:
            extent.open_for_writing(self)
            self._extents.append(extent)

    def begin(self) -> None:
        """Do what has to be durable before the first change; raises what failed, then and ever after."""
        if self._failure is not None:
            raise VmdkitError(
                f"nothing more is written after an error of the disk ({self._failure}); "
                "what was flushed before is safe: close the disk, check it, and open it again",
                path=self._text.path,
            ) from self._failure
        if self._begun:
            return
        with self._lock:
            if not self._begun:
                self.guarded(self._begin)
                self._begun = True

    def _begin(self) -> None:
        for extent in self._extents:
            extent.mark_unclean(unclean=True)
        self._barrier()
        text = self._text
        new, cid = descriptor_edit.change_content(text.raw)
        descriptor_edit.write_changed(self._storage, text.at, text.raw, new)
        self._storage.flush()
        text.raw = new
        text.header["cid"] = f"{cid:08x}"
        for extent in self._extents:
            if extent.writer is not None:
                extent.writer.complete_last_grain()

    @property
    def writing(self) -> bool:
        """Whether bytes that have their place may be written there: ``begin`` was called, nothing has failed."""
        return self._begun and self._failure is None

    def wrote(self) -> None:
        """Note that something was written, before anybody is told: the next flush has to do something."""
        self._dirty = True

    def flush(self) -> None:
        """Make everything written until now durable in every extent; nothing where nothing was."""
        if self._begun:
            self.begin()
            if self._dirty:
                self.guarded(self._publish)

    def _publish(self) -> None:
        self._dirty = False  # first: what is written meanwhile is for the next flush
        flushed: set[int] = set()
        for extent in self._extents:
            storage = extent.storage
            if storage is None or id(storage) in flushed:
                continue
            flushed.add(id(storage))
            if extent.writer is not None:
                extent.writer.publish()
            else:
                storage.flush()

    def _barrier(self) -> None:
        for storage in {id(extent.storage): extent.storage for extent in self._extents}.values():
            if storage is not None:
                storage.flush()

    def guarded(self, work: Callable[[], None]) -> None:
        """Run something after whose failure nobody knows what is on the disk (format spec 4.3, 15)."""
        try:
            work()
        except BaseException as error:
            self._failure = self._failure or error
            raise

    def close(self) -> None:
        """Publish, and say that the files are whole; after a failure leave the flags as the warning they are."""
        writers = [extent.writer for extent in self._extents if extent.writer is not None]
        for writer in writers:
            writer.wait()
        if not self._begun or self._failure is not None:
            return
        self.guarded(self._publish)
        for writer in writers:
            writer.finish()
        for extent in self._extents:
            extent.mark_unclean(unclean=False)
        self._barrier()
