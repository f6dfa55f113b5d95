# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Look at a file that should be a disk of an appliance: what it is, and which rules for streams it breaks.

``build`` asks this before it takes a stream as it is, ``fix`` to know which disks to write again, ``lint`` to tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmdkit.errors import VmdkitError
from vmdkit.units import KIB
from vmdkit.vmdk import structs
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.check_stream import StreamCheck
from vmdkit.vmdk.descriptor import LARGEST, NO_CID
from vmdkit.vmdk.image import FileKind, classify, read_descriptor
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_findings import Finding
    from vmdkit.vmdk.descriptor import Descriptor

GRAIN: Final = 64 * KIB
_GZIP = b"\x1f\x8b"
_OTHERS: Final = {
    b"QFI\xfb": "a qcow2 image", b"conectix": "a VHD", b"vhdxfile": "a VHDX", b"<<< Orac": "a VDI", _GZIP: "gzip data",
}  # fmt: skip
_SECOND_TEXT = re.compile(rb"createType\s*=", re.IGNORECASE)
_PLAUSIBLE_HARDWARE: Final = range(3, 30)
# What a finding of StreamCheck is called here.
_CODES: Final = {
    "stream-no-eos": "vmdk-no-eos",
    "stream-order": "vmdk-order",
    "stream-trailing": "vmdk-trailing",
    "stream-gap": "vmdk-gap",
    "grain-short": "vmdk-short-grain",
    "leak": "vmdk-gap",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that a disk breaks; ``offset`` in bytes of its file."""

    rule: str
    text: str
    offset: int | None = None


@dataclass(slots=True)
class Look:
    """What was seen. ``capacity`` and ``populated`` are bytes of the disk, None where they are not known."""

    what: str  # "stream", "sparse", "descriptor", or what else it is
    size: int
    capacity: int | None = None
    populated: int | None = None
    text: Descriptor | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream, perhaps a bad one."""
        return self.what == "stream"

    def rules(self) -> set[str]:
        """Return the rules it breaks."""
        return {fault.rule for fault in self.faults}

    def add(self, rule: str, text: str, offset: int | None = None) -> None:
        """Note a fault."""
        self.faults.append(Fault(rule, text, offset))


def look(device: Device, *, threads: int = 2, shallow: bool = False) -> Look:
    """Look at a disk; with ``shallow`` its grains are not inflated. Raises only OSError of the device."""
    kind = classify(device)
    if kind is FileKind.UNKNOWN:
        head = bytes(device.pread(min(8, device.size), 0))
        what = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "no VMDK")
        seen = Look(what, device.size)
        seen.add("vmdk-not-stream", f"it is {what}, not a streamOptimized VMDK", 0)
        return seen
    if kind is not FileKind.HOSTED:
        seen = Look("descriptor" if kind is FileKind.TEXT else kind.value, device.size)
        seen.add("vmdk-not-stream", f"it is a {kind.value}, whose data lie in other files", 0)
        return seen
    return _hosted(device, threads, shallow)


def _hosted(device: Device, threads: int, shallow: bool) -> Look:
    if device.size < HostedHeader.size_of():
        seen = Look("sparse", device.size)
        seen.add("vmdk-unreadable", "it is shorter than a header", device.size)
        return seen
    header = HostedHeader.unpack(device.pread(HostedHeader.size_of(), 0))
    seen = Look("stream" if header.flags & structs.FLAG_COMPRESSED else "sparse", device.size)
    if header.magic == structs.UNFINISHED_MAGIC:
        seen.add("vmdk-unreadable", "its writer has not finished it (kdmv)", 0)
        return seen
    seen.capacity = header.capacity
    _text(device, header, seen)
    if not seen.is_stream:
        seen.add("vmdk-not-stream", "it is a monolithicSparse VMDK, not streamOptimized", 0)
        return seen
    _header(header, seen)
    _grains(device, threads, shallow, seen)
    return seen


