# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Rules about references, disks, networks and sections of the descriptor, and about the disks themselves."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from vmdkit.errors import VmdkitError
from vmdkit.ova import descriptor
from vmdkit.ova.descriptor import OVF, STREAM_FORMAT, VBOX, VMW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.ova.descriptor import Disk, Envelope, File, Item
    from vmdkit.ova.lint import Subject
    from vmdkit.ova.look import Look
    from vmdkit.ova.xml import Element

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OLD_FORMATS: Final = (
    "http://www.vmware.com/specifications/vmdk.html#sparse",
    "http://www.vmware.com/specifications/vmdk.html#compressed",
    "http://www.vmware.com/specifications/vmdk.html#streamOptimized",
    "http://www.vmware.com/interfaces/specifications/vmdk.html#sparse",
    "https://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized",
)
# Sections of DSP0243, and VMware's own that its importers know.
_SECTIONS: Final = {
    "References", "DiskSection", "NetworkSection", "SharedDiskSection", "PlacementGroupSection",
    "DeploymentOptionSection", "VirtualSystem", "VirtualSystemCollection", "Strings", "Info", "Name",
    "AnnotationSection", "ProductSection", "EulaSection", "OperatingSystemSection", "InstallSection",
    "VirtualHardwareSection", "ResourceAllocationSection", "StartupSection", "EnvironmentFilesSection",
    "BootDeviceSection", "ScaleOutSection", "PlacementSection", "EncryptionSection", "Section", "Content",
}  # fmt: skip


def check_descriptor(subject: Subject) -> None:
    """Look at everything that can be said without opening disks."""
    envelope = subject.envelope
    if envelope is None:
        return
    report, name = subject.report, subject.descriptor
    if envelope.version != "1":
        what = f"OVF {envelope.version}" if envelope.version else f"of namespace {envelope.root.namespace[:80]!r}"
        report.add("ovf-version", f"it is {what}; everybody reads OVF 1", name, line=envelope.root.line)
    if len(envelope.systems) != 1:
        rule = "ovf-several-systems" if envelope.systems else "ovf-no-system"
        report.add(rule, f"{len(envelope.systems)} machines are in it", name)
    _check_sections(subject, envelope)
    _check_ids(subject, envelope)
    for file in envelope.files:
        _check_file(subject, file)
    for disk in envelope.disks:
        _check_disk(subject, envelope, disk)
    _check_use(subject, envelope)


def _check_sections(subject: Subject, envelope: Envelope) -> None:
    for parent in (envelope.root, *(system.element for system in envelope.systems)):
        for child in parent.elements():
            if is_known_section(child) or child.namespace == VMW or is_optional(child):
                continue
            if child.namespace == VBOX and child.local == "Machine":
                text = 'the section vbox:Machine is not marked ovf:required="false"'
                subject.report.add("vbox-machine", text, subject.descriptor, line=child.line)
                continue
            text = f"the section {child.qname[:80]!r} is required, and no importer is known to understand it"
            subject.report.add("ovf-section", text, subject.descriptor, line=child.line)


def is_known_section(element: Element) -> bool:
    """Tell whether it is a section of the standard."""
    return element.namespace in descriptor.ENVELOPES and element.local in _SECTIONS


def is_optional(element: Element) -> bool:
    """Tell whether an importer may pass over it."""
    return (element.get("required", OVF) or "true").lower() in ("false", "0")


def _check_ids(subject: Subject, envelope: Envelope) -> None:
    for what, ids, lines in (
        ("file", [file.id for file in envelope.files], [file.element.line for file in envelope.files]),
        ("disk", [disk.id for disk in envelope.disks], [disk.element.line for disk in envelope.disks]),
    ):
        counts = Counter(ids)
        for id_, line in zip(ids, lines, strict=True):
            if not id_ or counts[id_] > 1:
                text = f"{counts[id_]} {what}s have the ID {id_!r}" if id_ else f"a {what} has no ID"
                subject.report.add("ref-id", text, subject.descriptor, line=line)
                counts[id_] = 1


def _check_file(subject: Subject, file: File) -> None:
    report, package, line = subject.report, subject.package, file.element.line
    if _ADDRESS.match(file.href):
        report.add("ref-address", f"the href {file.href[:200]!r} is an address", subject.descriptor, line=line)
        return
    name = package.find(file.href)
    if name is None:
        report.add("ref-missing", f"{file.href[:200]!r} is not in the package", subject.descriptor, line=line)
        return
    if file.compression not in ("", "identity"):
        report.add("ref-compressed", f"{name!r} is packed with {file.compression[:40]}", subject.descriptor, line=line)
    if file.chunk_size is not None:
        report.add("ref-chunked", f"{name!r} is cut into chunks", subject.descriptor, line=line)
    try:
        with package.open(name) as device:
            size = device.size
    except VmdkitError:
        return
    if file.size is None:
        report.add("ref-size-missing", f"no ovf:size for {name!r}", subject.descriptor, line=line)
    elif file.size != size:
        text = f"ovf:size of {name!r} is {file.size}, the file has {size} bytes"
        report.add("ref-size", text, subject.descriptor, line=line)


