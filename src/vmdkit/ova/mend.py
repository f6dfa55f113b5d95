# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Change a descriptor so that the importers it is meant for take it: as little as possible, and each change is said.

The tree is changed in place; all that nobody complains about stays as it is, down to prefixes and comments. ``Mend``
does what can be known before disks are written; ``set_files`` what only their writing tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.ova import descriptor, guests
from vmdkit.ova.descriptor import CONTROLLERS, ETHERNET, IDE, OVF, STORAGE, STREAM_FORMAT, VBOX, VMW
from vmdkit.ova.lint_descriptor import is_known_section, is_optional
from vmdkit.ova.lint_hardware import LARGEST_TYPE, NEEDS, is_strange, vmx
from vmdkit.ova.targets import OLDEST_USED, hardware_for
from vmdkit.ova.xml import Element

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmdkit.ova.descriptor import Envelope, Hardware, Item
    from vmdkit.ova.targets import Target
    from vmdkit.ova.writer import Written


class Mend:
    """Changes a descriptor for some targets; ``done`` says what was changed."""

    def __init__(self, envelope: Envelope, targets: Sequence[Target], rules: set[str]) -> None:
        self._envelope = envelope
        self._targets = targets
        self._rules = rules
        self._space = envelope.root.namespace
        self.done: list[str] = []

    def run(self) -> list[str]:
        """Make every change that one of the broken rules asks for; return what was done."""
        if self._rules & {"ovf-section", "vbox-machine"}:
            self._sections()
        for system in self._envelope.systems:
            for hardware in system.hardware:
                self._family(hardware)
                for item in hardware.items:
                    self._item(hardware, item)
        if "hw-network" in self._rules:
            self._networks()
        return self.done

    def _say(self, text: str) -> None:
        self.done.append(text)

    def _sections(self) -> None:
        for parent in (self._envelope.root, *(system.element for system in self._envelope.systems)):
            for child in parent.elements():
                if is_known_section(child) or child.namespace == VMW or is_optional(child):
                    continue
                if child.namespace == VBOX or child.namespace not in descriptor.ENVELOPES:
                    child.set("required", "false", OVF)
                    self._say(f"marked {child.qname} as not required")

    # ── hardware ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _family(self, hardware: Hardware) -> None:
        """Choose a family that all of VMware's targets run, and that has the devices of the machine."""
        if not self._rules & {"hw-family", "hw-too-new", "hw-update", "hw-too-old"}:
            return
        least = max([OLDEST_USED, *(NEEDS.get(item.subtype.strip().lower(), (0, ""))[0] for item in hardware.items)])
        if hardware.config.get("bootOptions.efiSecureBootEnabled", "").lower() == "true":
            least = max(least, guests.SECURE_BOOT_SINCE)
        best = hardware_for(self._targets)
        version = min((known for known in map(vmx, hardware.families) if known is not None), default=best)
        wanted = max(min(version, best), least)
        families = [f"vmx-{wanted:02d}"]
        if wanted > best or hardware.families == families:
            return
        for system in hardware.element.elements("System"):
            element = system.first("VirtualSystemType")
            if element is None:
                prefix = next((key for key, uri in system.prefixes.items() if uri == descriptor.VSSD), "")
                element = Element(f"{prefix}:VirtualSystemType" if prefix else "VirtualSystemType", {}, [""])
                system.children.append(element)
            element.text = families[0]
            self._say(f"hardware family {' '.join(hardware.families) or 'none'} -> {families[0]}")
            hardware.families = families
            return

    def _item(self, hardware: Hardware, item: Item) -> None:
        if "hw-type" in self._rules:
            self._type(hardware, item)
        if "hw-controller" in self._rules and item.type in CONTROLLERS:
            self._controller(item)

    def _type(self, hardware: Hardware, item: Item) -> None:
        for_vbox = any(target.family == "virtualbox" for target in self._targets)
        if for_vbox and item.type is not None and item.type > LARGEST_TYPE:
            hardware.element.remove(item.element)
            self._say(f"removed {item.what}, which VirtualBox cannot read")
        elif item.required and is_strange(item) and any(target.is_vmware for target in self._targets):
            item.element.set("required", "false", self._space)
            self._say(f"marked {item.what} as not required")

    def _controller(self, item: Item) -> None:
        subtype = item.element.first("ResourceSubType")
        if subtype is None:
            return
        if item.type == IDE and subtype.text:
            item.element.remove(subtype)
            self._say(f"removed the type {subtype.text!r} of {item.what}")
        elif item.type == STORAGE and subtype.text.lower() in ("sata", "ahci", "nvme"):
            old = subtype.text
            subtype.text = "vmware.nvme.controller" if old.lower() == "nvme" else "vmware.sata.ahci"
            self._say(f"type of {item.what}: {old} -> {subtype.text}")

    def _networks(self) -> None:
        """List every network that an adapter is connected with."""
        known = {network.name for network in self._envelope.networks}
        for system in self._envelope.systems:
            for hardware in system.hardware:
                for item in hardware.of_type(ETHERNET):
                    for name in item.connections:
                        if name and name not in known:
                            known.add(name)
                            self._add_network(name)

    def _add_network(self, name: str) -> None:
        root = self._envelope.root
        section = next((one for one in root.elements("NetworkSection")), None)
        prefix = root.qname.rpartition(":")[0]
        prefix = f"{prefix}:" if prefix else ""
        if section is None:
            section = Element(f"{prefix}NetworkSection", {}, [], 0, self._space, root.prefixes)
            section.children.append(Element(f"{prefix}Info", {}, ["Networks"]))
            at = next(
                (index for index, one in enumerate(root.children)
                 if isinstance(one, Element) and one.local.startswith("VirtualSystem")),
                len(root.children),
            )  # fmt: skip
            root.children[at:at] = [section, "\n  "]
        network = Element(f"{prefix}Network", {}, [], 0, self._space, root.prefixes)
        network.set("name", name, self._space)
        section.children += [network, "\n"]
        self._say(f"listed the network {name!r}")


def set_files(envelope: Envelope, written: Mapping[str, Written], again: set[str]) -> None:
    """Write what is true of the files that were written, by href: sizes, and of disks format, capacity, population.

    The population of disks that were taken as they are stays as it was stated, if that can be; that of those in
    ``again`` is ours. May be called twice, with larger numbers first.
    """
    space = envelope.root.namespace
    for file in envelope.files:
        found = written.get(file.href)
        if found is not None:
            file.element.set("size", str(found.size), space)
    for disk in envelope.disks:
        href = envelope.href_of(disk)
        found = written.get(href) if href is not None else None
        if found is None or not found.capacity:
            continue
        disk.element.set("format", STREAM_FORMAT, space)
        if disk.capacity != found.capacity:
            disk.element.set("capacity", str(found.capacity), space)
            disk.element.set("capacityAllocationUnits", None, space)
        if disk.populated is None or disk.populated > found.capacity or href in again:
            disk.element.set("populatedSize", str(found.populated), space)
