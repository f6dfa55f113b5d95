# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""THE table of places that disks are taken to: what each importer takes, and where that is said.

A row is what ``convert --target`` means: the format, the formats that will do as well, and what the size must be.
Every rule has its source; a place without one is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmdkit.errors import UsageError
from vmdkit.units import GIB, MIB, SECTOR, TIB, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Preset:
    """A place: ``formats`` that it takes, the first one by default; sizes are whole multiples of ``step``.

    ``least`` and ``most`` are bytes; a disk below is made larger, one above is refused. ``options`` are those of ``-o``
    that the user has not given; ``never`` are options that the importer does not take, with the reason.
    """

    name: str
    what: str
    formats: tuple[str, ...]
    rule: str
    sources: tuple[str, ...]
    step: int = SECTOR
    least: int = 0
    most: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    never: Mapping[str, str] = field(default_factory=dict)

    def format(self, wanted: str | None) -> str:
        """Return the format to write; raises UsageError where the place does not take the one that is wanted."""
        if wanted is None:
            return self.formats[0]
        for name in self.formats:
            if name.lower() == wanted.lower():
                return name
        raise UsageError(f"{self.what} takes {', '.join(self.formats)}, not {wanted}: {self.rule} ({self.sources[0]})")

    def size(self, size: int) -> int:
        """Return the size (bytes) that a disk of ``size`` bytes gets there; UsageError for more than it takes."""
        rounded = -(-max(size, self.least) // self.step) * self.step
        if self.most and rounded > self.most:
            raise UsageError(
                f"{self.what} takes disks of at most {format_size(self.most)}, not {format_size(rounded)} "
                f"({self.sources[0]})"
            )
        return rounded

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise UsageError for an option that the importer does not take."""
        for key, reason in self.never.items():
            if options.get(key):
                raise UsageError(f"{self.what} does not take {key}: {reason}")


PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        Preset(
            "esxi",
            "ESXi",
            ("streamOptimized", "vmfs"),
            "a stream is imported (OVF, govc import.vmdk), vmfs is what lies on a datastore, and a hosted sparse disk "
            "cannot be run there",
            (
                "https://github.com/home-assistant/operating-system/issues/497",
                "https://github.com/vmware/pyvmomi-community-samples/issues/398",
            ),
            options={"adapter": "lsilogic"},
        ),
        Preset(
            "workstation",
            "VMware Workstation",
            ("monolithicSparse", "twoGbMaxExtentSparse", "monolithicFlat", "twoGbMaxExtentFlat"),
            "hosted formats; a stream is imported only, and not written to",
            (
                "https://github.com/vmware/open-vmdk (Virtual Disk Format 5.0)",
                "https://github.com/GNS3/gns3-gui/issues/1112",
            ),
        ),
        Preset(
            "virtualbox",
            "VirtualBox",
            ("monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"),
            "hosted formats of version 1, and streams",
            ("https://www.virtualbox.org/manual/ch05.html (5.2)",),
            never={"zeroed_grain": "it reads version 1 only, and zero grains are version 2"},
        ),
        Preset(
            "aws",
            "AWS VM Import/Export",
            ("streamOptimized", "raw", "vhd"),
            "OVA, stream-optimized ESX VMDK, fixed and dynamic VHD, raw",
            ("https://docs.aws.amazon.com/vm-import/latest/userguide/prerequisites.html",),
        ),
        Preset(
            "gcp",
            "Google Cloud",
            ("tar.gz",),
            "disk.raw, of whole GiB, in a gzip'd tar of the oldgnu form",
            (
                "https://cloud.google.com/solutions/image-management-best-practices",
                "https://github.com/gardenlinux/gardenlinux/blob/main/features/gcp/README.md",
                "https://github.com/rancher/elemental-toolkit/blob/main/images/gce-image.sh",
            ),
            step=GIB,
        ),
        Preset(
            "azure",
            "Azure",
            ("vhd",),
            "a fixed VHD of whole MiB, from 20 MiB to 32 TiB, and its footer",
            (
                "https://learn.microsoft.com/azure/virtual-machines/windows/prepare-for-upload-vhd-image",
                "https://github.com/microsoft/AzureStorageExplorer/issues/3029",
            ),
            step=MIB,
            least=20 * MIB,
            most=32 * TIB,
        ),
        Preset(
            "proxmox",
            "Proxmox VE",
            ("raw", "monolithicSparse", "streamOptimized"),
            "raw (qm disk import), what qemu-img reads; qcow2 is written through qemu-nbd",
            ("https://pve.proxmox.com/pve-docs/qm.1.html",),
        ),
    )
}


def find_preset(name: str) -> Preset:
    """Return the row of a place; raises UsageError."""
    row = PRESETS.get(name.lower())
    if row is None:
        raise UsageError(f"no target is called {name!r}, only {', '.join(PRESETS)}")
    return row
