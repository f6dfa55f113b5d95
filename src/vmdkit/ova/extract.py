# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Take files out of a package: only those that the descriptor names, checked against the manifest on their way.

All of them appear, or none: each is written beside its final name, and they take their names when the last digest was
right. A member's name becomes a path only if it is a bare file name (users spec, A19).
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError, GateError, UsageError
from vmdkit.kernels import ZEROS
from vmdkit.ops.copy import CopyOptions, copy, ignore
from vmdkit.ops.pool import read_ahead
from vmdkit.ops.unchanged import unchanged
from vmdkit.ova import manifest
from vmdkit.ova.archive import unsafe
from vmdkit.ranges import split
from vmdkit.storage.target import new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.device import Device
    from vmdkit.ova.descriptor import Disk, Envelope
    from vmdkit.ova.package import Package

_RAW = ".raw"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be taken out. ``disk`` is a number from 1, a file name or an ID; None means everything."""

    disk: str | None = None
    raw: bool = False  # disks as raw bytes rather than as they are packed
    overwrite: bool = False
    sync: bool = True


def extract(package: Package, directory: str, choice: Choice, *, progress: Callable[[int], None] = ignore) -> list[str]:
    """Write the files of a package into ``directory``, which is made if it is not there; return their paths.

    Raises FormatError for damage and for digests that are wrong, GateError for names that must not become paths,
    UsageError where a file exists, OSError. After an error nothing is left.
    """
    names = selected(package, choice)
    expected = _digests(package)
    made = _make(directory)
    try:
        with ExitStack() as outputs:
            written = [
                _write(package, name, os.path.join(directory, target), choice, expected, outputs, progress)
                for name, target in zip(names, _targets(names, raw=choice.raw), strict=True)
            ]
    except BaseException:
        if made:
            with suppress(OSError):
                os.rmdir(directory)
        raise
    return written


def selected(package: Package, choice: Choice) -> list[str]:
    """Return the names of what is to be taken out, checked; in their order."""
    _, envelope = package.envelope()
    if choice.disk is not None or choice.raw:
        names = [name for _, name in disks(package, envelope)] if choice.disk is None else []
        if choice.disk is not None:
            names = [find_disk(package, envelope, choice.disk)]
        if not names:
            raise UsageError("there is no disk in it", path=package.path)
    else:
        files = [package.find(file.href) for file in envelope.files]
        small = [name for name in package.names if name.lower().endswith((".ovf", ".mf", ".cert"))]
        names = [*small, *(name for name in files if name is not None)]
        missing = [file.href for file, name in zip(envelope.files, files, strict=True) if name is None]
        if missing:
            raise FormatError(f"{missing[0][:200]!r} is not in it, though the descriptor names it", path=package.path)
    names = list(dict.fromkeys(names))
    for name in names:
        reason = unsafe(name)
        if reason:
            raise GateError(f"the member {name[:200]!r} is not written: {reason}", path=package.path)
    return names


def disks(package: Package, envelope: Envelope) -> list[tuple[Disk, str]]:
    """Return the disks that have a file in the package, with its name; in the order of the descriptor."""
    found = []
    for disk in envelope.disks:
        href = envelope.href_of(disk)
        name = package.find(href) if href is not None else None
        if name is not None:
            found.append((disk, name))
    return found


def find_disk(package: Package, envelope: Envelope, wanted: str) -> str:
    """Return the file of the disk that a number from 1, a file name or an ID means. Raises UsageError."""
    there = disks(package, envelope)
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= len(there):
        return there[int(wanted) - 1][1]
    for disk, name in there:
        if wanted in (name, disk.id):
            return name
    names = ", ".join(f"{number} {name}" for number, (_, name) in enumerate(there[:20], start=1))
    raise UsageError(f"there is no disk {wanted!r} in it; there are {names or 'none'}", path=package.path)


def _digests(package: Package) -> dict[str, manifest.Line]:
    """Return the first digest of each file that the manifest has and we can compute."""
    found: dict[str, manifest.Line] = {}
    for name in package.names:
        if name.lower().endswith(".mf"):
            for line in manifest.parse(package.read(name, manifest.LARGEST), name).lines:
                if line.algorithm in manifest.ALGORITHMS:
                    found.setdefault(line.name, line)
            break
    return found


def _make(directory: str) -> bool:
    try:
        os.mkdir(directory)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise
        return False
    return True


def _targets(names: Sequence[str], *, raw: bool) -> list[str]:
    """Return what the files are called: a raw disk ``x.raw`` for ``x.vmdk``, or all ``x.vmdk.raw``, ``x.img.raw``."""
    if not raw:
        return list(names)
    short = [os.path.splitext(name)[0] + _RAW for name in names]
    return short if len(set(short)) == len(short) else [name + _RAW for name in names]


def _write(
    package: Package,
    name: str,
    path: str,
    choice: Choice,
    expected: dict[str, manifest.Line],
    outputs: ExitStack,
    progress: Callable[[int], None],
) -> str:
    line = expected.get(name)
    with package.open(name) as source:
        if not choice.raw:
            target = outputs.enter_context(new_file(path, source.size, overwrite=choice.overwrite, sync=choice.sync))
            _copy(source, target, line, name, package.path, progress)
            return path
        if line is not None:
            _copy(source, None, line, name, package.path, progress)
    with package.open_disk(name) as disk:
        target = outputs.enter_context(new_file(path, disk.size, overwrite=choice.overwrite, sync=choice.sync))
        copy(disk, target, CopyOptions(destination_is_zero=True), progress)
    return path


def _copy(
    source: Device,
    target: Device | None,
    line: manifest.Line | None,
    name: str,
    path: str,
    progress: Callable[[int], None],
) -> None:
    """Copy a file and compute its digest on the way; without a target only that."""
    hasher = manifest.hasher(line.algorithm) if line is not None else None
    if hasher is None and target is not None:
        copy(source, target, CopyOptions(destination_is_zero=True), progress)
        return
    with unchanged(source), closing(read_ahead(source, threads=1)) as pieces:
        for segment, view in pieces:
            if view is None:
                for _, length in split(0, segment.length, len(ZEROS)):
                    if hasher is not None:
                        hasher.update(memoryview(ZEROS)[:length])
            else:
                if hasher is not None:
                    hasher.update(view)
                if target is not None:
                    target.pwrite(view, segment.offset)
            progress(segment.length)
    if line is not None and hasher is not None and hasher.hexdigest() != line.digest:
        raise FormatError(
            f"the {line.algorithm} of {name!r} is {hasher.hexdigest()}, the manifest says {line.digest[:128]}: "
            "it was damaged or changed",
            path=path,
        )


def sizes(package: Package, names: Sequence[str], *, raw: bool) -> int:
    """Return how many bytes ``extract`` reports as progress."""
    total = 0
    expected = _digests(package) if raw else {}
    for name in names:
        with package.open(name) as source:
            total += source.size if not raw or name in expected else 0
        if raw:
            with package.open_disk(name) as disk:
                total += disk.size
    return total
