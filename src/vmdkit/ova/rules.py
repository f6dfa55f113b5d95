# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of ``ova lint``: one row each. docs/ova.md prints this table, and a test holds the two together.

A row has a letter for each family of importers: **E** it refuses or gets it wrong, **W** some version does, or
something is lost, **N** worth knowing, **-** it does not mind. ``source`` is where the rule comes from: the standard
(DSP0243), the description of the disk format (docs/format), or a thread in which somebody met it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from vmdkit.ova.targets import FAMILIES

if TYPE_CHECKING:
    from vmdkit.ova.targets import Target


class Level(Enum):
    """How bad it is for an importer."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    NONE = "none"

    @property
    def rank(self) -> int:
        """Return 3 for errors, down to 0."""
        return 3 - list(Level).index(self)


_LETTERS = {"E": Level.ERROR, "W": Level.WARNING, "N": Level.NOTE, "-": Level.NONE}


@dataclass(frozen=True, slots=True)
class Rule:
    """A row. ``fixed`` says that ``ova fix`` puts it right."""

    id: str
    letters: str  # one for each family, in the order of FAMILIES
    text: str
    why: str
    source: str
    hint: str
    fixed: bool

    def level(self, target: Target) -> Level:
        """Return how bad it is for one importer."""
        return _LETTERS[self.letters[FAMILIES.index(target.family)]]


_FIX = "vmdkit ova fix"
_REWRITE = "vmdkit ova fix writes the disk again"
_AGAIN = "pack it again (vmdkit ova fix --again)"
_SPEC = "DSP0243 2.1.1, 5"


# id, letters of FAMILIES, text, why, source, hint
# fmt: off
_ROWS: Final = (
    # ── the archive ─────────────────────────────────────────────────────────
    ("tar-header", "EEEEE", "a tar header is damaged", "nothing behind it can be read", _SPEC, "make the OVA again"),
    ("tar-truncated", "EEEEE", "the archive was cut off", "what is missing cannot be imported", _SPEC, "copy it again"),
    ("tar-end", "WWWNW", "the end of the archive is not marked by two empty blocks",
     "readers take the file for cut off", _SPEC, _FIX),
    ("tar-trailing", "WWWNW", "something follows the end of the archive", "nobody reads it", _SPEC, _FIX),
    ("tar-ambiguous", "EEEEE", "two readers see two different archives", "what one checks, the other does not import",
     "CVE-2025-4517 and its kin", "make the OVA again"),
    ("tar-bomb", "EEEEE", "the headers are larger or more than any appliance needs", "an attack on memory", _SPEC,
     "make the OVA again"),
    ("tar-sparse", "EEEEE", "a member is stored with its holes left out", "only GNU tar reads these", _SPEC,
     "tar without --sparse"),
    ("tar-type", "EEEWE", "a member is a link or device", "an OVA holds regular files; a link may lead anywhere",
     _SPEC, _FIX),
    ("tar-directory", "WWWNW", "a member is a directory", "an OVA holds regular files", _SPEC, _FIX),
    ("tar-name-unsafe", "EEEEE", "a name leads out of the directory, or into one",
     "whoever unpacks it writes elsewhere", _SPEC, "rename the file and its href"),
    ("tar-name-dot", "WWWNW", "a name begins with ./", "importers compare it with the href in the descriptor", _SPEC,
     _FIX),
    ("tar-name-twice", "EEEEE", "two members have one name", "readers disagree which of them counts", _SPEC,
     "make the OVA again"),
    ("tar-name-case", "WWWNN", "two names differ in case only", "on Windows they are one", _SPEC, "rename one"),
    ("tar-name-characters", "WWWNW", "a name has characters other than ASCII letters, digits, . _ -",
     "an href is an address, and products differ in how they decode it", _SPEC, "rename the file and its href"),
    ("tar-pax", "EWWNW", "the archive is in pax format, as Python's tarfile writes it",
     "vSphere and oVirt do not read pax headers", "vmware/open-vmdk#65, oVirt/ovirt-engine#374", _FIX),
    ("tar-gnu", "NNNNN", "the archive is in GNU format",
     "the standard asks for ustar; importers read GNU all the same", "DSP0243 2.1.1, 5.4; vmware/open-vmdk#65", _FIX),
    ("tar-large", "WWWNW", "a member has 8 GiB or more",
     "ustar cannot say so; GNU's way to say it is read by VMware, old importers stop there",
     "coreos/coreos-assembler#3787", "split the disk in two, or see that the importer is recent"),
    ("tar-ovf-first", "EEWNE", "the descriptor is not the first member", "importers read the archive once, in order",
     "DSP0243 2.1.1, 5.4; osbuild/osbuild-composer#3926", _FIX),
    ("tar-order", "WWWNW", "files do not follow one another as in References",
     "importers read the archive once, in order", "DSP0243 2.1.1, 5.4", _FIX),
    ("tar-manifest-place", "WWNNN", "manifest and certificate stand neither behind the descriptor nor at the end",
     "importers look for them there", "DSP0243 2.1.1, 5.4", _FIX),
    ("tar-extra", "WWNNN", "a member is not in References", "it is carried along and ignored", _SPEC, _FIX),
    # ── the descriptor ──────────────────────────────────────────────────────
    ("ovf-missing", "EEEEE", "there is no descriptor", "without an .ovf it is no OVA", _SPEC, "add one"),
    ("ovf-several", "EEEEE", "there is more than one descriptor", "importers take the first they meet", _SPEC,
     "leave one"),
    ("ovf-xml", "EEEEE", "the descriptor is no XML, or no OVF envelope", "it cannot be read", _SPEC, "make it again"),
    ("ovf-version", "EEWWW", "the descriptor is not OVF 1", "VMware says: Unsupported element 'StorageItem'",
     "myspaghetti/macos-virtualbox#300, BlackArch/blackarch#1937", "export it as OVF 1.0"),
    ("ovf-section", "EEWNN", "a section that is required is known to nobody but its maker",
     "an importer has to refuse what it does not understand", "DSP0243 2.1.1, 6.2", _FIX),
    ("ovf-no-system", "EEEEE", "there is no machine in it", "nothing can be imported", _SPEC, "add a VirtualSystem"),
    ("ovf-several-systems", "NNNWE", "there is more than one machine in it",
     "single-machine importers take the first", "AWS VM Import, requirements", "make an OVA for each machine"),
    ("ref-id", "EEEEE", "two files or disks have one ID, or none", "references to it are ambiguous", _SPEC, "rename"),
    ("ref-missing", "EEEEE", "a file of References is not in the archive", "it cannot be imported", _SPEC, "add it"),
    ("ref-address", "EEEEE", "an href is an address", "nothing but members is imported", _SPEC,
     "put the file into the archive"),
    ("ref-size", "EWNNN", "ovf:size is not the size of the file",
     "vSphere stops the transfer where the size says; others only warn",
     "gardenlinux/gardenlinux#2322, delphix/appliance-build#732", _FIX),
    ("ref-size-missing", "NNNNN", "ovf:size is missing", "importers cannot say how far they are, nor plan space",
     _SPEC, _FIX),
    ("ref-compressed", "WWEEE", "a file is packed once more, with gzip", "only VMware unpacks it", _SPEC,
     "gunzip it, and remove ovf:compression"),
    ("ref-chunked", "WWEEE", "a file is cut into chunks", "only VMware puts them together", _SPEC, "join them"),
    ("ref-unused", "NNNNN", "no disk and no drive uses a file of References", "it is carried along", _SPEC,
     "remove it"),
    ("disk-file", "EEEEE", "a disk's fileRef leads to no file", "the disk cannot be found", _SPEC, "correct it"),
    ("disk-format", "EEWNW", "a disk's format is not the address of streamOptimized",
     "importers choose the reader by it", "ilbers/isar#106", _FIX),
    ("disk-capacity", "EEWWW", "a disk's capacity is not the capacity of its file",
     "ESXi says: Capacity of uploaded disk is larger than requested",
     "teamdfir/sift#220, LibreELEC/LibreELEC.tv#1878, vmware/open-vmdk#82", _FIX),
    ("disk-capacity-number", "EEEEE", "a disk's capacity is no number, or its unit is unknown",
     "the disk cannot be made", "DSP0243 2.1.1, 9.1", "write bytes"),
    ("disk-populated", "WWNNN", "populatedSize is larger than the capacity", "space is planned with it",
     "DSP0243 2.1.1, 9.1", _FIX),
    ("disk-parent", "EEEEE", "a disk is a delta over another", "only vSphere's own export has these",
     "DSP0243 2.1.1, 9.1", "export the machine without snapshots"),
    ("disk-unattached", "WWWWW", "no drive of the machine is this disk", "it is not imported", _SPEC, "attach it"),
    # ── the hardware ────────────────────────────────────────────────────────
    ("hw-none", "EEEEE", "a machine has no hardware", "nothing can be made", _SPEC, "add a VirtualHardwareSection"),
    ("hw-family", "EEN--", "VMware does not know the hardware family",
     "VMware says: Unsupported hardware family 'virtualbox-2.2'",
     "nix-community/nixos-generators#128, owncloud-archive/vm#53", _FIX),
    ("hw-too-new", "EE---", "the hardware version is newer than the product",
     "VMware says: Unsupported hardware family 'vmx-20'", "librenms/packer-builds#36, nextcloud/vm#556", _FIX),
    ("hw-update", "WW---", "the hardware version needs an update of the product", "the first releases refuse it",
     "KB 2007240", _FIX),
    ("hw-too-old", "WW---", "the hardware version is very old", "recent releases warn, or refuse",
     "home-assistant/operating-system#3163", _FIX),
    ("hw-item", "EEEEE", "a hardware item lacks InstanceID or ResourceType, or shares its InstanceID",
     "it cannot be told from others", "DSP0243 2.1.1, 8.3", "correct it"),
    ("hw-parent", "EEEEE", "an item's Parent is no controller", "the drive hangs in the air",
     "Graylog2/graylog2-images#211", "correct it"),
    ("hw-address", "EEEEE", "two drives have one place on their controller, or one that it has not",
     "only one of them can be attached", "DSP0243 2.1.1, 8.3", "correct AddressOnParent"),
    ("hw-disk", "EEEEE", "a drive names a disk or file that is not there", "it cannot be made", _SPEC, "correct it"),
    ("hw-type", "EEENN", "the importer does not know this kind of device, and the item is required",
     "VMware: No support for the virtual hardware device type '35'; VirtualBox: Unknown resource type 32768",
     "gusztavvargadr/packer#497", _FIX),
    ("hw-controller", "EEWNN", "the importer does not know this controller",
     "vCenter says: VALUE_ILLEGAL: Value 'PIIX4' of ResourceSubType element not found",
     "inverse-inc/packetfence#5522, Graylog2/graylog2-images#211", _FIX),
    ("hw-nic", "EEWNN", "the importer does not know this network adapter",
     "it is refused, or another is put in its place", "DSP0243 2.1.1, 8.3", "choose E1000"),
    ("hw-network", "EEWNN", "an adapter is connected with a network that NetworkSection does not list",
     "it cannot be mapped", "DSP0243 2.1.1, 9.2", _FIX),
    ("hw-needs", "EE---", "a device needs a newer hardware version",
     "the machine does not start, or loses the device", "KB 2007240, vSphere: hardware features", "raise vmx-NN"),
    ("hw-cpu", "EEEWW", "the number of processors is missing", "nothing can be made", _SPEC, "add it"),
    ("hw-memory", "EEEWW", "the size of memory is missing, or in an unknown unit", "nothing can be made", _SPEC,
     "add it"),
    ("hw-memory-step", "EE---", "memory is no multiple of 4 MiB", "VMware refuses to start it",
     "vSphere: virtual machine memory", "round it up"),
    ("hw-secure-boot", "WWWWW", "secure boot without EFI", "it has no effect", "vSphere: boot options",
     "set the firmware to efi"),
    ("hw-firmware", "--W--", "the firmware EFI is stated in VMware's words only",
     "VirtualBox starts the machine with BIOS", "VirtualBox reads vbox:Machine, not vmw:Config",
     "switch EFI on after the import (VBoxManage modifyvm --firmware efi)"),
    ("hw-iso-transport", "WW---", "properties travel on a CD, and the machine has no CD drive",
     "the guest never sees them", "DSP0243 2.1.1, 11.2", "add a CD drive, or the transport com.vmware.guestInfo"),
    ("os-missing", "WWWNN", "the operating system is not stated", "the machine gets the devices of an old one",
     "DSP0243 2.1.1, 9.7", "add an OperatingSystemSection"),
    ("os-type", "NN---", "vmw:osType is missing or not known here",
     "VMware goes by the number then: mapped to 'Other (32-bit)'", "Banno/packer-post-processor-vsphere-ova#9",
     "add vmw:osType"),
    ("vbox-machine", "WWN--", "VirtualBox's own section is required",
     "others have to refuse it; and VirtualBox refuses it where its disks are others",
     "OSInside/kiwi#1417, phusion/open-vagrant-boxes#1", _FIX),
    ("property", "EEWNN", "a property has no key or no type, or shares its key", "it cannot be asked for",
     "DSP0243 2.1.1, 9.5", "correct it"),
    # ── manifest and certificate ────────────────────────────────────────────
    ("mf-missing", "NNNNN", "there is no manifest", "nobody notices damage on the way", _SPEC, _FIX),
    ("mf-name", "WWNNN", "manifest or certificate are not named like the descriptor", "they are not found", _SPEC,
     _FIX),
    ("mf-dialect", "EEN--", "a line is not written SHA256(name)= digest", "VMware says: Invalid OVF manifest entry",
     "home-assistant/operating-system#826 and its PR 1674", _FIX),
    ("mf-digest", "EEEWW", "a digest is not that of the file", "damaged, or changed after it was made", "KB 407022",
     "get it again; vmdkit ova fix --accept-digests if you know why"),
    ("mf-coverage", "WWW--", "the manifest does not list a file, or lists one that is not there",
     "No manifest entry found", "Banno/packer-post-processor-vsphere-ova#9", _FIX),
    ("mf-algorithm", "EEEN-", "the importer does not take this kind of digest",
     "MD5 and others are in no version of the standard", "DSP0243 2.1.1, 5.2", _FIX),
    ("mf-weak", "WWN--", "digests are SHA-1", "recent products ask back, or refuse", "turnkeylinux/tracker#827", _FIX),
    ("cert-signature", "EEE--", "the signature is not that of the manifest", "changed after it was signed",
     "DSP0243 2.1.1, 5.2", "sign it again"),
    ("cert-format", "EEE--", "the certificate file is not digest line and PEM", "it cannot be checked",
     "DSP0243 2.1.1, 5.2", "sign it again"),
    ("cert-time", "WWW--", "the certificate is not valid now", "importers ask back", "DSP0243 2.1.1, 5.2",
     "sign it again"),
    ("cert-self", "NNN--", "the certificate is signed by itself", "importers call the publisher untrusted",
     "DSP0243 2.1.1, 5.2", "use one of an authority that importers know"),
    ("cert-unchecked", "NNN--", "the signature was not checked", "the package cryptography is not installed", "",
     "python3 -m pip install 'vmdkit[ova]'"),
    # ── the disks ──────────────────────
    ("vmdk-not-stream", "EEWNE", "a disk is no streamOptimized VMDK",
     "Unsupported or invalid disk type; snapshots fail", "home-assistant/operating-system#497, openwrt/openwrt#2477",
     _REWRITE),
    ("vmdk-unreadable", "EEEEE", "a disk cannot be read", "damaged, or of a format that nobody expects here",
     "docs/format", "make the disk again"),
    ("vmdk-damaged", "EEEEE", "a stream is damaged", "its grains do not inflate, or its tables are wrong",
     "docs/format", "get it again; vmdkit repair --onto saves what can be read"),
    ("vmdk-version", "EE--W", "the stream's header is not of version 3", "sparse VMDK version too old",
     "glennmatthews/cot#65, mininet/mininet#483", _REWRITE),
    ("vmdk-rgd", "WW--W", "the stream has a redundant grain directory, as qemu-img writes it",
     "VMware's own streams have none; imports of such streams fail now and then",
     "flatcar/scripts#540, coreos/scripts#473", _REWRITE),
    ("vmdk-no-eos", "EE--W", "the stream has no end-of-stream marker, as qemu-img writes it",
     "the transfer is dropped, or the digest is said not to match; depends on the data whether it works",
     "qemu-project/qemu#1357, siderolabs/talos#8148, flatcar/scripts#540", _REWRITE),
    ("vmdk-eos-luck", "WW--W", "the stream ends in padding that only looks like an end-of-stream marker (qemu-img)",
     "the next build of the same disk has none, and is refused: it depends on the last grain",
     "qemu-project/qemu#1357, siderolabs/talos#8148", _REWRITE),
    ("vmdk-markers", "EE--W", "the stream has no grain markers", "it cannot be read in one pass", "docs/format",
     _REWRITE),
    ("vmdk-order", "EE--W", "grains do not ascend", "VMware reads the disk in order", "docs/format", _REWRITE),
    ("vmdk-trailing", "WW--W", "something follows the end of the stream", "it is not part of the disk", "docs/format",
     _REWRITE),
    ("vmdk-gap", "WW--W", "between grains lies what is no marker", "one-pass readers lose their way", "docs/format",
     _REWRITE),
    ("vmdk-grain", "WW--N", "grains are not of 64 KiB", "VMware writes no others", "docs/format", _REWRITE),
    ("vmdk-short-grain", "NN--N", "a grain is shorter than a grain", "VMware packs whole ones", "docs/format",
     _REWRITE),
    ("vmdk-descriptor", "EENNW", "the disk's descriptor is missing, or not version=1 createType streamOptimized",
     "VMware says: Not a supported disk format", "vmware/pyvmomi-community-samples#398", _REWRITE),
    ("vmdk-descriptor-twice", "EEWWW", "the disk holds two descriptors", "which counts, readers disagree about",
     "OSInside/kiwi#518", _REWRITE),
    ("vmdk-adapter", "WW---", "ddb.adapterType does not fit the controller", "ESXi wants lsilogic behind SCSI",
     "docs/format", _REWRITE),
    ("vmdk-tools", "WN---", "ddb.toolsVersion is missing", "guest customization is refused",
     "vmware/open-vmdk#9, KB 83068", _REWRITE),
    ("vmdk-hardware", "NN---", "ddb.virtualHWVersion is missing or implausible", "cosmetic", "docs/format", _AGAIN),
    ("vmdk-child", "EEEEE", "the disk has a parent, or is encrypted", "its bytes alone are no disk", "docs/format",
     "export the machine without snapshots and encryption"),
)
# fmt: on

RULES: Final = {row[0]: Rule(*row, fixed=row[5].startswith(_FIX)) for row in _ROWS}


def table() -> str:
    """Return the rules as the table that docs/ova.md prints."""
    rows = ["| rule | V W B P A | is broken where | why, and who met it | what helps |", "|---|---|---|---|---|"]
    for rule in RULES.values():
        why = f"{rule.why} ({rule.source})" if rule.source else rule.why
        rows.append(f"| `{rule.id}` | {' '.join(rule.letters)} | {rule.text} | {why} | {rule.hint} |")
    return "\n".join(rows)
