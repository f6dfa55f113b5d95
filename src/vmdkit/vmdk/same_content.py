# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write to a disk without changing what a guest sees of it, so that its content ID stays true and may stay.

A child into which its old parent's bytes are copied reads as before; so does a disk that is made smaller on the host.
Its own children and the backups that know its content ID must not be told otherwise (format spec 1.3). All other
duties of a session are as they were: unclean flags before the first change, tables after data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.vmdk.session import Session
from vmdkit.vmdk.writable import WritableDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.disk import VmdkDisk


class SameContent(Session):
    """A session that leaves the descriptor to its owner.

    ``before`` is called once, when the unclean flags are durable and nothing else has been changed.
    """

    def __init__(self, text: Descriptor, storage: Device, before: Callable[[], None] | None = None) -> None:
        super().__init__(text, storage)
        self._before = before

    def _begin(self) -> None:
        for extent in self._extents:
            extent.mark_unclean(unclean=True)
        self._barrier()
        if self._before is not None:
            self._before()
        for extent in self._extents:
            if extent.writer is not None:
                extent.writer.complete_last_grain()


def quiet(disk: VmdkDisk, before: Callable[[], None] | None = None) -> tuple[WritableDisk, SameContent]:
    """Return the same open disk, to be written through a SameContent session, and the session.

    ``disk`` was opened for writing, has not been written to, and stays the one to be closed, after the session.
    """
    storage = next(extent.storage for extent in disk.extent_files if extent.storage is not None)
    session = SameContent(disk.descriptor, storage, before)
    unclean = is_unclean(disk)
    for extent in disk.extent_files:
        session.take(extent)
    if unclean:  # what a power cut has left is finished now, so the flag has to go even if there is nothing to write
        session.begin()
    return WritableDisk(disk.descriptor, disk.extent_files, session, storage, parent=disk.parent), session


def is_unclean(disk: VmdkDisk) -> bool:
    """Tell whether a writer of one of the extents has not finished."""
    headers = (getattr(extent, "header", None) for extent in disk.extent_files)
    return any(getattr(header, "unclean_shutdown", False) for header in headers)
