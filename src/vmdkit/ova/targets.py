# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where an OVA is to be imported: what each importer is known to take.

Hardware versions are VMware's (KB 1003746, KB 2007240): each product runs all up to its own. ``surest`` is what the
first release of a product runs, ``newest`` its last update; between them it depends on the update that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

FAMILIES: Final = ("vsphere", "workstation", "virtualbox", "proxmox", "aws")
OLDEST_USED: Final = 7  # an older vmx-NN lacks VMXNET3 and 8 processors; ESX 4


@dataclass(frozen=True, slots=True)
class Target:
    """An importer. ``surest`` and ``newest`` are hardware versions, 0 where any is taken."""

    name: str
    title: str
    family: str
    surest: int = 0
    newest: int = 0
    digests: tuple[str, ...] = ("SHA1", "SHA256", "SHA512")

    @property
    def is_vmware(self) -> bool:
        """Whether it is one of VMware's products, which share their importer."""
        return self.family in ("vsphere", "workstation")


TARGETS: Final = {
    target.name: target
    for target in (
        Target("esxi6", "vSphere and ESXi 6.7", "vsphere", 14, 15),
        Target("esxi7", "vSphere and ESXi 7.0", "vsphere", 17, 19),
        Target("esxi8", "vSphere and ESXi 8.0", "vsphere", 20, 21),
        Target("esxi9", "vSphere and ESXi 9.0", "vsphere", 22, 22),
        Target("workstation", "Workstation 17 and later, Fusion 13 and later", "workstation", 20, 22),
        Target("vbox7", "VirtualBox 7", "virtualbox"),
        Target("proxmox", "Proxmox VE 8 and later", "proxmox"),
        Target("aws", "AWS VM Import", "aws"),
    )
}
ALIASES: Final = {
    "esxi": ("esxi7", "esxi8", "esxi9"),
    "vsphere": ("esxi7", "esxi8", "esxi9"),
    "vmware": ("esxi7", "esxi8", "esxi9", "workstation"),
    "fusion": ("workstation",),
    "virtualbox": ("vbox7",),
    "pve": ("proxmox",),
}
EVERYWHERE: Final = ("esxi7", "esxi8", "esxi9", "workstation", "vbox7", "proxmox", "aws")


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets that words such as ``esxi7,vbox7`` mean, each once; all current ones for no words.

    Raises UsageError for a name that is none.
    """
    names: dict[str, None] = {}
    for text in texts:
        for word in filter(None, (part.strip().lower() for part in text.split(","))):
            if word not in TARGETS and word not in ALIASES and word != "all":
                known = ", ".join((*TARGETS, *ALIASES, "all"))
                raise UsageError(f"no target is called {word!r}; there are {known}")
            names.update(dict.fromkeys(EVERYWHERE if word == "all" else ALIASES.get(word, (word,))))
    return tuple(TARGETS[name] for name in names or EVERYWHERE)


def hardware_for(targets: Iterable[Target]) -> int:
    """Return the hardware version that all of the targets run; 13 (ESXi 6.5) where none of them minds."""
    return min((target.surest for target in targets if target.surest), default=13)
