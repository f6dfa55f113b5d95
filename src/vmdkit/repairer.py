# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Repair disks by path: the door to ``vmdkit repair``."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from vmdkit import finder
from vmdkit.checker import check
from vmdkit.errors import UsageError, VmdkitError
from vmdkit.ops.copy import CopyOptions, copy
from vmdkit.storage.directory import LocalFiles
from vmdkit.storage.file import open_file
from vmdkit.vmdk.check import may_be_cut
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.image import FileKind, classify
from vmdkit.vmdk.locks import LockSet
from vmdkit.vmdk.repair_disk import repair_disk
from vmdkit.vmdk.repair_rebuild import rebuild, write_descriptor
from vmdkit.vmdk.repair_steps import Consent, Step, Steps, UndoLog, read_undo
from vmdkit.vmdk.structs import FLAG_COMPRESSED, HostedHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmdkit.vmdk.check_findings import Report
    from vmdkit.vmdk.files import Files

_FILES = LocalFiles()


@dataclass(slots=True)
class Repaired:
    """What was done, or would be, and what a check finds afterwards."""

    report: Report
    steps: list[Step] = field(default_factory=list)
    undo: str = ""
    is_plan: bool = False

    def facts(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "plan": self.is_plan,
            "steps": [step.facts() for step in self.steps],
            "undo": self.undo or None,
            "after": self.report.facts(),
        }


def repair(
    location: str | os.PathLike[str],
    *,
    plan: bool = False,
    consent: Consent | None = None,
    undo: bool = True,
    allow_paths: Sequence[str] = (),
) -> Repaired:
    """Mend a disk in its place: what is safe, and what consent was given to.

    With ``plan`` nothing is changed. What changed places held before goes to a file beside the disk (``undo``).
    Raises LockedError where somebody has the disk open, OSError, FormatError, UnsupportedError.
    """
    path = os.fspath(location)
    steps = Steps(consent or Consent(), is_plan=plan)
    gate = finder.gate_for(untrusted=False, allow_paths=allow_paths)
    storage = finder.find_file(path)
    if not plan:
        name = storage.name
        storage.close()
        storage = open_file(name, writable=True)
    log = UndoLog(_free_name(f"{storage.name}.undo")) if undo and not plan else None
    resizing = _was_resizing(path, allow_paths)
    try:
        report = repair_disk(storage, gate, steps, locks=None if plan else LockSet(), undo=log)
    finally:
        if log is not None:
            log.close()
    if resizing:
        report = _finish_resizing(path, report, steps, allow_paths)
    report.path = path
    return Repaired(report, steps.done, log.path if log is not None and log.used else "", plan)


def _was_resizing(path: str, allow_paths: Sequence[str]) -> bool:
    """Tell whether the disk is as an interrupted resizing leaves it; mending clears the flag that says so."""
    from vmdkit import opener

    try:
        with opener.open(path, single_link=True, allow_paths=allow_paths) as disk:
            lines = disk.descriptor.extents  # type: ignore[attr-defined]
            for line, extent in zip(lines, disk.extent_files, strict=False):  # type: ignore[attr-defined]
                header = getattr(extent, "header", None)
                larger = header is not None and header.capacity > line.length
                if larger and extent.storage is not None and may_be_cut(extent.storage, header, line.length):
                    return True
    except (VmdkitError, OSError):
        pass  # it has other troubles
    return False


def _finish_resizing(path: str, report: Report, steps: Steps, allow_paths: Sequence[str]) -> Report:
    """Give the extents the size that the descriptor says: a growing is undone, a shrinking finished.

    Either way nothing is lost that the disk has: what it lacks now was not there yet, or had been given up. Resizing
    survives a power cut at any moment by itself, and keeps nothing in the undo file.
    """
    from vmdkit import maker, opener

    if any(each.severity is Severity.ERROR and each.code != "extent-capacity" for each in report.findings):
        return report  # first what is worse
    steps.add("resize", path, "bring the extents to the size that the descriptor says (not in the undo file)")
    if steps.is_plan:
        return report
    with opener.open(path, single_link=True, allow_paths=allow_paths) as disk:
        size = disk.size
    maker.resize(path, size, shrink=True, with_children=True)
    return check(path, allow_paths=allow_paths)


def _free_name(path: str) -> str:
    number, name = 0, path
    while os.path.lexists(name):
        number += 1
        name = f"{path}.{number}"
    return name


def revert(path: str) -> list[str]:
    """Put back what an undo file kept; return the files that were changed. Raises FormatError, OSError, LockedError."""
    sizes, changes = read_undo(path)
    locks = LockSet()
    try:
        for name, size in sizes.items():
            with open_file(name, writable=True) as storage:
                locks.take(storage, exclusive=True)
                for file, offset, data in reversed(changes):
                    if file == name:
                        storage.pwrite(data, offset)
                storage.resize(size)
                storage.flush()
    finally:
        locks.release()
    return list(sizes)


