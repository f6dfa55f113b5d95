# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Look at the header of a hosted sparse or stream extent, and at its directories (format spec 1.7, 4.4).

Unlike the drivers it goes on after the first thing that is wrong, as far as what follows still has a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmdkit.units import SECTOR
from vmdkit.vmdk import structs
from vmdkit.vmdk.check_grains import Intervals, Shape, overlapping
from vmdkit.vmdk.structs import HostedHeader

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_findings import Finder
    from vmdkit.vmdk.structs import Codes

MOST_TABLES = 1 << 22  # directory entries; as the driver
_WIDTH = 4
_LARGEST_GRAIN = 1 << 30
_LARGEST_TEXT = 1 << 20
_HEADER = "HostedHeader"


@dataclass(slots=True)
class Copy:
    """One copy of the tables. ``addresses`` are bytes: 0 for no table, -1 where the entry cannot be right."""

    name: str
    field: str  # of the header, that says where the directory is
    offset: int
    addresses: Codes

    @property
    def present(self) -> Codes:
        """The addresses that are."""
        return self.addresses[self.addresses > 0]


def check_header(finder: Finder, storage: Device, at: int = 0) -> HostedHeader | None:
    """Look at the header at ``at``; return it where the rest of the file can be looked at by it, else None."""
    if storage.size < at + HostedHeader.size_of():
        finder.error("header-short", f"the file has {storage.size} bytes, less than a header", structure=_HEADER)
        return None
    header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), at), path=storage.name)

    def place(name: str) -> int:
        return at + header.offset_of(name)

    if header.magic == structs.UNFINISHED_MAGIC:
        finder.error(
            "header-unfinished", "the file is unfinished: its writer has not yet set the final header",
            structure=_HEADER, offset=at,
        )  # fmt: skip
        return None
    if header.magic != structs.HOSTED_MAGIC:
        finder.error("header-magic", f"{header.magic!r} where 'KDMV' is due", structure=_HEADER, offset=at)
        return None
    if not 1 <= header.version <= 3:
        finder.unsupported(f"version {header.version} of the sparse format is unknown; 1, 2 and 3 are")
        return None
    if not _flags(finder, header, place("flags")):
        return None
    _newlines(finder, header, place("newlines"))
    if header.pad.strip(b"\0"):
        finder.note("header-padding", "the padding of the header is not zero", structure=_HEADER, offset=place("pad"))
    return header if _sizes(finder, header, at) else None


def _flags(finder: Finder, header: HostedHeader, offset: int) -> bool:
    unknown = header.flags & ~structs.KNOWN_FLAGS
    if unknown & structs.INCOMPATIBLE_FLAGS:
        finder.unsupported(f"the header has incompatible flags {unknown:#x}", structure=_HEADER, offset=offset)
        return False
    if unknown:
        finder.note(
            "header-flags-unknown", f"compatible flags {unknown:#x} are unknown; the file is read, but not written",
            structure=_HEADER, offset=offset,
        )  # fmt: skip
    compressed, markers = header.flags & structs.FLAG_COMPRESSED, header.flags & structs.FLAG_MARKERS
    if markers and not compressed:
        finder.error(
            "header-flags", "the flags speak of grain markers without compressed grains",
            structure=_HEADER, offset=offset,
        )  # fmt: skip
        return False
    if compressed and header.compression != structs.DEFLATE_ALGORITHM:
        finder.unsupported(f"compression algorithm {header.compression} is unknown; 1 is deflate", structure=_HEADER)
        return False
    if not compressed and header.version > 2:
        finder.note(
            "header-version", "version 3 without compression, which no known product writes; qemu opens it read-only",
            structure=_HEADER,
        )  # fmt: skip
    if header.flags & structs.FLAG_ZERO_GRAINS and header.version < 2:
        finder.note(
            "header-version", "zero grains are in use, which version 1 does not know", structure=_HEADER, offset=offset
        )
    return True


def _newlines(finder: Finder, header: HostedHeader, offset: int) -> None:
    if header.newlines == structs.NEWLINES or not header.flags & structs.FLAG_NEWLINES:
        return
    # Whether these four bytes are all that is wrong is known at the end; see HostedCheck.
    finder.error(
        "header-newlines",
        f"the newline bytes are {header.newlines!r}: a text-mode transfer has changed the file",
        structure=_HEADER, offset=offset, remedy="transfer the file again, in binary mode",
    )  # fmt: skip


