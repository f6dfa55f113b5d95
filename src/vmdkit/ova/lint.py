# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Hold a package against every rule, for the importers it is meant for.

::

    tar ─► lint_archive      names, order, dialect
    ovf ─► lint_descriptor   references, disks, networks     ─► lint_hardware   items, families, devices
    mf, cert ─► lint_manifest    digests of the bytes that are there
    disks ─► look            streams

Every byte of the files is read once for its digest; streams are inflated at the same time by other threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError, UsageError, VmdkitError
from vmdkit.ops.copy import ignore
from vmdkit.ova import lint_archive, lint_descriptor, lint_hardware, lint_manifest, manifest
from vmdkit.ova.look import Look, look
from vmdkit.ova.package import Package
from vmdkit.ova.report import Report
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from vmdkit.ova.descriptor import Envelope
    from vmdkit.ova.targets import Target

_STEP = MIB  # bytes read for a digest at once


@dataclass(slots=True)
class Subject:
    """A package that is looked at: what was read of it so far."""

    package: Package
    report: Report
    descriptor: str = ""
    envelope: Envelope | None = None
    manifest_name: str = ""
    manifest: manifest.Manifest | None = None
    digests: dict[tuple[str, str], str] = field(default_factory=dict)  # (name, algorithm) -> hexadecimal
    looks: dict[str, Look] = field(default_factory=dict)  # name -> what was seen of a disk


def lint(
    path: str,
    targets: Sequence[Target],
    *,
    threads: int = 2,
    shallow: bool = False,
    progress: Callable[[int], None] = ignore,
) -> Report:
    """Return what is wrong with an OVA, or with a directory that holds an .ovf.

    ``shallow`` reads neither grains nor digests. ``progress`` gets numbers of bytes. Raises FormatError where it is no
    package at all, UsageError, OSError.
    """
    with Package(path) as package:
        return examine(package, targets, threads=threads, shallow=shallow, progress=progress).report


def examine(
    package: Package,
    targets: Sequence[Target],
    *,
    threads: int = 2,
    shallow: bool = False,
    progress: Callable[[int], None] = ignore,
) -> Subject:
    """Look at an open package; the answer holds the report, and what was read."""
    subject = Subject(package, Report(package.path, targets))
    lint_archive.check_archive(subject)
    _read_descriptor(subject)
    if subject.envelope is not None:
        lint_descriptor.check_descriptor(subject)
        lint_archive.check_order(subject)
        lint_hardware.check_hardware(subject)
    lint_manifest.read_manifest(subject)
    _read_files(subject, threads, shallow, progress)
    lint_manifest.check_manifest(subject, with_digests=not shallow)
    lint_descriptor.check_disks(subject)
    return subject


def _read_descriptor(subject: Subject) -> None:
    package, report = subject.package, subject.report
    found = package.descriptors()
    if len(found) != 1:
        rule = "ovf-several" if found else "ovf-missing"
        report.add(rule, f"there are {len(found)}: {', '.join(found[:5])}" if found else "there is no .ovf in it")
        return
    subject.descriptor = found[0]
    try:
        _, subject.envelope = package.envelope()
    except (FormatError, UsageError) as error:
        report.add("ovf-xml", error.message, found[0])


def _read_files(subject: Subject, threads: int, shallow: bool, progress: Callable[[int], None]) -> None:
    """Digest every file, and look at those that are disks."""
    disks = lint_descriptor.disk_files(subject)
    for name in dict.fromkeys([*subject.package.names, *disks]):
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="vmdkit") as pool:
                seen: Future[Look] | None = None
                if name in disks:
                    seen = pool.submit(_look, subject.package, name, threads, shallow)
                if not shallow:
                    _digest(subject, name, progress)
                if seen is not None:
                    subject.looks[name] = seen.result()
        except VmdkitError as error:
            if name in disks:
                subject.report.add("vmdk-unreadable", error.message, name, offset=error.offset)


def _look(package: Package, name: str, threads: int, shallow: bool) -> Look:
    with package.open(name) as device:
        return look(device, threads=threads, shallow=shallow)


def _digest(subject: Subject, name: str, progress: Callable[[int], None]) -> None:
    """Compute what the manifest says of a file."""
    algorithms = lint_manifest.algorithms_for(subject, name)
    hashers = {algorithm: manifest.hasher(algorithm) for algorithm in algorithms}
    if not hashers:
        return
    buf = memoryview(bytearray(_STEP))
    with subject.package.open(name) as device:
        for at in range(0, device.size, _STEP):
            part = buf[: min(_STEP, device.size - at)]
            device.pread_into(part, at)
            for hasher in hashers.values():
                hasher.update(part)
            progress(len(part))
    for algorithm, hasher in hashers.items():
        subject.digests[name, algorithm] = hasher.hexdigest()


def total_bytes(path: str) -> int:
    """Return how many bytes ``lint`` will report as progress, at most."""
    with Package(path) as package:
        total = 0
        for name in package.names:
            try:
                with package.open(name) as device:
                    total += device.size
            except (VmdkitError, OSError):
                continue
        return total