def _check_disk(subject: Subject, envelope: Envelope, disk: Disk) -> None:
    report, name, line = subject.report, subject.descriptor, disk.element.line
    if disk.file_ref and envelope.file(disk.file_ref) is None:
        report.add("disk-file", f"fileRef {disk.file_ref!r} of disk {disk.id!r} leads to no file", name, line=line)
    if disk.capacity is None and not disk.capacity_text.startswith("${"):
        text = f"capacity {disk.capacity_text[:40]!r} in {disk.units_text[:40] or 'byte'!r} is no number of bytes"
        report.add("disk-capacity-number", text, name, line=line)
    elif disk.capacity is not None and disk.populated is not None and disk.populated > disk.capacity:
        text = f"populatedSize is {disk.populated}, the capacity {disk.capacity}"
        report.add("disk-populated", text, name, line=line)
    if disk.parent_ref:
        report.add("disk-parent", f"disk {disk.id!r} is a delta over {disk.parent_ref!r}", name, line=line)
    if disk.file_ref and disk.format != STREAM_FORMAT:
        vmware = [target for target in report.targets if target.is_vmware]
        only = [target for target in report.targets if target not in vmware] if disk.format in _OLD_FORMATS else None
        report.add(
            "disk-format", f"the format of disk {disk.id!r} is {disk.format[:120]!r}", name, line=line, only=only
        )


def _items(envelope: Envelope) -> Iterator[Item]:
    for system in envelope.systems:
        for hardware in system.hardware:
            yield from hardware.items


def _check_use(subject: Subject, envelope: Envelope) -> None:
    report, name = subject.report, subject.descriptor
    drives = {item.disk_id() for item in _items(envelope)}
    files = {item.file_id() for item in _items(envelope)} | {disk.file_ref for disk in envelope.disks}
    named = {value.rpartition("/")[2] for system in envelope.systems for hardware in system.hardware
             for value in hardware.extra.values()}  # fmt: skip
    for disk in envelope.disks:
        if disk.id not in drives:
            report.add("disk-unattached", f"no drive is disk {disk.id!r}", name, line=disk.element.line)
    for file in envelope.files:
        if file.id not in files | named:
            report.add("ref-unused", f"nothing uses file {file.id!r} ({file.href[:80]})", name, line=file.element.line)


def disk_files(subject: Subject) -> dict[str, list[Disk]]:
    """Return the files that hold disks, by name; one that is packed once more is left out."""
    found: dict[str, list[Disk]] = {}
    envelope = subject.envelope
    for disk in envelope.disks if envelope is not None else ():
        file = envelope.file(disk.file_ref) if envelope is not None and disk.file_ref else None
        if file is None or file.compression not in ("", "identity") or file.chunk_size is not None:
            continue
        name = subject.package.find(file.href)
        if name is not None:
            found.setdefault(name, []).append(disk)
    return found


def check_disks(subject: Subject) -> None:
    """Report what was seen of each disk, and hold it against what the descriptor says."""
    for name, disks in disk_files(subject).items():
        seen = subject.looks.get(name)
        if seen is None:
            continue
        for fault in seen.faults:
            subject.report.add(fault.rule, fault.text, name, offset=fault.offset)
        for disk in disks:
            _check_against(subject, name, seen, disk)


def _check_against(subject: Subject, name: str, seen: Look, disk: Disk) -> None:
    report, line = subject.report, disk.element.line
    if seen.capacity is not None and disk.capacity is not None and seen.capacity != disk.capacity:
        text = f"capacity of disk {disk.id!r} is {disk.capacity}, {name!r} holds {seen.capacity}"
        report.add("disk-capacity", text, subject.descriptor, line=line)
    kind = controller_of(subject.envelope, disk)
    adapter = seen.text.ddb.get("adaptertype", "") if seen.text is not None else ""
    if seen.text is not None and kind == descriptor.SCSI and adapter.lower() not in ("lsilogic", "buslogic"):
        report.add("vmdk-adapter", f"ddb.adapterType is {adapter[:40]!r}, the controller SCSI", name)


def controller_of(envelope: Envelope | None, disk: Disk) -> int | None:
    """Return the resource type of the controller that a disk hangs on."""
    items = list(_items(envelope)) if envelope is not None else []
    drive = next((item for item in items if item.disk_id() == disk.id), None)
    parent = next((item for item in items if drive is not None and item.id == drive.parent), None)
    return parent.type if parent is not None else None