def _sizes(finder: Finder, header: HostedHeader, at: int) -> bool:
    """Look at the fields that all others are counted by; False where nothing can be counted by them."""

    def wrong(name: str, code: str, text: str) -> bool:
        finder.error(code, text, structure=_HEADER, offset=at + header.offset_of(name))
        return False

    grain, entries = header.grain_size, header.table_entries
    if not grain or grain & (grain - 1) or grain > _LARGEST_GRAIN:
        return wrong("grain_size", "header-grain", f"a grain of {grain} bytes; a power of two is due")
    if not 1 <= entries <= 4096 or entries & (entries - 1):  # as many as the driver takes
        return wrong("table_entries", "header-entries", f"{entries} entries in a grain table; 512 are due")
    if entries != HostedHeader.table_entries:  # the format says always
        finder.note(
            "header-entries", f"{entries} entries in a grain table; VMware knows only 512",
            structure=_HEADER, offset=at + header.offset_of("table_entries"),
        )  # fmt: skip
    if -(-header.capacity // (grain * entries)) > MOST_TABLES:
        return wrong("capacity", "header-capacity", f"a capacity of {header.capacity} bytes, more than any disk has")
    return True


def check_text_area(finder: Finder, storage: Device, header: HostedHeader) -> tuple[int, int]:
    """Look at where the embedded descriptor lies; return (offset, length), (0, 0) where there is none."""
    at, length = header.descriptor_offset, header.descriptor_size
    if not at or not length:
        return 0, 0
    where = {"structure": _HEADER, "offset": header.offset_of("descriptor_offset")}
    if at + length > storage.size:
        finder.error(
            "descriptor-area", f"the descriptor area, {length} bytes at {at:#x}, leaves the file of {storage.size}",
            structure=_HEADER, offset=where["offset"],  # type: ignore[arg-type]
        )  # fmt: skip
        return 0, 0
    if length > _LARGEST_TEXT:
        finder.error(
            "descriptor-area", f"a descriptor area of {length} bytes; a descriptor has at most 1 MiB",
            structure=_HEADER, offset=where["offset"],  # type: ignore[arg-type]
        )  # fmt: skip
    return at, length


def table_count(header: HostedHeader) -> int:
    """Return how many tables the capacity needs."""
    return -(-header.capacity // (header.grain_size * header.table_entries))


def shape_of(storage: Device, header: HostedHeader) -> Shape:
    """Return how the tables are made."""
    grains = -(-header.capacity // header.grain_size)
    return Shape(header.grain_size, header.table_entries, storage.size, grains)


def read_copy(finder: Finder, storage: Device, header: HostedHeader, name: str, field: str) -> Copy | None:
    """Read one directory; None, with a finding, where it cannot lie where the header says."""
    offset: int = getattr(header, field)
    count = table_count(header)
    if not 0 < offset <= storage.size - count * _WIDTH:
        code = "gd-offset" if field == "gd_offset" else "rgd-offset"
        finder.error(
            code, f"the {name} has {count} entries and cannot lie at {offset:#x} of {storage.size} bytes",
            structure=name, offset=header.offset_of(field),
            remedy="read it through the other directory (--directory)" if _has_redundant(header) else "",
        )  # fmt: skip
        return None
    raw = np.frombuffer(storage.pread(count * _WIDTH, offset), dtype="<u4")
    addresses = np.zeros(count, dtype=np.int64)
    where = np.flatnonzero(raw)  # of the largest disks most have no table; their arrays are not made twice
    found = raw[where].astype(np.int64) * SECTOR
    found[found + shape_of(storage, header).raw > storage.size] = -1
    addresses[where] = found
    return Copy(name, field, offset, addresses)


def _has_redundant(header: HostedHeader) -> bool:
    return bool(header.flags & structs.FLAG_REDUNDANT and header.rgd_offset)


def read_copies(finder: Finder, storage: Device, header: HostedHeader) -> list[Copy | None]:
    """Return the primary copy, and the redundant one where there is any; None for one that cannot be read."""
    copies = [read_copy(finder, storage, header, "grain directory", "gd_offset")]
    if _has_redundant(header):
        copies.append(read_copy(finder, storage, header, "redundant grain directory", "rgd_offset"))
    return copies


def fixed_metadata(header: HostedHeader, copies: list[Copy], area: tuple[int, int]) -> tuple[Codes, Codes]:
    """Return (starts, lengths) of header, descriptor area and directories."""
    starts, lengths = [0], [SECTOR]
    if area[1]:
        starts.append(area[0])
        lengths.append(area[1])
    for copy in copies:
        starts.append(copy.offset)
        lengths.append(-(-table_count(header) * _WIDTH // SECTOR) * SECTOR)
    return np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)


def mark_bad_tables(header: HostedHeader, copies: list[Copy], area: tuple[int, int]) -> dict[str, Codes]:
    """Set directory entries to -1 that lead into other metadata; return the numbers of shared tables, by copy.

    Tables are shared where two entries, of one directory or of both, lead to overlapping places: then none of the
    two can be told to be wrong.
    """
    raw = header.table_entries * _WIDTH
    fixed = Intervals(*fixed_metadata(header, copies, area))
    numbers: list[Codes] = []
    for copy in copies:
        where = np.flatnonzero(copy.addresses > 0)
        copy.addresses[where[fixed.touch(copy.addresses[where], raw)]] = -1
        numbers.append(np.flatnonzero(copy.addresses > 0))
    places = [copy.addresses[where] for copy, where in zip(copies, numbers, strict=True)]
    shared = np.split(overlapping(np.concatenate(places), raw), np.cumsum([len(where) for where in numbers])[:-1])
    return {copy.name: where[part] for copy, where, part in zip(copies, numbers, shared, strict=True)}


def expected_place(header: HostedHeader, copy: Copy, number: int) -> int | None:
    """Return where table ``number`` has to lie if all tables follow their directory in order; None if others do not.

    That is how every known product lays them out (format spec 1.7), and what recent VMware programs rely on.
    """
    raw = header.table_entries * _WIDTH
    first = copy.offset + -(-table_count(header) * _WIDTH // SECTOR) * SECTOR
    places = first + np.arange(len(copy.addresses), dtype=np.int64) * raw
    known = copy.addresses > 0
    known[number] = False
    if (copy.addresses[known] != places[known]).any():
        return None
    return int(places[number])
