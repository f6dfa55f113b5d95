# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Rules about machines: hardware family and version, controllers, drives, adapters, operating system."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from vmdkit.ova import descriptor, guests
from vmdkit.ova.descriptor import CD, CONTROLLERS, CPU, DISK, DVD, ETHERNET, FLOPPY, IDE, MEMORY, SCSI, STORAGE
from vmdkit.ova.targets import OLDEST_USED
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmdkit.ova.descriptor import Hardware, Item, System
    from vmdkit.ova.lint import Subject
    from vmdkit.ova.targets import Target

_VMX = re.compile(r"vmx-(\d{1,3})")
_SCSI_KINDS: Final = {"lsilogic", "lsilogicsas", "buslogic", "virtualscsi"}
_STORAGE_KINDS: Final = {"vmware.sata.ahci", "ahci", "vmware.nvme.controller"}
_NICS: Final = {"e1000", "e1000e", "vmxnet3", "vmxnet2", "vmxnet", "pcnet32", "flexible", "sriov"}
_VBOX_NICS: Final = {"e1000", "pcnet32", "virtio"}
_VBOX_SCSI: Final = {"lsilogic", "lsilogicsas", "buslogic"}
# Resource types that VMware's importers make something of.
_VMWARE_TYPES: Final = {1, 3, 4, 5, 6, 10, 14, 15, 16, 17, 20, 21, 22, 23, 24}
_VMWARE_USB: Final = {"vmware.usb.ehci", "vmware.usb.xhci"}
LARGEST_TYPE: Final = 35  # VirtualBox knows no higher number
NEEDS: Final = {
    "e1000e": (8, "E1000E"), "vmxnet3": (7, "VMXNET3"), "vmware.sata.ahci": (10, "SATA"), "ahci": (10, "SATA"),
    "vmware.nvme.controller": (13, "NVMe"), "vmware.usb.xhci": (8, "USB 3"), "vmware.vtpm": (14, "a TPM"),
    "virtualscsi": (7, "PVSCSI"),
}  # fmt: skip
_SCSI_OWN = "7"  # the controller's own place on its bus
_PLACES: Final = {IDE: 2, SCSI: 64, STORAGE: 30}
_MEMORY_STEP = 4 * MIB


def vmx(family: str) -> int | None:
    """Return the hardware version that a family such as ``vmx-13`` means; None for no family of VMware's."""
    match = _VMX.fullmatch(family.strip())
    return int(match[1]) if match else None


def check_hardware(subject: Subject) -> None:
    """Look at every machine."""
    for system in subject.envelope.systems if subject.envelope is not None else ():
        if not system.hardware:
            _add(subject, "hw-none", f"machine {system.id!r} has no VirtualHardwareSection", system.element.line)
        for hardware in system.hardware:
            _check_family(subject, hardware)
            _check_items(subject, hardware)
            _check_devices(subject, hardware)
            _check_size(subject, hardware)
            _check_settings(subject, system, hardware)
        _check_os(subject, system)
        _check_properties(subject, system)


def _add(subject: Subject, rule: str, text: str, line: int, only: Iterable[Target] | None = None) -> None:
    subject.report.add(rule, text, subject.descriptor, line=line, only=only)


def _check_family(subject: Subject, hardware: Hardware) -> None:
    line, report = hardware.element.line, subject.report
    versions = [version for version in map(vmx, hardware.families) if version is not None]
    if not versions:
        _add(subject, "hw-family", f"the family is {' '.join(hardware.families)[:80] or 'not stated'!r}", line)
        return
    version = min(versions)  # an importer takes the one it can
    vmware = [target for target in report.targets if target.newest]
    too_new = [target for target in vmware if version > target.newest]
    if too_new:
        best = ", ".join(f"{target.name} runs vmx-{target.newest:02d}" for target in too_new)
        _add(subject, "hw-too-new", f"vmx-{version:02d} is newer than the product: {best}", line, too_new)
    update = [target for target in vmware if target.surest < version <= target.newest]
    if update:
        first = ", ".join(f"{target.name} began with vmx-{target.surest:02d}" for target in update)
        _add(subject, "hw-update", f"vmx-{version:02d} needs an update: {first}", line, update)
    if max(versions) < OLDEST_USED:
        _add(subject, "hw-too-old", f"vmx-{max(versions):02d} is of ESX 3", line)


