# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A machine that is to be packed: what it is called, has, and needs; checked, so that its OVF can be written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vmdkit.errors import UsageError
from vmdkit.ova import guests, tar
from vmdkit.ova.descriptor import IDE, SCSI, STORAGE
from vmdkit.units import GIB, MIB, format_size


class Controller(NamedTuple):
    """A kind of controller: how OVF says it, how many disks it takes, what its disks say in their descriptor."""

    type: int
    subtype: str
    title: str
    places: tuple[int, ...]
    most: int  # controllers of the kind in one machine
    adapter: str


_SCSI_PLACES = (*range(7), *range(8, 16))  # 7 is the controller's own
CONTROLLERS: Final = {
    "lsilogic": Controller(SCSI, "lsilogic", "SCSI controller", _SCSI_PLACES, 4, "lsilogic"),
    "lsilogicsas": Controller(SCSI, "lsilogicsas", "SCSI controller", _SCSI_PLACES, 4, "lsilogic"),
    "buslogic": Controller(SCSI, "buslogic", "SCSI controller", _SCSI_PLACES, 4, "buslogic"),
    "pvscsi": Controller(SCSI, "VirtualSCSI", "SCSI controller", _SCSI_PLACES, 4, "lsilogic"),
    "sata": Controller(STORAGE, "vmware.sata.ahci", "SATA controller", tuple(range(30)), 4, "lsilogic"),
    "nvme": Controller(STORAGE, "vmware.nvme.controller", "NVMe controller", tuple(range(15)), 4, "lsilogic"),
    "ide": Controller(IDE, "", "IDE controller", (0, 1), 2, "ide"),
}
NICS: Final = {
    "e1000": "E1000", "e1000e": "E1000e", "vmxnet3": "VmxNet3", "vmxnet2": "VmxNet2", "pcnet32": "PCNet32",
    "flexible": "Flexible",
}  # fmt: skip
FIRMWARES: Final = ("bios", "efi")
PROPERTY_TYPES: Final = (
    "string", "boolean", "uint8", "sint8", "uint16", "sint16", "uint32", "sint32", "uint64", "sint64", "real32",
    "real64",
)  # fmt: skip
MOST_CPUS: Final = 768  # vSphere 7 and 8
MOST_MEMORY: Final = 24560 * GIB  # vSphere 8
_MEMORY_STEP = 4 * MIB  # VMware takes no other
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY = re.compile(r"[A-Za-z0-9_.:-]+")
_LONGEST_NAME = 80  # characters; vSphere's limit for the name of a machine


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk: from ``source``, any DISK, or empty with ``size`` bytes. ``file`` is what it is called in the OVA."""

    source: str = ""
    size: int = 0
    file: str = ""
    controller: str = ""  # that of the machine where empty
    raw: bool = False


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network adapter."""

    network: str = "VM Network"
    type: str = "e1000"


@dataclass(frozen=True, slots=True)
class PropertySpec:
    """A value that is asked for when the machine is deployed."""

    key: str
    type: str = "string"
    default: str = ""
    label: str = ""
    description: str = ""
    configurable: bool = True
    password: bool = False


@dataclass(slots=True)
class Machine:
    """A machine. Sizes are bytes; ``hardware`` is the number of vmx-NN, 0 for what the targets run."""

    name: str = ""
    cpus: int = 1
    cores: int = 0  # in a socket; 0 leaves it to the importer
    memory: int = GIB
    os: str = "linux64"
    firmware: str = "bios"
    secure_boot: bool = False
    controller: str = "lsilogic"
    hardware: int = 0
    disks: list[DiskSpec] = field(default_factory=list)
    nics: list[NicSpec] = field(default_factory=list)
    cdrom: bool = False
    product: str = ""
    vendor: str = ""
    version: str = ""
    product_url: str = ""
    annotation: str = ""
    eulas: list[str] = field(default_factory=list)
    properties: list[PropertySpec] = field(default_factory=list)

    def check(self) -> None:
        """Raise UsageError for the first thing that cannot be written, or that no importer takes."""
        if not self.name or len(self.name) > _LONGEST_NAME or "/" in self.name or not self.name.isprintable():
            raise UsageError(f"name {self.name!r}: 1 to {_LONGEST_NAME} printable characters, no /, are due")
        if not 1 <= self.cpus <= MOST_CPUS:
            raise UsageError(f"{self.cpus} processors; 1 to {MOST_CPUS} are possible")
        if self.cores and (self.cores < 0 or self.cpus % self.cores):
            raise UsageError(f"{self.cpus} processors are no whole sockets of {self.cores} cores")
        if not 0 < self.memory <= MOST_MEMORY or self.memory % _MEMORY_STEP:
            raise UsageError(f"{format_size(self.memory)} of memory; a multiple of 4 MiB is due")
        guests.find(self.os)
        _choice("firmware", self.firmware, FIRMWARES)
        if self.secure_boot and self.firmware != "efi":
            raise UsageError("secure boot needs the firmware efi")
        if self.hardware and not 4 <= self.hardware <= 99:
            raise UsageError(f"hardware version {self.hardware}; for example 13 for vmx-13 is due")
        if not self.disks:
            raise UsageError("a machine needs at least one disk")
        _choice("controller", self.controller, CONTROLLERS)
        for disk in self.disks:
            _check_disk(disk)
        self._check_places()
        for nic in self.nics:
            _choice("adapter", nic.type, NICS)
            if not nic.network.strip():
                raise UsageError("a network needs a name")
        _check_properties(self.properties)

    def _check_places(self) -> None:
        kinds = [disk.controller or self.controller for disk in self.disks]
        if self.cdrom:
            kinds.append("sata" if "sata" in kinds else "ide")
        for kind in dict.fromkeys(kinds):
            most = len(CONTROLLERS[kind].places) * CONTROLLERS[kind].most
            if kinds.count(kind) > most:
                raise UsageError(f"{kinds.count(kind)} drives behind {kind}; {most} are the most")


def _choice(what: str, value: str, known: tuple[str, ...] | dict[str, Controller] | dict[str, str]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is unknown; there are {', '.join(known)}")


def _check_disk(disk: DiskSpec) -> None:
    if disk.controller:
        _choice("controller", disk.controller, CONTROLLERS)
    if bool(disk.source) == bool(disk.size):
        raise UsageError("a disk has either a source or, where it is empty, a size")
    if disk.size < 0 or disk.size % MIB:
        raise UsageError(f"an empty disk of {disk.size} bytes; whole MiB are due")
    if disk.file and not is_plain(disk.file):
        raise UsageError(f"file {disk.file!r}: letters, digits, . _ - are due, at most {tar.LONGEST_NAME}")


def _check_properties(properties: list[PropertySpec]) -> None:
    keys = [one.key for one in properties]
    for one in properties:
        if not _KEY.fullmatch(one.key):
            raise UsageError(f"property {one.key!r}: letters, digits, . _ : - are due")
        if keys.count(one.key) > 1:
            raise UsageError(f"two properties are called {one.key!r}")
        _choice(f"the type of property {one.key!r}:", one.type, PROPERTY_TYPES)


def is_plain(name: str) -> bool:
    """Tell whether a file name is one that every importer finds: in a tar, in an href, on Windows."""
    return _FILE.fullmatch(name) is not None and len(name) <= tar.LONGEST_NAME


def plain(name: str) -> str:
    """Return ``name`` with every character that importers stumble over as a dash; never empty."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[: tar.LONGEST_NAME - 20].rstrip("-.")
    return kept or "machine"
