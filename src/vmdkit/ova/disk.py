# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Disks inside an OVA, read where they are: ``box.ova``, ``box.ova#disk2.vmdk``.

Nothing is unpacked. A disk is read through a window of the archive; what its descriptor names is looked for among the
members of the same archive, and nowhere else. Nothing in an OVA is written: the manifest has its digest.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final

from vmdkit.errors import FormatError, GateError, UnsupportedError, UsageError, VmdkitError
from vmdkit.filters.slice import SliceDevice
from vmdkit.gate import Deny, Gate
from vmdkit.ova import descriptor, xml
from vmdkit.ova.archive import Archive, Kind, Member, read_archive
from vmdkit.storage.file import open_file
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.options import OpenOptions
    from vmdkit.ova.descriptor import Envelope

_LOCATION = re.compile(r"(?:ova://)?(.*?\.ova)(?:#(.*))?", re.IGNORECASE | re.DOTALL)
_GZIP: Final = b"\x1f\x8b"


def split(location: str) -> tuple[str, str]:
    """Return the archive and the member that ``box.ova#member`` means; an empty member is the only disk there.

    Raises UsageError where it names no archive.
    """
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise UsageError("no OVA is named by it", path=location)
    return match[1], match[2] or ""


def open_disk(location: str, options: OpenOptions) -> Device:
    """Open a disk inside an OVA; with ``raw``, the bytes of that member as they are.

    Raises FormatError, UnsupportedError, UsageError, GateError for names that lead out of the archive, OSError.
    """
    path, name = split(location)
    if options.writable:
        raise UnsupportedError(
            "what is in an OVA is not changed: its manifest has the digest; extract the disk, or convert it",
            path=location,
        )
    lease = _Lease(open_file(path))
    try:
        archive = read_archive(lease.device)
        storage = lease.window(archive, _choose(archive, name))
    except BaseException:
        lease.device.close()
        raise
    if options.raw:
        return storage
    try:
        text = read_descriptor(storage)
        if text is None:
            raise FormatError(_no_disk(storage), path=storage.name, offset=0)
    except BaseException:
        storage.close()
        raise
    gate = Deny() if options.untrusted else _Members(lease, archive)
    how = Options(
        salvage=options.salvage,
        single_link=options.single_link,
        redundant=options.directory == "redundant",
        ignore_cid=options.ignore_cid,
        ignore_journal=options.ignore_journal,
        untrusted=options.untrusted,
    )
    return open_image(storage, text, gate, how)


def open_storage(location: str) -> tuple[Device, Gate]:
    """Open the member that holds a disk, whatever state it is in, and the gate for what it names; for checks."""
    path, name = split(location)
    lease = _Lease(open_file(path))
    try:
        archive = read_archive(lease.device)
        return lease.window(archive, _choose(archive, name)), _Members(lease, archive)
    except BaseException:
        lease.device.close()
        raise


def read_envelope(archive: Archive) -> tuple[Member, Envelope]:
    """Return the OVF descriptor of an archive. Raises FormatError where there is none, or more than one."""
    found = [member for member in archive.files() if member.name.lower().endswith(".ovf")]
    if not found:
        raise FormatError("there is no .ovf in it, so it is no OVA", path=archive.name)
    if len(found) > 1:
        names = ", ".join(member.name for member in found[:5])
        raise FormatError(f"there are {len(found)} descriptors in it: {names}", path=archive.name)
    with archive.open(found[0]) as text:
        if text.size > xml.LARGEST:
            raise FormatError(f"it has {text.size} bytes; a descriptor has at most {xml.LARGEST}", path=text.name)
        return found[0], descriptor.parse(text.pread(text.size, 0), text.name)


def _choose(archive: Archive, name: str) -> Member:
    """Return the member that is meant: by its name, by the ID of its disk, or as the only disk there is."""
    if name and any(member.name == name for member in archive.files()):
        return archive.find(name)
    try:
        _, envelope = read_envelope(archive)
    except VmdkitError:
        if name:
            return archive.find(name)
        raise
    hrefs = {disk.id: envelope.href_of(disk) for disk in envelope.disks if disk.file_ref}
    if name:
        return archive.find(hrefs.get(name) or name)
    disks = list(dict.fromkeys(href for href in hrefs.values() if href))
    if len(disks) != 1:
        choices = ", ".join(f"{archive.name}#{href}" for href in disks[:20])
        text = f"there are {len(disks)} disks in it; name one: {choices}" if disks else "there is no disk in it"
        raise UsageError(text, path=archive.name)
    return archive.find(disks[0])


def _no_disk(storage: Device) -> str:
    if storage.pread(min(2, storage.size), 0) == _GZIP:
        return "it is packed with gzip, and cannot be read in place; extract it (vmdkit ova extract) and unpack it"
    return "this member is no VMDK with a descriptor; say --raw if it holds raw bytes"


class _Lease:
    """The open archive; closed with the last window into it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._count = 0
        self._lock = threading.Lock()

    def window(self, archive: Archive, member: Member) -> SliceDevice:
        """Open a member."""
        with archive.open(member) as found:
            window = _Window(self, found)
        with self._lock:
            self._count += 1
        return window

    def give_back(self) -> None:
        """Note that a window was closed."""
        with self._lock:
            self._count -= 1
            last = not self._count
        if last:
            self.device.close()


class _Window(SliceDevice):
    def __init__(self, lease: _Lease, found: SliceDevice) -> None:
        super().__init__(lease.device, found.start, found.size, name=found.name, writable=False, owned=False)
        self._lease = lease

    def _close(self) -> None:
        self._lease.give_back()


class _Members(Gate):
    """Open what a disk names among the members of its own archive."""

    def __init__(self, lease: _Lease, archive: Archive) -> None:
        self._lease = lease
        self._archive = archive

    def _member(self, name: str, base: str) -> Member:
        for member in self._archive.members:
            if member.name == name and member.kind is Kind.FILE:
                return self._archive.find(name)
        raise GateError(
            f"the image names {name[:300]!r}, which is no member of the archive; nothing else is opened", path=base
        )

    def resolve(self, name: str, base: str) -> str:
        """Return how messages call the member ``name``; raise GateError where there is none."""
        return f"{self._archive.name}#{self._member(name, base).name}"

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a member; raises GateError for any other name."""
        if writable:
            raise GateError("nothing inside an OVA is opened for writing", path=base)
        return self._lease.window(self._archive, self._member(name, base))
