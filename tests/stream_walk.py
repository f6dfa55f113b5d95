# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Walk a stream of layout A marker by marker, and forgive nothing: what VMware's importers want (format spec 1.8).

Shares no code with the source: struct, zlib, and the tables of the spec. Anything off is an AssertionError.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

SECTOR: Final = 512
AT_END: Final = (1 << 64) - 1
HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH433s")
GRAIN: Final = struct.Struct("<QI")
MARKER: Final = struct.Struct("<QII496s")
EOS, GT, GD, FOOTER = range(4)


@dataclass
class Walked:
    """What stands in a stream. Sizes are in bytes; ``grains`` maps where a grain belongs to what it holds."""

    size: int
    grain: int
    text: str
    grains: dict[int, bytes] = field(default_factory=dict)
    packed: dict[int, bytes] = field(default_factory=dict)
    order: str = ""  # g grain, T table, D directory, F footer, E end
    tables: list[int] = field(default_factory=list)  # numbers of those that are there

    def pread(self, count: int, offset: int) -> bytes:
        """Return bytes of the disk."""
        out = bytearray()
        while len(out) < count:
            at = offset + len(out)
            skip = at % self.grain
            grain = self.grains.get(at - skip, bytes(self.grain))
            out += grain[skip : skip + count - len(out)]
        return bytes(out)

    def lines(self) -> dict[str, str]:
        """Return the keys of the descriptor with their values, quotes taken off."""
        return dict(re.findall(r'^([\w.]+) ?= ?"?([^"\n]*)"?$', self.text, re.MULTILINE))


class _Walk:
    def __init__(self, data: bytes) -> None:
        assert len(data) % SECTOR == 0, "no whole number of sectors"
        self.data = data
        self.at = 0
        self.table: dict[int, int] = {}  # of the grains since the last table: entry -> sector
        self.number = -1
        self.directory: dict[int, int] = {}
        self.last = -1

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data), "cut off"
        self.at += count
        return self.data[self.at - count : self.at]

    def head(self) -> None:
        raw = self.take(SECTOR)
        fields = HEADER.unpack(raw)
        (
            magic,
            version,
            flags,
            capacity,
            grain,
            text_at,
            text_size,
            entries,
            rgd,
            gd,
            overhead,
            unclean,
            ends,
            how,
            pad,
        ) = fields
        assert (magic, version, flags) == (b"KDMV", 3, 0x30001)
        assert capacity > 0
        assert 8 <= grain <= 2048
        assert grain & (grain - 1) == 0
        assert text_at == 1
        assert text_size >= 1
        assert (entries, rgd, gd, unclean, ends, how) == (512, 0, AT_END, 0, b"\n \r\n", 1)
        assert overhead % grain == 0
        assert overhead >= 1 + text_size
        assert not any(pad)
        self.header, self.grain = raw, grain * SECTOR
        self.found = Walked(capacity * SECTOR, self.grain, "")
        text, _, rest = self.take(text_size * SECTOR).partition(b"\0")
        assert not any(rest), "something after the descriptor"
        self.found.text = text.decode("ascii")
        assert not any(self.take((overhead - 1 - text_size) * SECTOR)), "something before the first grain"

    def one_grain(self, lba: int, size: int) -> None:
        found, sector = self.found, self.at // SECTOR
        place = lba * SECTOR
        assert place % self.grain == 0
        assert self.last < place < found.size
        assert size <= self.grain + self.grain // 1000 + 64, "grew more than stored blocks do"
        number, entry = divmod(place // self.grain, 512)
        assert not self.table or number == self.number, "a table was left out"
        assert number > max(self.directory, default=-1), "its table is already written"
        self.number, self.last = number, place
        self.table[entry] = sector
        packed = self.take(GRAIN.size + size)[GRAIN.size :]
        assert not any(self.take(-self.at % SECTOR)), "something behind a grain"
        grain = zlib.decompress(packed)
        assert len(grain) == self.grain, "a grain is packed whole"
        assert any(grain), "a grain of zeros"
        assert not any(grain[max(0, found.size - place) :]), "something behind the end of the disk"
        found.grains[place], found.packed[place] = grain, packed
        found.order += "g"

    def one_table(self) -> None:
        assert self.table, "a table without grains"
        self.directory[self.number] = self.at // SECTOR
        entries = struct.unpack("<512I", self.take(2048))
        assert {number: entry for number, entry in enumerate(entries) if entry} == self.table
        self.found.tables.append(self.number)
        self.table = {}

    def end(self, count: int) -> None:
        assert not self.table, "grains without a table"
        tables = -(-self.found.size // (512 * self.grain))
        assert count == -(-tables * 4 // SECTOR)
        place = self.at // SECTOR
        entries = struct.unpack(f"<{count * SECTOR // 4}I", self.take(count * SECTOR))
        assert {number: entry for number, entry in enumerate(entries) if entry} == self.directory
        assert MARKER.unpack(self.take(SECTOR)) == (1, 0, FOOTER, bytes(496))
        footer = self.take(SECTOR)
        assert footer == self.header[:56] + struct.pack("<Q", place) + self.header[64:]
        assert not any(self.take(SECTOR)), "no end of stream"
        assert self.at == len(self.data), "something follows the end"
        self.found.order += "DFE"

    def run(self) -> Walked:
        self.head()
        while True:
            assert self.at < len(self.data), "cut off"
            lba, size = GRAIN.unpack_from(self.data, self.at)
            if size:
                self.one_grain(lba, size)
                continue
            count, _, kind, rest = MARKER.unpack(self.take(SECTOR))
            assert not any(rest)
            if kind == GT:
                assert count == 4
                self.one_table()
                self.found.order += "T"
                continue
            assert kind == GD, f"a marker of type {kind}"
            self.end(count)
            return self.found


def walk(data: bytes) -> Walked:
    """Walk a whole stream; raise AssertionError where it is not as it has to be."""
    return _Walk(data).run()
