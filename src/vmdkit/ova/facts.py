# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say what is in a package: machines, hardware, disks, networks, manifest, signature. For ``ova info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmdkit.errors import UnsupportedError, VmdkitError
from vmdkit.ova import descriptor, manifest, signature
from vmdkit.ova.descriptor import CONTROLLERS, CPU, ETHERNET, MEMORY, RESOURCES
from vmdkit.ova.extract import disks
from vmdkit.ova.look import look

if TYPE_CHECKING:
    from vmdkit.ova.descriptor import Disk, Envelope, Hardware, System
    from vmdkit.ova.package import Package

_SHOWN = {CPU, MEMORY, ETHERNET, descriptor.DISK, *CONTROLLERS}  # have a place of their own in what is printed


def facts(package: Package) -> dict[str, Any]:
    """Return what is known of a package, ready for JSON. Of the disks only headers and tables are read.

    Raises FormatError where the descriptor cannot be read, OSError.
    """
    name, envelope = package.envelope()
    return {
        "file": package.path,
        "format": "ova" if package.is_archive else "ovf",
        "descriptor": name,
        "ovf": envelope.version,
        "machines": [_machine(system) for system in envelope.systems],
        "disks": [_disk(package, envelope, disk) for disk in envelope.disks],
        "networks": [{"name": one.name, "description": one.description} for one in envelope.networks],
        "members": _members(package),
        "manifest": _manifest(package),
        "signature": _signature(package),
    }


def _machine(system: System) -> dict[str, Any]:
    hardware = system.hardware[0] if system.hardware else None
    known: dict[str, Any] = {
        "name": system.name or system.id,
        "product": {key: value for key, value in system.product.items() if value},
        "os": system.os_type or system.os_text or (f"number {system.os_id}" if system.os_id is not None else None),
        "annotation": system.annotation or None,
        "eulas": len(system.eulas),
        "properties": [
            {"key": one.key, "type": one.type, "label": one.label, "value": one.value} for one in system.properties
        ],
    }
    return {**known, **_hardware(hardware)} if hardware is not None else known


def _hardware(hardware: Hardware) -> dict[str, Any]:
    processors, memory = hardware.of_type(CPU), hardware.of_type(MEMORY)
    unit = descriptor.units(memory[0].units_text or "byte * 2^20") if memory else None
    quantity = memory[0].quantity if memory else None
    return {
        "family": " ".join(hardware.families),
        "cpus": processors[0].quantity if processors else None,
        "memory": quantity * unit if quantity is not None and unit is not None else None,
        "firmware": hardware.config.get("firmware", "bios"),
        "secure_boot": hardware.config.get("bootOptions.efiSecureBootEnabled", "false").lower() == "true",
        "transport": hardware.transport,
        "controllers": [
            {"id": item.id, "type": RESOURCES[item.type or 0], "model": item.subtype}
            for item in hardware.of_type(*CONTROLLERS)
        ],
        "drives": [
            {"disk": item.disk_id(), "controller": item.parent, "at": item.on_parent}
            for item in hardware.of_type(descriptor.DISK)
        ],
        "adapters": [
            {"model": item.subtype, "network": ", ".join(item.connections)} for item in hardware.of_type(ETHERNET)
        ],
        "others": [item.what for item in hardware.items if item.type not in _SHOWN],
    }


def _disk(package: Package, envelope: Envelope, disk: Disk) -> dict[str, Any]:
    known: dict[str, Any] = {
        "id": disk.id,
        "file": None,
        "capacity": disk.capacity,
        "populated": disk.populated,
        "size": None,
        "what": "empty" if not disk.file_ref else "missing",
    }
    name = next((name for other, name in disks(package, envelope) if other is disk), None)
    if name is None:
        return known
    known["file"] = name
    try:
        with package.open(name) as device:
            seen = look(device, shallow=True)
    except VmdkitError as error:
        return {**known, "what": error.message}
    known["size"], known["what"] = seen.size, "streamOptimized" if seen.is_stream else seen.what
    if known["populated"] is None:
        known["populated"] = seen.populated
    return known


def _members(package: Package) -> list[dict[str, Any]]:
    if package.archive is None:
        return [{"name": name} for name in package.names]
    return [
        {"name": one.name, "size": one.size, "at": one.at, "kind": one.kind.value, "dialect": one.dialect}
        for one in package.archive.members
    ]


def _manifest(package: Package) -> dict[str, Any] | None:
    for name in package.names:
        if name.lower().endswith(".mf"):
            try:
                found = manifest.parse(package.read(name, manifest.LARGEST), name)
            except VmdkitError as error:
                return {"name": name, "error": error.message}
            kinds = sorted({line.algorithm for line in found.lines})
            return {"name": name, "digests": ", ".join(kinds), "files": len(found.lines)}
    return None


def _signature(package: Package) -> dict[str, Any] | None:
    name = next((name for name in package.names if name.lower().endswith(".cert")), None)
    about = next((name for name in package.names if name.lower().endswith(".mf")), None)
    if name is None:
        return None
    if about is None:
        return {"name": name, "state": "there is no manifest that it could be about"}
    try:
        found = signature.parse(package.read(name, signature.LARGEST), name)
        verdict = signature.verify(found, package.read(about, manifest.LARGEST), name)
    except UnsupportedError as error:
        return {"name": name, "state": "not checked", "reason": error.message}
    except VmdkitError as error:
        return {"name": name, "state": "unreadable", "reason": error.message}
    return {
        "name": name,
        "state": "valid" if verdict.valid else "wrong",
        "subject": verdict.subject,
        "issuer": verdict.issuer,
        "ends": verdict.ends.isoformat(),
    }
