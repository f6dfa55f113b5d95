# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What an OVF descriptor says: files, disks, networks, machines and their hardware (DSP0243 1.1 and 2.1).

::

    Envelope
      References      File      href, size            the members of the archive
      DiskSection     Disk      capacity, fileRef ──▶ File
      NetworkSection  Network
      VirtualSystem   Product, Eula, OperatingSystem
        VirtualHardwareSection
          Item        ResourceType 17, HostResource "ovf:/disk/ID" ──▶ Disk, Parent ──▶ Item (a controller)

Reading is lenient, so that ``lint`` has something to talk about: what is missing is None, what is no number too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from vmdkit.errors import FormatError
from vmdkit.ova import xml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.ova.xml import Element

OVF: Final = "http://schemas.dmtf.org/ovf/envelope/1"
OVF2: Final = "http://schemas.dmtf.org/ovf/envelope/2"
OVF09: Final = "http://www.vmware.com/schema/ovf/1/envelope"
CIM: Final = "http://schemas.dmtf.org/wbem/wscim/1/common"
RASD: Final = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD: Final = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
VMW: Final = "http://www.vmware.com/schema/ovf"
VBOX: Final = "http://www.virtualbox.org/ovf/machine"
ENVELOPES: Final = {OVF: "1", OVF2: "2", OVF09: "0.9"}

STREAM_FORMAT: Final = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

# CIM_ResourceAllocationSettingData.ResourceType
OTHER, CPU, MEMORY, IDE, SCSI, ETHERNET = 1, 3, 4, 5, 6, 10
FLOPPY, CD, DVD, DISK, STORAGE, SERIAL, PARALLEL, USB, GRAPHICS, SOUND = 14, 15, 16, 17, 20, 21, 22, 23, 24, 35
CONTROLLERS: Final = (IDE, SCSI, STORAGE)
RESOURCES: Final = {
    OTHER: "other device", CPU: "processors", MEMORY: "memory", IDE: "IDE controller", SCSI: "SCSI controller",
    ETHERNET: "network adapter", FLOPPY: "floppy drive", CD: "CD drive", DVD: "DVD drive", DISK: "disk",
    STORAGE: "storage controller", SERIAL: "serial port", PARALLEL: "parallel port", USB: "USB controller",
    GRAPHICS: "graphics", SOUND: "sound",
}  # fmt: skip

_UNIT = re.compile(r"byte(?:\s*\*\s*(2|10)\s*\^\s*(\d{1,2}))?")
_NAMED_UNITS = {
    "": 0,
    "bytes": 0,
    "kilobytes": 10,
    "megabytes": 20,
    "gigabytes": 30,
    "terabytes": 40,
    "mb": 20,
    "gb": 30,
}
_MOST_DIGITS = 19
_MOST: Final = 1000  # files, disks, networks, machines, and items or properties of one: more than any appliance has


def units(text: str | None) -> int | None:
    """Return the bytes of a unit such as ``byte * 2^20`` or ``MegaBytes``; None for an unknown one."""
    text = (text or "byte").strip()
    match = _UNIT.fullmatch(text)
    if match is not None:
        return int(match[1]) ** int(match[2]) if match[1] else 1
    power = _NAMED_UNITS.get(text.lower())
    return None if power is None else 1 << power


