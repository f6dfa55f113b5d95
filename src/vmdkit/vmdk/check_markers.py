# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check the markers of a stream: what programs go by that read it from front to back (format spec 1.8).

A program that can seek finds tables and directory by their addresses, and reads a disk whose markers are wrong. One
that takes the stream from a pipe, as an import does, has only the markers, and fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk import layout, structs
from vmdkit.vmdk.structs import Marker

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_findings import Finder
    from vmdkit.vmdk.check_header import Copy
    from vmdkit.vmdk.structs import HostedHeader

_AGAIN = "vmdkit convert -O streamOptimized writes it anew"
_KNOWN = range(structs.MARKER_PROGRESS + 1)
_FOOTER = ("descriptor_offset", "descriptor_size", "rgd_offset", "overhead", "unclean_shutdown", "newlines", "pad")


class MarkerCheck:
    """Looks at the markers of one stream of layout A as they are met, in the order of the file.

    ``header`` is the footer, which says where everything is; ``tables`` the copy of the tables that is followed.
    """

    def __init__(self, finder: Finder, storage: Device, header: HostedHeader, tables: Copy, footer_at: int) -> None:
        self._finder = finder
        self._storage = storage
        self._header = header
        self._footer_at = footer_at
        self._tables = np.unique(tables.present)  # there may be millions
        self._announced = np.zeros(len(self._tables), dtype=bool)
        self._count = len(tables.addresses)
        self._directory = layout.round_up(self._count * layout.WIDTH, SECTOR)
        self._directory_seen = False
        self._wrong = 0

    def look(self, marker: Marker, at: int) -> None:
        """Look at a marker that is no grain's, at ``at``."""
        if any(marker.pad):
            padding(self._finder, at)
        what = at + SECTOR
        if marker.type == structs.MARKER_GT:
            number = int(np.searchsorted(self._tables, what))
            found = number < len(self._tables) and int(self._tables[number]) == what
            if found and marker.following == layout.HOSTED_TABLE:
                self._announced[number] = True
            else:
                self._error(f"announces a grain table of {marker.following} bytes, and none is there", at)
        elif marker.type == structs.MARKER_GD:
            if what == self._header.gd_offset and marker.following == self._directory:
                self._directory_seen = True
                self._check_rest(what)
            else:
                self._error(f"announces a directory of {marker.following} bytes, and none is there", at)
        elif marker.type == structs.MARKER_EOS:
            self._error("says that the stream ends here", at)
        elif marker.type not in _KNOWN:
            text = f"a marker is of type {marker.type}, which nobody knows"
            self._finder.note("stream-marker", text, structure="marker", offset=at)

    def _check_rest(self, at: int) -> None:
        """Look at what fills the last sector of the directory at ``at``."""
        end = at + self._count * layout.WIDTH
        if any(self._storage.pread(min(at + self._directory, self._storage.size) - end, end)):
            padding(self._finder, end)

    def finish(self) -> None:
        """Look at what must have been met by now, and at the footer's marker."""
        alone = self._tables[~self._announced]
        if len(alone):
            self._error(f"is missing: {len(alone)} grain tables have none before them", int(alone[0]) - SECTOR)
        if not self._directory_seen:
            self._error("is missing: the grain directory has none before it", self._header.gd_offset - SECTOR)
        at = self._footer_at - SECTOR
        footer = Marker.unpack(self._storage.pread(SECTOR, at))
        if footer.following != self._header.size_of():
            self._error(f"announces a footer of {footer.following} bytes; {self._header.size_of()} are due", at)
        if any(footer.pad):
            padding(self._finder, at)

    def _error(self, text: str, at: int) -> None:
        self._wrong += 1
        if self._wrong == 1:
            self._finder.error(
                "stream-marker", f"a marker {text}: the stream cannot be read from front to back",
                structure="marker", offset=at, remedy=_AGAIN,
            )  # fmt: skip


def padding(finder: Finder, at: int) -> None:
    """Note, once, that something stands where zeros are due."""
    if not any(finding.code == "stream-padding" for finding in finder.findings):
        finder.note("stream-padding", "there is something where zeros are due", structure="marker", offset=at)


def compare_footer(finder: Finder, header: HostedHeader, footer: HostedHeader, at: int) -> None:
    """Note what differs between header and footer and is never used twice; strict readers want a true copy."""
    names = [name for name in _FOOTER if getattr(header, name) != getattr(footer, name)]
    if names:
        finder.note(
            "stream-footer-copy", f"{', '.join(names)} differ between header and footer",
            structure="footer", offset=at + footer.offset_of(names[0]),
        )  # fmt: skip


def check_front(finder: Finder, storage: Device, header: HostedHeader, overhead: int, first: int) -> None:
    """Look at what comes before the first marker, which is at ``first``; note what importers refuse.

    ``overhead`` is what the header says; ``header`` may be the footer.
    """
    if header.flags & structs.FLAG_REDUNDANT:
        finder.note(
            "stream-redundant", "the stream has a redundant directory, as qemu's have; VMware's have none, and "
            "importers have refused qemu's", structure="HostedHeader", offset=header.offset_of("flags"), remedy=_AGAIN,
        )  # fmt: skip
    if header.gd_offset < first:
        return  # directory and tables are in front, as disklib has them
    if overhead > first or (overhead < first and not any(storage.pread(SECTOR, overhead))):
        finder.note(
            "stream-overhead", f"the header says that grains begin at {overhead:#x}; the first marker is at {first:#x}",
            structure="HostedHeader", offset=header.offset_of("overhead"), remedy=_AGAIN,
        )  # fmt: skip
    start, end = max(SECTOR, header.descriptor_offset + header.descriptor_size), min(first, overhead)
    if start < end and any(storage.pread(min(end - start, MIB), start)):
        padding(finder, start)
