# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What operating systems are called: by us, by VMware, by VirtualBox, and by number in the standard.

The number is CIM_OperatingSystem.OSType, which ends with the systems of 2012; VMware writes 1 (other) for those that
came after, and goes by its own name, ``vmw:osType``. A name of VMware's that is not listed may be given as it is.
"""

from __future__ import annotations

import difflib
import re
from typing import Final, NamedTuple

from vmdkit.errors import UsageError

SECURE_BOOT_SINCE: Final = 13  # vmx-NN; vSphere 6.5
_VMWARE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{2,60}Guest(?:64)?")


class Guest(NamedTuple):
    """An operating system: names for VMware and VirtualBox, number of the standard, and for people."""

    vmware: str
    cim: int
    virtualbox: str
    title: str


GUESTS: Final = {
    "other": Guest("otherGuest", 1, "Other", "Other (32-bit)"),
    "other64": Guest("otherGuest64", 102, "Other_64", "Other (64-bit)"),
    "linux": Guest("otherLinuxGuest", 36, "Linux", "Other Linux (32-bit)"),
    "linux64": Guest("otherLinux64Guest", 101, "Linux_64", "Other Linux (64-bit)"),
    "linux3": Guest("other3xLinux64Guest", 101, "Linux_64", "Other 3.x Linux (64-bit)"),
    "linux4": Guest("other4xLinux64Guest", 101, "Linux_64", "Other 4.x or later Linux (64-bit)"),
    "linux5": Guest("other5xLinux64Guest", 101, "Linux_64", "Other 5.x or later Linux (64-bit)"),
    "almalinux": Guest("almalinux_64Guest", 101, "RedHat_64", "AlmaLinux (64-bit)"),
    "amazonlinux2": Guest("amazonlinux2_64Guest", 101, "Linux_64", "Amazon Linux 2 (64-bit)"),
    "arch": Guest("other5xLinux64Guest", 101, "ArchLinux_64", "Arch Linux (64-bit)"),
    "centos7": Guest("centos7_64Guest", 107, "RedHat_64", "CentOS 7 (64-bit)"),
    "centos8": Guest("centos8_64Guest", 107, "RedHat_64", "CentOS 8 (64-bit)"),
    "centos9": Guest("centos9_64Guest", 107, "RedHat_64", "CentOS 9 (64-bit)"),
    "coreos": Guest("coreos64Guest", 101, "Linux_64", "CoreOS Linux (64-bit)"),
    "debian10": Guest("debian10_64Guest", 96, "Debian_64", "Debian GNU/Linux 10 (64-bit)"),
    "debian11": Guest("debian11_64Guest", 96, "Debian_64", "Debian GNU/Linux 11 (64-bit)"),
    "debian12": Guest("debian12_64Guest", 96, "Debian_64", "Debian GNU/Linux 12 (64-bit)"),
    "fedora": Guest("fedora64Guest", 101, "Fedora_64", "Red Hat Fedora (64-bit)"),
    "freebsd": Guest("freebsd64Guest", 78, "FreeBSD_64", "FreeBSD Pre-11 versions (64-bit)"),
    "freebsd12": Guest("freebsd12_64Guest", 78, "FreeBSD_64", "FreeBSD 12 (64-bit)"),
    "freebsd13": Guest("freebsd13_64Guest", 78, "FreeBSD_64", "FreeBSD 13 (64-bit)"),
    "opensuse": Guest("opensuse64Guest", 83, "OpenSUSE_64", "SUSE openSUSE (64-bit)"),
    "oracle8": Guest("oracleLinux8_64Guest", 109, "Oracle_64", "Oracle Linux 8 (64-bit)"),
    "oracle9": Guest("oracleLinux9_64Guest", 109, "Oracle_64", "Oracle Linux 9 (64-bit)"),
    "photon": Guest("vmwarePhoton64Guest", 36, "Linux_64", "VMware Photon OS (64-bit)"),
    "rhel7": Guest("rhel7_64Guest", 80, "RedHat_64", "Red Hat Enterprise Linux 7 (64-bit)"),
    "rhel8": Guest("rhel8_64Guest", 80, "RedHat_64", "Red Hat Enterprise Linux 8 (64-bit)"),
    "rhel9": Guest("rhel9_64Guest", 80, "RedHat_64", "Red Hat Enterprise Linux 9 (64-bit)"),
    "rocky": Guest("rockylinux_64Guest", 101, "RedHat_64", "Rocky Linux (64-bit)"),
    "sles12": Guest("sles12_64Guest", 85, "OpenSUSE_64", "SUSE Linux Enterprise 12 (64-bit)"),
    "sles15": Guest("sles15_64Guest", 85, "OpenSUSE_64", "SUSE Linux Enterprise 15 (64-bit)"),
    "solaris11": Guest("solaris11_64Guest", 81, "Solaris11_64", "Oracle Solaris 11 (64-bit)"),
    "ubuntu": Guest("ubuntu64Guest", 94, "Ubuntu_64", "Ubuntu Linux (64-bit)"),
    "ubuntu32": Guest("ubuntuGuest", 93, "Ubuntu", "Ubuntu Linux (32-bit)"),
    "windows7": Guest("windows7_64Guest", 105, "Windows7_64", "Microsoft Windows 7 (64-bit)"),
    "windows10": Guest("windows9_64Guest", 1, "Windows10_64", "Microsoft Windows 10 (64-bit)"),
    "windows11": Guest("windows11_64Guest", 1, "Windows11_64", "Microsoft Windows 11 (64-bit)"),
    "windows2012": Guest("windows8Server64Guest", 112, "Windows2012_64", "Microsoft Windows Server 2012 (64-bit)"),
    "windows2016": Guest("windows9Server64Guest", 1, "Windows2016_64", "Microsoft Windows Server 2016 (64-bit)"),
    "windows2019": Guest("windows2019srv_64Guest", 1, "Windows2019_64", "Microsoft Windows Server 2019 (64-bit)"),
    "windows2022": Guest("windows2019srvNext_64Guest", 1, "Windows2022_64", "Microsoft Windows Server 2022 (64-bit)"),
    "windows2025": Guest("windows2022srvNext_64Guest", 1, "Windows2022_64", "Microsoft Windows Server 2025 (64-bit)"),
}


def find(name: str) -> Guest:
    """Return the system of one of our names, or of VMware's own. Raises UsageError for neither."""
    known = GUESTS.get(name.lower())
    if known is not None:
        return known
    for guest in GUESTS.values():
        if guest.vmware == name:
            return guest
    if is_known(name):
        return Guest(name, 102 if "64" in name else 1, "Other_64" if "64" in name else "Other", name)
    near = difflib.get_close_matches(name.lower(), GUESTS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(GUESTS)}"
    raise UsageError(f"no operating system is called {name!r}{hint}")


def is_known(vmware: str) -> bool:
    """Tell whether a name looks like one of VMware's (``ubuntu64Guest``); their list is longer than ours."""
    return _VMWARE_NAME.fullmatch(vmware) is not None
