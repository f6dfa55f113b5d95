# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""THE tables: which createTypes and which extent types exist, and what becomes of each (format spec 1.4, 1.5)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subformat:
    """A createType: what it is, and the sentence that refuses it where it cannot be read."""

    name: str
    doc: str
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class ExtentType:
    """The third word of an extent line: the driver that opens it, or the sentence that refuses it."""

    name: str
    driver: str  # "flat", "sparse", "zero" or empty
    refusal: str = ""


_RDM = (
    "it maps a raw device (RDM) that only its ESX host can reach; "
    "clone the disk there to a thick or thin VMDK (vmkfstools -i), or read the device itself"
)
_VSAN = "its data are vSAN objects, which no file holds; clone the disk to a datastore that has files"

SUBFORMATS: dict[str, Subformat] = {
    row.name.lower(): row
    for row in (
        Subformat("monolithicSparse", "one growing file with its descriptor inside"),
        Subformat("monolithicFlat", "descriptor and one file of raw bytes"),
        Subformat("twoGbMaxExtentSparse", "descriptor and growing files of at most 2 GiB"),
        Subformat("2GbMaxExtentSparse", "the documentation's name of twoGbMaxExtentSparse"),
        Subformat("twoGbMaxExtentFlat", "descriptor and raw files of at most 2 GiB"),
        Subformat("2GbMaxExtentFlat", "the documentation's name of twoGbMaxExtentFlat"),
        Subformat("streamOptimized", "compressed, written once from front to back; the disk of an OVA"),
        Subformat("fullDevice", "a whole host disk (or its image)"),
        Subformat("partitionedDevice", "some partitions of a host disk (or its image)"),
        Subformat("custom", "any mixture of extents"),
        Subformat("vmfs", "ESX: descriptor and one flat file, thick or thin"),
        Subformat("vmfsThin", "ESX: flat, thin"),
        Subformat("vmfsThick", "ESX: flat, thick (deprecated name)"),
        Subformat("vmfsPreallocated", "ESX: flat, lazily zeroed"),
        Subformat("vmfsEagerZeroedThick", "ESX: flat, zeroed when made"),
        Subformat("vmfsSparse", "ESX: snapshot delta (COWD)"),
        Subformat("seSparse", "ESX: snapshot delta of VMFS6 and of large disks"),
        Subformat("vmfsSeSparse", "the documentation's name of seSparse"),
        Subformat("vmfsRDM", "ESX: raw device map", _RDM),
        Subformat("vmfsRDMP", "ESX: raw device map, physical", _RDM),
        Subformat("vmfsRawDeviceMap", "ESX: raw device map", _RDM),
        Subformat("vmfsPassthroughRawDeviceMap", "ESX: raw device map, physical", _RDM),
        Subformat("vmfsRaw", "ESX: raw device", _RDM),
        Subformat("vsanSparse", "ESX: snapshot delta on vSAN", _VSAN),
    )
}

EXTENT_TYPES: dict[str, ExtentType] = {
    row.name: row
    for row in (
        ExtentType("FLAT", "flat"),
        ExtentType("VMFS", "flat"),
        ExtentType("ZERO", "zero"),
        ExtentType("SPARSE", "sparse"),
        ExtentType("VMFSSPARSE", "sparse"),
        ExtentType("SESPARSE", "sparse"),
        ExtentType("VMFSRDM", "", _RDM),
        ExtentType("VMFSRDMP", "", _RDM),
        ExtentType("VMFSRAW", "", _RDM),
        ExtentType("VSANSPARSE", "", _VSAN),
    )
}

VSAN_REFUSAL = _VSAN
ENCRYPTED_REFUSAL = (
    "it is encrypted; vmdkit has no key for it. Decrypt the VM, or clone it unencrypted, where the key is"
)
