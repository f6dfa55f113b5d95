# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write the OVF of a machine: version 1, of what VMware, VirtualBox and Proxmox all read.

What only one of them understands is marked ``ovf:required="false"``. The elements of an item stand in alphabetical
order, as the schema has them and VMware writes them; capacities are in bytes, which nobody mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.ova import guests, xml
from vmdkit.ova.descriptor import CD, CIM, CPU, DISK, ETHERNET, MEMORY, OVF, RASD, STREAM_FORMAT, VBOX, VMW, VSSD, XSI
from vmdkit.ova.machine import CONTROLLERS, NICS
from vmdkit.ova.xml import Element
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmdkit.ova.machine import Machine, PropertySpec

_PREFIXES = {"": OVF, "cim": CIM, "ovf": OVF, "rasd": RASD, "vbox": VBOX, "vmw": VMW, "vssd": VSSD, "xsi": XSI}
_TRANSPORT = "com.vmware.guestInfo"


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What the OVF says of a disk; bytes. An empty ``file`` is a disk without one."""

    file: str
    capacity: int
    size: int = 0
    populated: int = 0


def _element(qname: str, *children: Element | str, **attributes: str) -> Element:
    """Return a new element; ``ovf_id`` is the attribute ``ovf:id``."""
    named = {key.replace("_", ":", 1): value for key, value in attributes.items()}
    prefix = qname.rpartition(":")[0]
    return Element(qname, named, list(children), 0, _PREFIXES[prefix], _PREFIXES)


def compose(machine: Machine, disks: Sequence[DiskFacts], hardware: int) -> bytes:
    """Return the descriptor of a machine with these disks; raises UsageError for characters XML cannot hold."""
    files = [
        _element("File", ovf_href=disk.file, ovf_id=f"file{number}", ovf_size=str(disk.size))
        for number, disk in enumerate(disks, start=1)
        if disk.file
    ]
    networks = list(dict.fromkeys(nic.network for nic in machine.nics))
    root = _element(
        "Envelope",
        _element("References", *files),
        _element("DiskSection", _element("Info", "Virtual disks"), *_disks(disks)),
        _element(
            "NetworkSection",
            _element("Info", "Networks"),
            *(_element("Network", _element("Description", name), ovf_name=name) for name in networks),
        ),
        _system(machine, len(disks), hardware),
    )
    root.attributes = {f"xmlns:{prefix}" if prefix else "xmlns": uri for prefix, uri in _PREFIXES.items()}
    if not networks:
        root.remove(next(root.elements("NetworkSection")))
    xml.indent(root)
    return xml.render(root)


def _disks(disks: Sequence[DiskFacts]) -> list[Element]:
    made = []
    for number, disk in enumerate(disks, start=1):
        element = _element("Disk", ovf_capacity=str(disk.capacity), ovf_diskId=f"vmdisk{number}")
        if disk.file:
            element.attributes["ovf:fileRef"] = f"file{number}"
        element.attributes["ovf:format"] = STREAM_FORMAT
        if disk.file:
            element.attributes["ovf:populatedSize"] = str(disk.populated)
        made.append(element)
    return made


def _system(machine: Machine, count: int, hardware: int) -> Element:
    guest = guests.find(machine.os)
    system = _element(
        "VirtualSystem",
        _element("Info", "A virtual machine"),
        _element("Name", machine.name),
        _element(
            "OperatingSystemSection",
            _element("Info", "The operating system"),
            _element("Description", guest.title),
            _element("vbox:OSType", guest.virtualbox, ovf_required="false"),
            ovf_id=str(guest.cim),
            vmw_osType=guest.vmware,
        ),
        _hardware(machine, count, hardware),
        ovf_id=machine.name,
    )
    if machine.annotation:
        system.children.append(
            _element("AnnotationSection", _element("Info", "A note"), _element("Annotation", machine.annotation))
        )
    system.children += [
        _element("EulaSection", _element("Info", "Terms"), _element("License", text)) for text in machine.eulas
    ]
    system.children += _product(machine)
    return system


def _product(machine: Machine) -> list[Element]:
    words = (
        ("Product", machine.product), ("Vendor", machine.vendor), ("Version", machine.version),
        ("FullVersion", machine.version), ("ProductUrl", machine.product_url),
    )  # fmt: skip
    if not machine.properties and not any(text for _, text in words):
        return []
    section = _element("ProductSection", _element("Info", "The product"))
    section.children += [_element(name, text) for name, text in words if text]
    section.children += [_property(one) for one in machine.properties]
    return [section]


def _property(one: PropertySpec) -> Element:
    element = _element("Property", ovf_key=one.key, ovf_type=one.type)
    element.attributes["ovf:userConfigurable"] = "true" if one.configurable else "false"
    if one.password:
        element.attributes["ovf:password"] = "true"
    element.attributes["ovf:value"] = one.default
    if one.label:
        element.children.append(_element("Label", one.label))
    if one.description:
        element.children.append(_element("Description", one.description))
    return element


# ── hardware ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Items:
    """Hardware items as they are made; instance IDs count from 1."""

    def __init__(self) -> None:
        self.made: list[Element] = []
        self._controllers: dict[str, list[tuple[int, list[int]]]] = {}  # kind -> (instance ID, free places)

    def add(self, type_: int, name: str, fields: Mapping[str, object], *, required: bool = True) -> int:
        """Add an item with further ``fields``; return its instance ID."""
        number = len(self.made) + 1
        every = {**fields, "ElementName": name, "InstanceID": number, "ResourceType": type_}
        item = _element("Item", *(_element(f"rasd:{key}", str(every[key])) for key in sorted(every)))
        if not required:
            item.attributes["ovf:required"] = "false"
        self.made.append(item)
        return number

    def place(self, kind: str) -> tuple[int, int]:
        """Return a controller of a kind, and a free place on it; a new one where the last is full."""
        row = CONTROLLERS[kind]
        known = self._controllers.setdefault(kind, [])
        if not known or not known[-1][1]:
            fields: dict[str, object] = {"Address": len(known)}
            if row.subtype:
                fields["ResourceSubType"] = row.subtype
            known.append((self.add(row.type, f"{row.title} {len(known)}", fields), list(row.places)))
        return known[-1][0], known[-1][1].pop(0)


def _hardware(machine: Machine, count: int, hardware: int) -> Element:
    items, mib = _Items(), machine.memory // MIB
    units = {"AllocationUnits": "hertz * 10^6", "VirtualQuantity": machine.cpus}
    items.add(CPU, f"{machine.cpus} virtual CPU(s)", units)
    if machine.cores:
        items.made[0].children.append(_element("vmw:CoresPerSocket", str(machine.cores), ovf_required="false"))
    items.add(MEMORY, f"{mib} MB of memory", {"AllocationUnits": "byte * 2^20", "VirtualQuantity": mib})
    for number, disk in enumerate(machine.disks[:count], start=1):
        controller, place = items.place(disk.controller or machine.controller)
        where = {"AddressOnParent": place, "HostResource": f"ovf:/disk/vmdisk{number}", "Parent": controller}
        items.add(DISK, f"Hard disk {number}", where)
    if machine.cdrom:
        _add_drive(machine, items)
    for number, nic in enumerate(machine.nics, start=1):
        how = {"AutomaticAllocation": "true", "Connection": nic.network, "ResourceSubType": NICS[nic.type]}
        items.add(ETHERNET, f"Network adapter {number}", how)
    section = _element(
        "VirtualHardwareSection", _element("Info", "Virtual hardware"), _family(machine, hardware), *items.made
    )
    if machine.properties:
        section.attributes["ovf:transport"] = f"iso {_TRANSPORT}" if machine.cdrom else _TRANSPORT
    settings = {"firmware": machine.firmware}
    if machine.secure_boot:
        settings["bootOptions.efiSecureBootEnabled"] = "true"
    for key, value in settings.items():
        section.children.append(_element("vmw:Config", ovf_required="false", vmw_key=key, vmw_value=value))
    return section


def _add_drive(machine: Machine, items: _Items) -> None:
    """Add an empty CD drive, which the guest gets its properties on."""
    kinds = {disk.controller or machine.controller for disk in machine.disks}
    controller, place = items.place("sata" if "sata" in kinds else "ide")
    fields = {
        "AddressOnParent": place,
        "AutomaticAllocation": "false",
        "Parent": controller,
        "ResourceSubType": "vmware.cdrom.remotepassthrough",
    }
    items.add(CD, "CD drive 1", fields, required=False)


def _family(machine: Machine, hardware: int) -> Element:
    return _element(
        "System",
        _element("vssd:ElementName", "Virtual Hardware Family"),
        _element("vssd:InstanceID", "0"),
        _element("vssd:VirtualSystemIdentifier", machine.name),
        _element("vssd:VirtualSystemType", f"vmx-{hardware:02d}"),
    )