def _check_items(subject: Subject, hardware: Hardware) -> None:
    """Look at what holds for all items: identity, parents, places."""
    counts = Counter(item.id for item in hardware.items if not item.configuration)
    by_id = {item.id: item for item in hardware.items}
    places: Counter[tuple[str, str]] = Counter()
    for item in hardware.items:
        line = item.element.line
        if not item.id or item.type is None:
            _add(subject, "hw-item", f"{item.what} has no InstanceID, or no ResourceType that is a number", line)
        elif counts[item.id] > 1:
            _add(subject, "hw-item", f"{counts[item.id]} items have the InstanceID {item.id!r}", line)
            counts[item.id] = 1
        if item.type in (DISK, CD, DVD):
            _check_place(subject, item, by_id.get(item.parent), places)
        if item.type in (DISK, CD, DVD, FLOPPY):
            _check_resource(subject, item)


def _check_place(subject: Subject, item: Item, parent: Item | None, places: Counter[tuple[str, str]]) -> None:
    line = item.element.line
    if parent is None or parent.type not in CONTROLLERS:
        _add(subject, "hw-parent", f"Parent {item.parent!r} of {item.what} is no controller", line)
        return
    if not item.on_parent:
        return
    places[item.parent, item.on_parent] += 1
    if places[item.parent, item.on_parent] > 1:
        _add(subject, "hw-address", f"{item.what} is not the only one at {item.on_parent} of {parent.what}", line)
    number = int(item.on_parent[:6]) if item.on_parent.isascii() and item.on_parent.isdigit() else -1
    if not 0 <= number < _PLACES[parent.type] or (parent.type == SCSI and item.on_parent == _SCSI_OWN):
        _add(subject, "hw-address", f"{parent.what} has no place {item.on_parent!r} for {item.what}", line)


def _check_resource(subject: Subject, item: Item) -> None:
    envelope = subject.envelope
    disk, file = item.disk_id(), item.file_id()
    missing = envelope is not None and (
        (disk is not None and envelope.disk(disk) is None) or (file is not None and envelope.file(file) is None)
    )
    if missing:
        _add(
            subject, "hw-disk", f"{item.what} is {item.host_resources[0][:80]!r}, which is not there", item.element.line
        )


def _check_devices(subject: Subject, hardware: Hardware) -> None:
    networks = {network.name for network in subject.envelope.networks} if subject.envelope is not None else set()
    version = min((known for known in map(vmx, hardware.families) if known is not None), default=None)
    for item in hardware.items:
        line, kind = item.element.line, item.subtype.strip().lower()
        _check_type(subject, item)
        if item.type in CONTROLLERS:
            _check_controller(subject, item)
        if item.type == ETHERNET:
            _check_nic(subject, item)
            for connection in item.connections:
                if connection not in networks:
                    _add(subject, "hw-network", f"{item.what} is connected with {connection[:80]!r}", line)
        least, name = NEEDS.get(kind, (0, ""))
        if version is not None and version < least:
            _add(subject, "hw-needs", f"{name} needs vmx-{least:02d}, the family is vmx-{version:02d}", line)


def is_strange(item: Item) -> bool:
    """Tell whether it is a kind of device that VMware does not know."""
    kind = item.subtype.strip().lower()
    return item.type not in _VMWARE_TYPES or (item.type == descriptor.USB and kind not in _VMWARE_USB)


def _check_type(subject: Subject, item: Item) -> None:
    targets = subject.report.targets
    refusing = [target for target in targets if target.is_vmware and item.required and is_strange(item)]
    if item.type is not None and item.type > LARGEST_TYPE:  # required or not: VirtualBox cannot read the rest
        refusing += [target for target in targets if target.family == "virtualbox"]
    if refusing and item.type is not None:
        how = "required" if item.required else "not required"
        text = f"{item.what} ({item.subtype or 'no subtype'}, type {item.type}) is {how}"
        _add(subject, "hw-type", text, item.element.line, refusing)


