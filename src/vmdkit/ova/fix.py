# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write an OVA again, so that the importers it is meant for take it; say each thing that was done.

Disks that break no rule are taken as they are, the others are packed again. Order, tar headers, manifest and sizes
come out right by construction (``writer``); the descriptor is changed where a rule asks for it (``mend``). An OVA that
nobody complains about is copied byte for byte, so fixing twice is fixing once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError, UsageError
from vmdkit.ops.copy import ignore
from vmdkit.ova import xml
from vmdkit.ova.archive import unsafe
from vmdkit.ova.build import Packed, Packing, is_sound, recipe_for
from vmdkit.ova.descriptor import IDE
from vmdkit.ova.lint import examine
from vmdkit.ova.lint_descriptor import controller_of, disk_files
from vmdkit.ova.lint_hardware import vmx
from vmdkit.ova.mend import Mend, set_files
from vmdkit.ova.rules import Level
from vmdkit.ova.targets import hardware_for
from vmdkit.ova.writer import Appender, Seal, Verbatim, write_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from vmdkit.device import Device
    from vmdkit.ova.descriptor import File
    from vmdkit.ova.lint import Subject
    from vmdkit.ova.package import Package
    from vmdkit.ova.targets import Target
    from vmdkit.ova.writer import Piece, Written

# What cannot be put right without a decision, or at all.
_HOPELESS = (
    "tar-header", "tar-truncated", "tar-ambiguous", "tar-bomb", "tar-sparse", "tar-name-twice", "ovf-missing",
    "ovf-several", "ovf-xml", "ovf-version", "ref-missing", "ref-address", "ref-compressed", "ref-chunked",
    "disk-file", "disk-parent",
    "vmdk-unreadable", "vmdk-damaged", "vmdk-child",
)  # fmt: skip
_MOST_REASONS = 5  # that are told
_ALWAYS = ("ref-size-missing", "mf-missing", "tar-gnu")  # notes that are put right all the same


@dataclass(slots=True)
class Repair:
    """What will be done: ``done`` in words, and the pieces of the new archive; without any, it is copied."""

    subject: Subject
    stem: str
    done: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    hrefs: dict[str, list[str]] = field(default_factory=dict)  # name in the archive -> hrefs in the descriptor
    again: set[str] = field(default_factory=set)  # names of disks that are packed again
    total: int = 0


def plan_fix(
    package: Package,
    targets: Sequence[Target],
    packing: Packing,
    opened: ExitStack,
    *,
    accept_digests: bool = False,
    signed: bool = False,
    algorithm: str | None = None,
    progress: Callable[[int], None] = ignore,
) -> Repair:
    """Look at a package, change its descriptor in memory, and decide what to do with each file.

    ``accept_digests`` takes files whose digest is wrong; ``signed`` says that the result will be signed;
    ``algorithm`` is the kind of digests that the user asked for, empty for none at all. Raises FormatError for what
    cannot be put right, with the reasons.
    """
    subject = examine(package, targets, threads=packing.threads, progress=progress)
    _refuse(subject, accept_digests=accept_digests)
    repair = Repair(subject, os.path.splitext(subject.descriptor)[0])
    broken = {
        finding.rule
        for finding in subject.report.findings
        if finding.level in (Level.ERROR, Level.WARNING) or finding.rule in _ALWAYS
    }
    _plan_pieces(repair, targets, packing, opened)
    if subject.envelope is not None:
        repair.done += Mend(subject.envelope, targets, broken).run()
    repair.done += _said(subject, broken)
    if not package.is_archive:
        repair.done.append("put the files of the directory into an archive")
    _note_digests(repair, broken, algorithm)
    if repair.done or signed:
        _note_signature(repair, signed=signed)
    else:
        repair.pieces, repair.total = [], package.archive.device.size if package.archive is not None else 0
    return repair


def _refuse(subject: Subject, *, accept_digests: bool) -> None:
    hopeless = [finding for finding in subject.report.findings if finding.rule in _HOPELESS]
    if not accept_digests:
        hopeless += [finding for finding in subject.report.findings if finding.rule == "mf-digest"]
    names = [*subject.package.names, subject.descriptor]
    strange = next((name for name in names if unsafe(name)), None)
    if strange is not None and any(subject.package.find(file.href) == strange for file in _files(subject)):
        raise FormatError(f"the name {strange[:200]!r} cannot be kept: {unsafe(strange)}", path=subject.package.path)
    if hopeless:
        reasons = list(dict.fromkeys(f"{finding.rule}: {finding.where}: {finding.text[:300]}" for finding in hopeless))
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        raise FormatError(f"it cannot be fixed: {'; '.join(reasons[:_MOST_REASONS])}{more}", path=subject.package.path)


def _files(subject: Subject) -> list[File]:
    return subject.envelope.files if subject.envelope is not None else []


