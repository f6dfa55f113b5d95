# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Mend a disk: every extent file of one link, then its descriptor (format spec 4.4).

Parents are not touched: they belong to other children too. What is planned is really done, on staged files that keep
it to themselves, so that the check afterwards sees what it would see.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmdkit.device import Device
from vmdkit.errors import GateError, UnsupportedError, VmdkitError
from vmdkit.gate import Gate
from vmdkit.units import SECTOR
from vmdkit.vmdk import chain, descriptor_edit
from vmdkit.vmdk.check import check_disk
from vmdkit.vmdk.check_stream import StreamCheck
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.image import FileKind, classify, read_descriptor
from vmdkit.vmdk.repair_cowd import mend_cowd
from vmdkit.vmdk.repair_hosted import mend_hosted
from vmdkit.vmdk.repair_steps import Staged
from vmdkit.vmdk.structs import FLAG_COMPRESSED, HostedHeader
from vmdkit.vmdk.subformats import EXTENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.vmdk.check_findings import Report
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.locks import LockSet
    from vmdkit.vmdk.repair_steps import Steps, UndoLog

_PARENT_CID = re.compile(rb'^[ \t]*parentCID[ \t]*=[ \t]*"?([0-9a-fA-F]{8})\b', re.IGNORECASE | re.MULTILINE)


def repair_disk(
    storage: Device, gate: Gate, steps: Steps, *, locks: LockSet | None = None, undo: UndoLog | None = None
) -> Report:
    """Mend the disk whose descriptor is in ``storage``, and return what a check finds afterwards.

    Takes over ``storage``, which is open for writing unless ``steps`` are a plan. Raises OSError, LockedError where
    somebody has the disk, and UnsupportedError where the descriptor is no text that could be gone by.
    """
    name = storage.name
    with ExitStack() as stack:
        if locks is not None:
            stack.callback(locks.release)
        staging = _StagedGate(gate, steps, locks, undo)
        stack.callback(staging.close)
        own = staging.take(storage, exclusive=True)
        text = _text(own)
        if text is None:
            _mend(own, steps)
        else:
            for index, line in enumerate(text.extents):
                row = EXTENT_TYPES.get(line.type)
                if row is None or row.driver != "sparse" or line.access == "NOACCESS":
                    continue
                embedded = index == 0 and classify(own) is FileKind.HOSTED
                file = own if embedded else staging.staged(line.name or "", text.path)
                if file is not None:
                    _mend(file, steps)
            _relink(own, text, gate, steps)
        return check_disk(_View(own), staging, name=name)


def _text(storage: Device) -> Descriptor | None:
    try:
        return read_descriptor(storage)
    except VmdkitError as error:
        if classify(storage) is FileKind.TEXT:
            raise UnsupportedError(
                f"its descriptor cannot be understood, and nobody can say what it was meant to be: {error.message}",
                path=storage.name,
            ) from error
        return None  # a header that has to be mended first


def _mend(storage: Device, steps: Steps) -> None:
    kind = classify(storage)
    if kind is FileKind.COWD:
        mend_cowd(storage, steps)
    elif kind is FileKind.HOSTED and storage.size >= HostedHeader.size_of():
        header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), 0))
        if header.flags & FLAG_COMPRESSED:
            _mend_stream(storage, steps)
        else:
            mend_hosted(storage, steps)


def _mend_stream(storage: Device, steps: Steps) -> None:
    """Put the end-of-stream marker where it lacks; nothing else of a stream can be mended in its place."""
    found = StreamCheck(storage, shallow=False).run()
    if not any(one.code == "stream-no-eos" and one.remedy for one in found.findings) or storage.size % SECTOR:
        return
    steps.add("eos", storage.name, "append the end-of-stream marker")
    storage.resize(storage.size + SECTOR)
    storage.flush()


def _relink(storage: Device, text: Descriptor, gate: Gate, steps: Steps) -> None:
    """Make a child accept its parent as it is now: with consent, or where a commit had got so far (commit.py)."""
    above = _parent_text(text, gate, must=steps.consent.relink)
    if above is None or above.cid == text.parent_cid:
        return
    if chain.is_half_committed(text, above.cid):
        chain_risk = ""
    elif steps.consent.relink:
        chain_risk = (
            "the parent has changed since: where this child has nothing of its own the guest sees the new bytes"
        )
    else:
        return
    match = _PARENT_CID.search(text.raw)
    if match is None or above.size != text.size:
        raise UnsupportedError("it cannot be linked again: the parent is of another size", path=text.path)
    steps.add("relink", text.path, f"accept the parent {above.path} with its content ID {above.cid:08x}", chain_risk)
    new = text.raw[: match.start(1)] + f"{above.cid:08x}".encode() + text.raw[match.end(1) :]
    descriptor_edit.write_changed(storage, text.at, text.raw, new)
    storage.flush()


def _parent_text(text: Descriptor, gate: Gate, *, must: bool) -> Descriptor | None:
    """Return the parent's descriptor; None where there is no parent, or, unless there ``must`` be one, none to read."""
    try:
        if text.parent_cid == NO_CID:
            return None
        with chain.open_parent(text, gate) as file:
            return read_descriptor(file)
    except (VmdkitError, OSError):
        if must:
            raise
        return None


class _StagedGate(Gate):
    """Opens files for mending, each once, and shows the check what has become of them."""

    def __init__(self, gate: Gate, steps: Steps, locks: LockSet | None, undo: UndoLog | None) -> None:
        self._gate = gate
        self._steps = steps
        self._locks = locks
        self._undo = undo
        self._files: dict[chain.Identity, Staged] = {}

    def take(self, storage: Device, *, exclusive: bool) -> Staged:
        """Lock and stage a file; takes it over."""
        try:
            if self._locks is not None:
                self._locks.take(storage, exclusive=exclusive)
            staged = Staged(storage, commit=not self._steps.is_plan, undo=self._undo)
        except BaseException:
            storage.close()
            raise
        self._files[chain.identify(storage)] = staged
        return staged

    def staged(self, name: str, base: str) -> Staged | None:
        """Return a file of the disk, to be changed; None where it is not there or may not be opened."""
        try:
            file = self._gate.open(name, base, writable=not self._steps.is_plan)
        except (GateError, FileNotFoundError):
            return None
        known = self._files.get(chain.identify(file))
        if known is not None:
            file.close()
            return known
        return self.take(file, exclusive=True)

    def resolve(self, name: str, base: str) -> str:
        """As the gate."""
        return self._gate.resolve(name, base)

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a file, as it is staged if it is."""
        file = self._gate.open(name, base)
        staged = self._files.get(chain.identify(file))
        if staged is None:
            return file
        file.close()
        return _View(staged)

    def close(self) -> None:
        """Close what was staged."""
        for staged in self._files.values():
            staged.close()


class _View(Device):
    """A staged file for reading, which outlives this."""

    def __init__(self, staged: Staged) -> None:
        super().__init__(staged.size, name=staged.name)
        self._staged = staged

    def _pread_into(self, view: memoryview, offset: int) -> None:
        self._staged.pread_into(view, offset)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        yield from self._staged.extents(count, offset, context=context)