def _check_controller(subject: Subject, item: Item) -> None:
    targets, kind = subject.report.targets, item.subtype.strip().lower()
    known = {IDE: {""}, SCSI: _SCSI_KINDS, STORAGE: _STORAGE_KINDS}[item.type or IDE]
    refusing = [target for target in targets if target.is_vmware and kind not in known]
    if item.type == SCSI and kind not in _VBOX_SCSI:
        refusing += [target for target in targets if target.family == "virtualbox"]
    if refusing:
        _add(subject, "hw-controller", f"{item.what} is of type {item.subtype!r}", item.element.line, refusing)


def _check_nic(subject: Subject, item: Item) -> None:
    targets, kind = subject.report.targets, item.subtype.strip().lower()
    refusing = [target for target in targets if target.is_vmware and not set(kind.split()) & _NICS]
    if not set(kind.split()) & _VBOX_NICS:
        refusing += [target for target in targets if target.family == "virtualbox"]
    if refusing and kind:
        _add(subject, "hw-nic", f"{item.what} is of type {item.subtype!r}", item.element.line, refusing)


def _check_size(subject: Subject, hardware: Hardware) -> None:
    line = hardware.element.line
    processors, memory = hardware.of_type(CPU), hardware.of_type(MEMORY)
    if not processors or not processors[0].quantity:
        _add(subject, "hw-cpu", "the number of processors is not stated", line)
    unit = descriptor.units(memory[0].units_text or "byte * 2^20") if memory else None
    if not memory or not memory[0].quantity or unit is None:
        _add(subject, "hw-memory", "the size of memory is not stated, or its unit not known", line)
    elif memory[0].quantity * unit % _MEMORY_STEP:
        text = f"memory is {memory[0].quantity * unit} bytes, no multiple of 4 MiB"
        _add(subject, "hw-memory-step", text, memory[0].element.line)


def _check_settings(subject: Subject, system: System, hardware: Hardware) -> None:
    secure = hardware.config.get("bootOptions.efiSecureBootEnabled", "").lower() == "true"
    if secure and hardware.config.get("firmware", "bios").lower() != "efi":
        _add(subject, "hw-secure-boot", "secure boot is on, the firmware is not EFI", hardware.element.line)
    version = min((known for known in map(vmx, hardware.families) if known is not None), default=None)
    if secure and version is not None and version < guests.SECURE_BOOT_SINCE:
        text = f"secure boot needs vmx-{guests.SECURE_BOOT_SINCE}, the family is vmx-{version:02d}"
        _add(subject, "hw-needs", text, hardware.element.line)
    if hardware.config.get("firmware", "").lower() == "efi" and system.vbox_machine is None:
        _add(subject, "hw-firmware", "the firmware is efi, which VirtualBox does not read", hardware.element.line)
    transports = hardware.transport.split()
    if system.properties and transports == ["iso"] and not hardware.of_type(CD, DVD):
        _add(subject, "hw-iso-transport", "the transport is iso, and there is no CD drive", hardware.element.line)


def _check_os(subject: Subject, system: System) -> None:
    line = system.element.line
    if system.os_id is None and not system.os_type:
        _add(subject, "os-missing", "no OperatingSystemSection says what is installed", line)
    elif not system.os_type:
        _add(subject, "os-type", f"there is no vmw:osType; the number {system.os_id} is all there is", line)
    elif not guests.is_known(system.os_type):
        _add(subject, "os-type", f"vmw:osType {system.os_type[:60]!r} is not known here", line)


def _check_properties(subject: Subject, system: System) -> None:
    counts = Counter(one.key for one in system.properties)
    for one in system.properties:
        line = one.element.line
        if not one.key or not one.type:
            _add(subject, "property", f"property {one.key!r} has no key, or no type", line)
        elif counts[one.key] > 1:
            _add(subject, "property", f"{counts[one.key]} properties have the key {one.key!r}", line)
            counts[one.key] = 1