def _count(text: str | None) -> int | None:
    """Return a number as OVF writes it; None for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


@dataclass(slots=True)
class File:
    """A file of the package; ``size`` in bytes as stated."""

    element: Element
    id: str
    href: str
    size: int | None
    compression: str
    chunk_size: int | None


@dataclass(slots=True)
class Disk:
    """A disk of the package; ``capacity`` and ``populated`` in bytes, None where it is no number we know."""

    element: Element
    id: str
    file_ref: str
    capacity: int | None
    capacity_text: str
    units_text: str
    format: str
    populated: int | None
    parent_ref: str


@dataclass(slots=True)
class Network:
    """A network that the machine is to be connected with."""

    element: Element
    name: str
    description: str


@dataclass(slots=True)
class Item:
    """A piece of virtual hardware."""

    element: Element
    id: str
    name: str
    type: int | None
    subtype: str
    parent: str
    address: str
    on_parent: str
    host_resources: list[str]
    connections: list[str]
    quantity: int | None
    units_text: str
    required: bool
    configuration: str
    config: dict[str, str]

    @property
    def what(self) -> str:
        """What to call it."""
        kind = RESOURCES.get(self.type or 0, f"resource of type {self.type}")
        return f"{kind} {self.name!r}" if self.name else kind

    def disk_id(self) -> str | None:
        """Return the ID of the disk it is, None where it names none."""
        return next((_last(text) for text in self.host_resources if "/disk/" in text or text.startswith("disk/")), None)

    def file_id(self) -> str | None:
        """Return the ID of the file it is, None where it names none."""
        return next((_last(text) for text in self.host_resources if "/file/" in text or text.startswith("file/")), None)


@dataclass(slots=True)
class Property:
    """A property that is asked for when the machine is deployed."""

    element: Element
    key: str
    type: str
    value: str
    label: str
    configurable: bool


@dataclass(slots=True)
class Hardware:
    """One VirtualHardwareSection; ``families`` as written: an importer chooses one it knows."""

    element: Element
    families: list[str]
    items: list[Item]
    config: dict[str, str]
    extra: dict[str, str]
    transport: str

    def of_type(self, *types: int) -> list[Item]:
        """Return the items of the given types."""
        return [item for item in self.items if item.type in types]


@dataclass(slots=True)
class System:
    """A machine."""

    element: Element
    id: str
    name: str
    os_id: int | None
    os_version: str
    os_type: str  # vmw:osType
    os_vbox: str  # vbox:OSType
    os_text: str
    hardware: list[Hardware]
    product: dict[str, str]
    annotation: str
    eulas: list[str]
    properties: list[Property]
    vbox_machine: Element | None


@dataclass(slots=True)
class Envelope:
    """A whole descriptor. ``version`` is "1", "2", "0.9", or empty for an unknown namespace."""

    root: Element
    path: str
    version: str
    files: list[File] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    systems: list[System] = field(default_factory=list)

    def file(self, id_: str) -> File | None:
        """Return the first file of that ID."""
        return next((file for file in self.files if file.id == id_), None)

    def disk(self, id_: str) -> Disk | None:
        """Return the first disk of that ID."""
        return next((disk for disk in self.disks if disk.id == id_), None)

    def href_of(self, disk: Disk) -> str | None:
        """Return the name of the file that holds a disk; None for an empty disk, and where the file is missing."""
        found = self.file(disk.file_ref) if disk.file_ref else None
        return found.href if found is not None else None


def _last(text: str) -> str:
    return text.rpartition("/")[2]


def parse(data: bytes | bytearray, path: str) -> Envelope:
    """Read a descriptor. Raises FormatError where it is no XML, is not allowed, or is no envelope."""
    root = xml.parse(data, path)
    if root.local != "Envelope":
        raise FormatError(f"its root is {root.qname[:80]!r}, not an OVF envelope", path=path)
    envelope = Envelope(root, path, ENVELOPES.get(root.namespace, ""))
    for section in root.elements():
        if section.local == "References":
            envelope.files += [_file(element) for element in section.elements("File")]
        elif _is(section, "DiskSection"):
            envelope.disks += [_disk(element) for element in section.elements("Disk")]
        elif _is(section, "NetworkSection"):
            envelope.networks += [_network(element) for element in section.elements("Network")]
    envelope.systems += [_system(element) for element in islice(_systems(root), _MOST + 1)]
    counts = [len(envelope.files), len(envelope.disks), len(envelope.networks), len(envelope.systems)]
    counts += [len(system.properties) for system in envelope.systems]
    counts += [len(hardware.items) for system in envelope.systems for hardware in system.hardware]
    if max(counts) > _MOST:
        raise FormatError(f"it has more than {_MOST} files, disks, networks, machines, items or properties", path=path)
    return envelope


def _is(section: Element, name: str) -> bool:
    """Tell whether a section is of that kind; OVF 0.9 says so in xsi:type."""
    stated = section.get("type", XSI) if section.local == "Section" else None
    return section.local == name or (stated or "").rpartition(":")[2].startswith(name)


def _systems(element: Element) -> Iterator[Element]:
    for child in element.elements():
        if child.local == "VirtualSystem" or (child.local == "Content" and element.namespace == OVF09):
            yield child
        elif child.local == "VirtualSystemCollection":
            yield from _systems(child)


def _file(element: Element) -> File:
    space = element.namespace
    return File(
        element,
        element.get("id", space) or "",
        element.get("href", space) or "",
        _count(element.get("size", space)),
        (element.get("compression", space) or "").strip().lower(),
        _count(element.get("chunkSize", space)),
    )


def _disk(element: Element) -> Disk:
    space = element.namespace
    capacity_text, units_text = (
        element.get("capacity", space) or "",
        element.get("capacityAllocationUnits", space) or "",
    )
    capacity, unit = _count(capacity_text), units(units_text)
    return Disk(
        element,
        element.get("diskId", space) or "",
        element.get("fileRef", space) or "",
        None if capacity is None or unit is None else capacity * unit,
        capacity_text,
        units_text,
        (element.get("format", space) or "").strip(),
        _count(element.get("populatedSize", space)),
        element.get("parentRef", space) or "",
    )


def _network(element: Element) -> Network:
    return Network(element, element.get("name", element.namespace) or "", element.value("Description") or "")


def _system(element: Element) -> System:
    space = element.namespace
    system = System(
        element, element.get("id", space) or "", element.value("Name") or "", None, "", "", "", "", [], {}, "", [], [],
        element.first("Machine"),
    )  # fmt: skip
    for section in element.elements():
        if _is(section, "OperatingSystemSection"):
            system.os_id = _count(section.get("id", space))
            system.os_version = section.get("version", space) or ""
            system.os_type = section.get("osType", VMW) or ""
            system.os_vbox = section.value("OSType") or ""
            system.os_text = section.value("Description") or ""
        elif _is(section, "VirtualHardwareSection"):
            system.hardware.append(_hardware(section))
        elif _is(section, "ProductSection"):
            for key in ("Product", "Vendor", "Version", "FullVersion", "ProductUrl", "VendorUrl"):
                system.product.setdefault(key, section.value(key) or "")
            system.properties += [_property(child) for child in section.elements("Property")]
        elif _is(section, "AnnotationSection"):
            system.annotation = section.value("Annotation") or ""
        elif _is(section, "EulaSection"):
            system.eulas.append(section.value("License") or "")
    return system


def _property(element: Element) -> Property:
    space = element.namespace
    return Property(
        element,
        element.get("key", space) or "",
        element.get("type", space) or "",
        element.get("value", space) or "",
        element.value("Label") or "",
        (element.get("userConfigurable", space) or "").lower() in ("true", "1"),
    )


def _hardware(section: Element) -> Hardware:
    families: list[str] = []
    items: list[Item] = []
    for child in section.elements():
        if child.local == "System":
            families += (child.value("VirtualSystemType") or "").split()
        elif child.local in ("Item", "StorageItem", "EthernetPortItem"):
            items.append(_item(child))
    transport = section.get("transport", section.namespace) or ""
    return Hardware(section, families, items, _config(section, "Config"), _config(section, "ExtraConfig"), transport)


def _config(element: Element, local: str) -> dict[str, str]:
    return {
        child.get("key", VMW) or "": child.get("value", VMW) or ""
        for child in element.elements(local)
        if child.namespace == VMW
    }


def _item(element: Element) -> Item:
    def value(*names: str) -> str:
        return next((text for text in map(element.value, names) if text is not None), "")

    space = element.namespace
    return Item(
        element,
        value("InstanceID", "InstanceId"),
        value("ElementName", "Caption"),
        _count(value("ResourceType")),
        value("ResourceSubType"),
        value("Parent"),
        value("Address"),
        value("AddressOnParent"),
        [child.text for child in element.elements("HostResource")],
        [child.text for child in element.elements("Connection")],
        _count(value("VirtualQuantity")),
        value("AllocationUnits"),
        (element.get("required", space) or "true").lower() not in ("false", "0"),
        element.get("configuration", space) or "",
        _config(element, "Config"),
    )
