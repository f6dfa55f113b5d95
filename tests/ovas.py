# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""OVAs for tests, made without the source: tar blocks by hand or by Python's tarfile, OVF text from a template."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BLOCK: Final = 512
STREAM: Final = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
SPACES: Final = (
    'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" '
    'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" '
    'xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" '
    'xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vbox="http://www.virtualbox.org/ovf/machine"'
)


@dataclass
class Part:
    """A disk of an OVF: the file's name and bytes, and what the descriptor says about it."""

    name: str
    data: bytes
    capacity: int
    size: int | None = None  # None: the true one
    format: str = STREAM
    compression: str = ""
    units: str = ""
    extra: str = ""  # further attributes of Disk


@dataclass
class Ovf:
    """Knobs of a descriptor; the default is what VMware takes."""

    parts: list[Part] = field(default_factory=list)
    name: str = "box"
    family: str = "vmx-13"
    controller: str = "lsilogic"
    controller_type: int = 6
    nic: str = "E1000"
    cpus: int = 1
    memory: int = 1024
    items: str = ""  # further Items
    sections: str = ""  # further sections of the machine
    hardware: str = ""  # at the end of the hardware section
    os: str = 'ovf:id="94" vmw:osType="ubuntu64Guest"'
    references: str = ""  # further Files
    spaces: str = SPACES

    def text(self) -> bytes:
        """Return the descriptor."""
        files, disks, drives = [], [], []
        for number, part in enumerate(self.parts, start=1):
            size = len(part.data) if part.size is None else part.size
            packed = f' ovf:compression="{part.compression}"' if part.compression else ""
            unit = f' ovf:capacityAllocationUnits="{part.units}"' if part.units else ""
            files.append(f'<File ovf:id="file{number}" ovf:href="{part.name}" ovf:size="{size}"{packed}/>')
            disks.append(
                f'<Disk ovf:diskId="vmdisk{number}" ovf:fileRef="file{number}" ovf:capacity="{part.capacity}"{unit} '
                f'ovf:format="{part.format}"{part.extra}/>'
            )
            drives.append(
                f"<Item><rasd:AddressOnParent>{number - 1}</rasd:AddressOnParent><rasd:ElementName>Disk {number}"
                f"</rasd:ElementName><rasd:HostResource>ovf:/disk/vmdisk{number}</rasd:HostResource><rasd:InstanceID>"
                f"{10 + number}</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType>"
                "</Item>"
            )
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope {self.spaces}>
  <References>{"".join(files)}{self.references}</References>
  <DiskSection><Info>Disks</Info>{"".join(disks)}</DiskSection>
  <NetworkSection><Info>Networks</Info>
    <Network ovf:name="VM Network"><Description>net</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="{self.name}">
    <Info>A machine</Info>
    <Name>{self.name}</Name>
    <OperatingSystemSection {self.os}><Info>OS</Info></OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>{self.family}</vssd:VirtualSystemType></System>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:ElementName>CPU</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{self.cpus}</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>Memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{self.memory}</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>Controller</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>{self.controller}</rasd:ResourceSubType>
        <rasd:ResourceType>{self.controller_type}</rasd:ResourceType></Item>
      {"".join(drives)}
      <Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>VM Network</rasd:Connection><rasd:ElementName>Network adapter</rasd:ElementName>
        <rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceSubType>{self.nic}</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
      {self.items}{self.hardware}
    </VirtualHardwareSection>
    {self.sections}
  </VirtualSystem>
</Envelope>
""".encode()


def manifest(members: Mapping[str, bytes], algorithm: str = "SHA256", form: str = "{}({})= {}\n") -> bytes:
    """Return a manifest over some members."""
    lines = (
        form.format(algorithm, name, hashlib.new(algorithm.lower(), data).hexdigest()) for name, data in members.items()
    )
    return "".join(lines).encode()


def pack(path: Path, members: Iterable[tuple[str, bytes]], *, dialect: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of regular files, by Python's tarfile."""
    with tarfile.open(path, "w", format=dialect) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def ova(path: Path, ovf: Ovf, *, with_manifest: bool = True) -> Path:
    """Write a sound OVA: descriptor, manifest, disks."""
    text, disks = ovf.text(), {part.name: part.data for part in ovf.parts}
    members = [(f"{ovf.name}.ovf", text)]
    if with_manifest:
        members.append((f"{ovf.name}.mf", manifest({f"{ovf.name}.ovf": text, **disks})))
    return pack(path, [*members, *disks.items()])


def block(
    name: bytes = b"a",
    size: int = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    size_field: bytes | None = None,
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """Return a header block made by hand, with its checksum right."""
    raw = bytearray(BLOCK)
    raw[: len(name)] = name
    raw[100:108] = raw[108:116] = raw[116:124] = b"0000644\0"
    raw[124:136] = size_field if size_field is not None else b"%011o\0" % size
    raw[136:148] = b"00000000000\0"
    raw[148:156] = b" " * 8
    raw[156:157] = kind
    raw[157 : 157 + len(link)] = link
    raw[257:265] = magic
    raw[345 : 345 + len(prefix)] = prefix
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """Return data filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


END: Final = bytes(2 * BLOCK)