def _header(header: HostedHeader, seen: Look) -> None:
    if header.version != 3:
        seen.add("vmdk-version", f"its header says version {header.version}, not 3", header.offset_of("version"))
    if header.flags & structs.FLAG_REDUNDANT:
        text = "it has a redundant grain directory, which VMware's streams have not (qemu-img writes one)"
        seen.add("vmdk-rgd", text, header.offset_of("flags"))
    if not header.flags & structs.FLAG_MARKERS:
        seen.add("vmdk-markers", "its grains have no markers", header.offset_of("flags"))
    if header.grain_size != GRAIN:
        seen.add(
            "vmdk-grain", f"its grains have {header.grain_size} bytes, not {GRAIN}", header.offset_of("grain_size")
        )


def _grains(device: Device, threads: int, shallow: bool, seen: Look) -> None:
    """Take over what a check of the stream finds."""
    checked = StreamCheck(device, threads=threads, shallow=shallow).run()
    if checked.header is not None:
        seen.populated = min(checked.header.capacity, checked.grains * checked.header.grain_size)
    for finding in checked.findings:
        rule = _rule_of(finding)
        if rule == "vmdk-trailing" and "vmdk-rgd" in seen.rules() and finding.text.endswith("zeros"):
            # What qemu-img leaves behind the last grain; other writers with a marker have no second directory.
            seen.add(
                "vmdk-eos-luck", "it ends in zeros that were not written as an end-of-stream marker", finding.offset
            )
        elif rule:
            seen.add(rule, finding.text, finding.offset)


def _rule_of(finding: Finding) -> str:
    if finding.code in _CODES:
        return _CODES[finding.code]
    if finding.severity in (Severity.ERROR, Severity.REPAIRABLE):
        return "vmdk-damaged"
    return "vmdk-unreadable" if finding.severity is Severity.UNCHECKED else ""


def _text(device: Device, header: HostedHeader, seen: Look) -> None:
    """Look at the descriptor inside."""
    at = header.descriptor_offset
    try:
        text = read_descriptor(device)
    except VmdkitError as error:
        seen.add("vmdk-unreadable", error.message, at)
        return
    if text is None:
        seen.add("vmdk-descriptor", "there is no descriptor in it", at)
        return
    seen.text = text
    _keys(text, seen, at)
    raw = bytes(device.pread(min(header.descriptor_size, LARGEST, device.size - at), at))
    if len(_SECOND_TEXT.findall(raw)) > 1:
        seen.add("vmdk-descriptor-twice", "two descriptors stand in it, one behind the other", at)
    if text.size != header.capacity:
        wrong = f"its descriptor says {text.size} bytes, its header {header.capacity}"
        seen.add("vmdk-descriptor", wrong, header.offset_of("capacity"))


def _keys(text: Descriptor, seen: Look, at: int) -> None:
    if text.header.get("version") != "1":
        seen.add("vmdk-descriptor", f"its descriptor says version={text.header.get('version')}, not 1", at)
    if seen.is_stream and text.create_type != "streamOptimized":
        seen.add("vmdk-descriptor", f"its descriptor says createType {text.create_type[:40]!r}", at)
    try:
        is_child = text.parent_cid != NO_CID
    except VmdkitError:
        is_child = True
    if is_child or text.parent_hint:
        seen.add("vmdk-child", "it is a snapshot: the rest of its bytes is in its parent", at)
    if text.is_encrypted:
        seen.add("vmdk-child", "it is encrypted", at)
    if not text.ddb.get("toolsversion"):
        seen.add("vmdk-tools", "ddb.toolsVersion is missing, so guests cannot be customized", at)
    hardware = text.ddb.get("virtualhwversion", "")
    if not (hardware.isascii() and hardware.isdigit() and int(hardware[:9]) in _PLAUSIBLE_HARDWARE):
        seen.add("vmdk-hardware", f"ddb.virtualHWVersion is {hardware[:20]!r}", at)