def _plan_pieces(repair: Repair, targets: Sequence[Target], packing: Packing, opened: ExitStack) -> None:
    subject, package = repair.subject, repair.subject.package
    disks = disk_files(subject)
    for file in _files(subject):
        name = package.find(file.href)
        if name is None:
            continue
        repair.hrefs.setdefault(name, []).append(file.href)
        if len(repair.hrefs[name]) > 1:
            continue
        seen = subject.looks.get(name)
        if name not in disks or seen is None:
            piece: Piece = Verbatim(name, opened.enter_context(package.open(name)))
        elif not packing.again and is_sound(seen, targets) and _fits(subject, name):
            device = opened.enter_context(package.open(name))
            piece = Verbatim(name, device, seen.capacity or 0, seen.populated or 0)
        else:
            piece = _packed(repair, name, targets, packing, opened)
        repair.pieces.append(piece)
        repair.total += piece.length


def _fits(subject: Subject, name: str) -> bool:
    """Tell whether no rule about the disk's place in the machine asks for it to be written again."""
    return not any(finding.rule == "vmdk-adapter" and finding.member == name for finding in subject.report.findings)


def _packed(repair: Repair, name: str, targets: Sequence[Target], packing: Packing, opened: ExitStack) -> Packed:
    subject = repair.subject
    seen = subject.looks[name]
    reasons = ", ".join(sorted(seen.rules())) or "vmdk-adapter"
    repair.done.append(f"{name}: packed again ({reasons})")
    repair.again.add(name)
    disk = disk_files(subject)[name][0]
    adapter = "ide" if controller_of(subject.envelope, disk) == IDE else "lsilogic"
    device = opened.enter_context(subject.package.open_disk(name))
    return Packed(
        name, device, recipe_for(name, device.size, adapter, _hardware(subject, targets), packing), packing.threads
    )


def _hardware(subject: Subject, targets: Sequence[Target]) -> int:
    """Return the hardware version that the machine will have."""
    best = hardware_for(targets)
    families = [
        version
        for system in (subject.envelope.systems if subject.envelope is not None else ())
        for hardware in system.hardware
        for version in map(vmx, hardware.families)
        if version is not None
    ]
    return min([best, *families])


_WORDS = {
    "tar-ovf-first": "put the descriptor first",
    "tar-order": "put the files into the order of References",
    "tar-manifest-place": "put the manifest behind the descriptor",
    "tar-pax": "wrote ustar headers instead of pax",
    "tar-gnu": "wrote ustar headers instead of GNU's",
    "tar-end": "marked the end of the archive",
    "tar-trailing": "dropped what followed the end of the archive",
    "tar-name-dot": "took ./ from the names",
    "disk-format": "wrote the address of streamOptimized as the format of disks",
    "disk-capacity": "wrote the capacity that the disks have",
    "disk-populated": "wrote the populated size that the disks have",
    "ref-size": "wrote the sizes that the files have",
    "ref-size-missing": "wrote the sizes of the files",
    "mf-missing": "wrote a manifest",
    "mf-name": "named the manifest like the descriptor",
    "mf-dialect": "wrote the manifest as VMware reads it",
    "mf-digest": "wrote the digests that the files have",
    "mf-coverage": "listed every file in the manifest, and no other",
    "mf-algorithm": "wrote digests that all importers take",
}


def _said(subject: Subject, broken: set[str]) -> list[str]:
    said = [text for rule, text in _WORDS.items() if rule in broken]
    for finding in subject.report.findings:
        if finding.rule in ("tar-extra", "tar-type", "tar-directory"):
            said.append(f"left out {finding.member!r} ({finding.text})")
    return said


def _note_digests(repair: Repair, broken: set[str], algorithm: str | None) -> None:
    """Say where the manifest gets other digests: those that were asked for, or SHA-256 for weak ones."""
    found = repair.subject.manifest
    there = {line.algorithm for line in found.lines} if found is not None else set()
    if algorithm is None and "mf-weak" in broken:
        repair.done.append("wrote SHA256 digests")
    elif algorithm is not None and there != ({algorithm} if algorithm else set()):
        repair.done.append(f"wrote {algorithm} digests" if algorithm else "left out the manifest")


def _note_signature(repair: Repair, *, signed: bool) -> None:
    if signed:
        repair.done.append("signed the manifest")
    elif any(name.lower().endswith(".cert") for name in repair.subject.package.names):
        repair.done.append("left out the certificate: its signature would no longer be right (--sign signs again)")


def write_fix(target: Device, repair: Repair, seal: Seal, progress: Callable[[int], None] = ignore) -> None:
    """Write the fixed OVA into ``target``, an empty file that can grow."""
    package, envelope = repair.subject.package, repair.subject.envelope
    if envelope is None:
        raise UsageError("there is nothing to write", path=package.path)
    if not repair.pieces:
        copy_archive(target, package, progress)
        return
    names = [piece.name for piece in repair.pieces]

    def text(written: Sequence[Written]) -> bytes:
        by_href = {href: one for name, one in zip(names, written, strict=True) for href in repair.hrefs[name]}
        set_files(envelope, by_href, {href for name in repair.again for href in repair.hrefs[name]})
        return xml.render(envelope.root)

    write_archive(target, repair.stem, text, repair.pieces, seal, progress)


def copy_archive(target: Device, package: Package, progress: Callable[[int], None]) -> None:
    """Copy an OVA byte for byte."""
    if package.archive is None:
        raise UsageError("a directory cannot be copied as an archive", path=package.path)
    Verbatim("", package.archive.device).write(Appender(target, 0), progress)