# ── onto another file ────────────────────────────────────────────────────────────────────────────────────────────


def repair_onto(
    location: str | os.PathLike[str],
    onto: str | os.PathLike[str],
    *,
    consent: Consent | None = None,
    allow_paths: Sequence[str] = (),
) -> Repaired:
    """Make a repaired copy at ``onto``, which must not exist; the original is only read.

    Of a stream the copy is a sparse disk (``onto`` ends in .vmdk) or raw bytes, with whatever could be read. Of a
    disk of several files the copy goes to another directory. Raises as ``repair``, and UsageError.
    """
    path, target = os.fspath(location), os.fspath(onto)
    if os.path.lexists(target):
        raise UsageError("it exists; --onto makes a new file", path=target)
    storage = finder.find_file(path)
    with storage:
        is_stream = _is_stream(storage.name)
        name = storage.name
    if is_stream:
        return _salvage(name, target)
    return _copied(name, target, consent or Consent(), allow_paths)


def _is_stream(path: str) -> bool:
    with open_file(path) as storage:
        if classify(storage) is not FileKind.HOSTED or storage.size < HostedHeader.size_of():
            return False
        header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), 0))
        return bool(header.flags & FLAG_COMPRESSED)


def _salvage(path: str, target: str) -> Repaired:
    from vmdkit import maker, opener

    with opener.open(path, salvage=True) as source:
        doubts = [str(doubt) for doubt in getattr(source, "doubts", [])]
        text = "; ".join(doubts) or "read by its grains"
        step = Step("salvage", target, f"write what can be read: {text}", "what was not found reads as zero")
        made = False
        try:
            if target.lower().endswith(".vmdk"):
                maker.create(target, source.size)
                made = True
                with opener.open(target, writable=True) as new:
                    copy(source, new, CopyOptions(destination_is_zero=True))
            else:
                with _FILES.new_file(target, target) as raw:
                    made = True
                    raw.resize(source.size)
                    copy(source, raw, CopyOptions(destination_is_zero=True))
                    raw.flush()
                _FILES.sync_directory(os.path.dirname(target))
        except BaseException:
            if made:
                with suppress(OSError):
                    os.unlink(target)
            raise
    return Repaired(check(target), [step])


def _copied(path: str, target: str, consent: Consent, allow_paths: Sequence[str]) -> Repaired:
    home = os.path.dirname(target)
    temporary = os.path.join(home, f".vmdkit-{os.urandom(6).hex()}.part")
    others = _other_files(path)
    if others and os.path.realpath(home or ".") == os.path.realpath(os.path.dirname(path) or "."):
        raise UsageError("the disk is made of several files, so its copy has to go to another directory", path=target)
    made: list[str] = []
    try:
        for source in others:
            made.append(_copy_file(source, os.path.join(home, os.path.basename(source))))
        made.append(_copy_file(path, temporary))
        done = repair(temporary, consent=consent, undo=False, allow_paths=allow_paths)
        _FILES.rename(temporary, target, replace=False)
    except BaseException:
        for name in made:
            with suppress(OSError):
                os.unlink(name)
        raise
    _FILES.sync_directory(home)
    return Repaired(check(target, allow_paths=allow_paths), done.steps)


def _other_files(path: str) -> list[str]:
    try:
        storage, text = finder.find(path)
    except VmdkitError:
        return []
    storage.close()
    gate = finder.gate_for(untrusted=False, allow_paths=())
    embedded = text.at > 0
    names = [line.name for index, line in enumerate(text.extents) if line.name and not (embedded and not index)]
    return list(dict.fromkeys(gate.resolve(name, path) for name in names))


def _copy_file(path: str, target: str) -> str:
    """Copy a file, holes as holes, by reflink where the file system can; durable."""
    with open_file(path) as source, _FILES.new_file(target, target) as new:
        try:
            new.resize(source.size)
            copy(source, new, CopyOptions(destination_is_zero=True))
            new.flush()
        except BaseException:
            os.unlink(target)
            raise
    return target


# ── descriptors ──────────────────────────────────────────────────────────────────────────────────────────────────


def rebuild_descriptor(
    location: str | os.PathLike[str], *, plan: bool = False, flat_type: str = "", parent: str = ""
) -> Repaired:
    """Make the descriptor that an extent file has lost; see ``vmdkit.vmdk.repair_rebuild``."""
    path = os.fspath(location)
    new = rebuild(cast("Files", _FILES), path, flat_type=flat_type, parent=parent)
    step = Step("descriptor", new.path, f"write a descriptor; content ID {new.cid:08x}, {new.origin}")
    if plan:
        return Repaired(check(path), [step], is_plan=True)
    write_descriptor(cast("Files", _FILES), new)
    return Repaired(check(new.path), [step])
