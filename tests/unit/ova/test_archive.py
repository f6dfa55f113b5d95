# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tar walker against archives of Python's tarfile, and blocks made by hand."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from ovas import BLOCK, END, block, pack, padded
from vmdkit.errors import FormatError, UnsupportedError, UsageError
from vmdkit.ova import tar
from vmdkit.ova.archive import MOST_MEMBERS, Archive, Kind, read_archive, unsafe
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path


def walk(data: bytes) -> Archive:
    return read_archive(MemoryDevice(data, name="x.ova", writable=False))


def codes(data: bytes) -> list[str]:
    return [problem.code for problem in walk(data).problems]


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("dialect", FORMATS)
def test_what_tarfile_writes(dialect: str, tmp_path: Path) -> None:
    members = [("box.ovf", b"<x/>"), ("empty", b""), ("d.vmdk", b"D" * 5000), ("exact", b"E" * BLOCK)]
    path = pack(tmp_path / "x.ova", members, dialect=FORMATS[dialect])
    with open_file(str(path)) as file:
        archive = read_archive(file)
        assert [(member.name, member.size) for member in archive.members] == [
            (name, len(data)) for name, data in members
        ]
        assert archive.problems == []
        for name, data in members:
            with archive.open(archive.find(name)) as window:
                assert window.pread(window.size, 0) == data


@pytest.mark.parametrize("dialect", ["gnu", "pax"])
def test_long_names(dialect: str, tmp_path: Path) -> None:
    name = "n" * 150 + "é.vmdk"
    path = pack(tmp_path / "x.ova", [("a", b"1"), (name, b"22")], dialect=FORMATS[dialect])
    archive = walk(path.read_bytes())
    assert [(member.name, member.size, member.dialect) for member in archive.members] == [
        ("a", 1, "gnu" if dialect == "gnu" else "ustar"),
        (name, 2, dialect),
    ]
    assert archive.members[1].header < archive.members[1].at - BLOCK


def test_a_prefix_is_part_of_the_name() -> None:
    assert walk(block(b"b", prefix=b"a") + END).members[0].name == "a/b"


def test_sizes_of_8_gib_and_more() -> None:
    class Large(MemoryDevice):
        """A header, then a hole that is longer than any memory."""

        def __init__(self, head: bytes, size: int) -> None:
            super().__init__(head, name="x.ova", writable=False)
            self._size = self._end = size

        def _pread_into(self, view: memoryview, offset: int) -> None:
            view[:] = bytes(self._data[offset : offset + len(view)]).ljust(len(view), b"\0")

    size = 9 << 30
    for field in (b"\x80" + size.to_bytes(11, "big"), tar.TarHeader.unpack(tar.header("a", size)).size):
        archive = read_archive(Large(block(size_field=field), BLOCK + size + 2 * BLOCK))
        assert [member.size for member in archive.members] == [size]
        assert (archive.members[0].dialect, archive.problems) == ("gnu", [])
    text = b"19 size=%d\n" % size
    head = block(b"x", len(text), b"x") + padded(text) + block(b"a")
    archive = read_archive(Large(head, len(head) + size + 2 * BLOCK))
    assert [(member.size, member.dialect) for member in archive.members] == [(size, "pax")]


def test_the_header_we_write_is_the_one_tarfile_reads() -> None:
    for size in (0, 1, tar.LARGEST_USTAR, tar.LARGEST_USTAR + 1, 1 << 45):
        info = tarfile.TarInfo.frombuf(tar.header("box.ovf", size, 1234567890), "utf-8", "strict")
        assert (info.name, info.size, info.mode, info.mtime, info.type) == (
            "box.ovf",
            size,
            0o644,
            1234567890,
            tarfile.REGTYPE,
        )
        assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")


def test_a_small_header_is_pythons_ustar_header() -> None:
    info = tarfile.TarInfo("box.ovf")
    info.size, info.mode = 77, 0o644
    theirs, ours = info.tobuf(tarfile.USTAR_FORMAT), tar.header("box.ovf", 77)
    assert ours[:148] + ours[156:329] == theirs[:148] + theirs[156:329]  # then device numbers, which it leaves empty


@pytest.mark.parametrize("name", ["", "n" * 101, "é"])
def test_names_that_are_not_written(name: str) -> None:
    with pytest.raises(UsageError):
        tar.header(name, 0)


@pytest.mark.parametrize(
    ("field", "number"),
    [(b"0000012\0", 10), (b"   12 \0\0", 10), (b"\0" * 8, 0), (b"\x80\0\0\0\0\0\x01\0", 256)],
)
def test_numbers(field: bytes, number: int) -> None:
    assert tar.number(field) == number


@pytest.mark.parametrize("field", [b"\xff" * 12, b"0000009\0", b"00-1\0\0\0\0", b"1 2\0\0\0\0\0", b"0x12\0\0\0\0"])
def test_no_numbers(field: bytes) -> None:
    with pytest.raises(ValueError, match="number"):
        tar.number(field)


def test_a_dot_before_the_name() -> None:
    archive = walk(block(b"./box.ovf") + END)
    assert (archive.members[0].name, archive.members[0].stored) == ("box.ovf", "./box.ovf")
    assert [problem.code for problem in archive.problems] == ["tar-name-dot"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"), ("C:x", "absolute"), ("../x", "leads out"), ("a/../../x", "leads out"),
        ("..", "leads out"), ("a\\..\\b", "leads out"), ("a\\b", "backslash"), ("a\nb", "control"),
        ("a\x7f", "control"), ("", "empty"), (".", "empty"), ("a/b", "into a directory"), ("n" * 256, "longer"),
        ("disk.vmdk", ""), ("a..b", ""), ("...", ""), ("disk é.vmdk", ""),
    ],
)  # fmt: skip
def test_names_that_must_not_become_paths(name: str, reason: str) -> None:
    assert reason in unsafe(name)
    assert bool(unsafe(name)) is bool(reason)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (block(b"../x") + END, "tar-name-unsafe"),
        (block(b"/x") + END, "tar-name-unsafe"),
        (block(b"a") + block(b"a") + END, "tar-name-twice"),
        (block(b"a") + block(b"b") + block(b"a") + END, "tar-name-twice"),
        (block(b"a") + block(b"A") + END, "tar-name-case"),
        (block(b"d/", kind=b"5") + END, "tar-directory"),
        (block(b"l", kind=b"2", link=b"/etc/passwd") + END, "tar-type"),
        (block(b"l", kind=b"1", link=b"a") + END, "tar-type"),
        (block(b"l", kind=b"3") + END, "tar-type"),
        (block(b"l", kind=b"6") + END, "tar-type"),
        (block(b"l", 5, kind=b"V") + padded(b"label") + END, "tar-type"),
        (block(b"l", 600, kind=b"1", link=b"a") + bytes(1024) + END, "tar-ambiguous"),
        (block(b"l", 600, kind=b"5") + bytes(1024) + END, "tar-ambiguous"),
        (block(b"g", 10, b"g") + padded(b"10 path=b\n") + block() + END, "tar-ambiguous"),
        (block(b"b", prefix=b"a", magic=b"ustar  \0") + END, "tar-ambiguous"),
        (block(b"b", prefix=b"a", magic=bytes(8)) + END, "tar-ambiguous"),
        (block(b"g", 21, b"g") + padded(b"21 GNU.sparse.size=1\n") + block() + END, "tar-ambiguous"),
        (block(b"L", 3, b"L") + padded(b"abcdef") + block() + END, "tar-ambiguous"),
        (block(b"s", kind=b"S") + END, "tar-sparse"),
        (block(b"x", 25, b"x") + padded(b"25 GNU.sparse.realsize=1\n") + block() + END, "tar-sparse"),
        (block(size=513) + bytes(512), "tar-truncated"),
        (block(size_field=b"\x80" + b"\x7f" * 11), "tar-truncated"),
        (block() + b"rest", "tar-truncated"),
        (block(), "tar-end"),
        (block() + bytes(BLOCK), "tar-end"),
        (block() + bytes(BLOCK) + block(), "tar-end"),
        (block() + END + b"something", "tar-trailing"),
        (block() + END + bytes(BLOCK) + b"x" * BLOCK, "tar-trailing"),
        (block() + END + bytes(2 << 20), "tar-trailing"),
        (block() + b"x" * BLOCK, "tar-header"),
        (block() + block(size_field=b"99999999999\0"), "tar-header"),
        (block() + block(size_field=b"\xff" * 12), "tar-header"),
        (block(b"x", 10, b"x") + padded(b"xx path=b\n") + block() + END, "tar-header"),
        (block(b"x", 10, b"x") + padded(b"11 path=b\n") + block() + END, "tar-header"),
        (block(b"x", 10, b"x") + padded(b" 9 path=b\n") + block() + END, "tar-header"),
        (block(b"x", 10, b"x") + padded(b"10 size=x\n") + block() + END, "tar-header"),
        (block(b"x", 10, b"x") + padded(b"10 path_b\n") + block() + END, "tar-header"),
        (block(b"x", 10, b"x") + padded(b"10 path=b\n") + END, "tar-header"),
        (block(b"x", 1 << 17, b"x") + bytes(1 << 17) + block() + END, "tar-bomb"),
        (block(b"x", 1 << 17, b"L") + bytes(1 << 17) + block() + END, "tar-bomb"),
        ((block(b"x", 10, b"x") + padded(b"10 path=b\n")) * 9 + block() + END, "tar-bomb"),
        (block(b"x", 600, b"x"), "tar-truncated"),
        (block(b"x", 5000, b"L") + padded(b"n" * 5000) + block() + END, "tar-bomb"),
        (b"".join(block(b"%d" % at) for at in range(MOST_MEMBERS + 1)) + END, "tar-bomb"),
    ],
)  # fmt: skip
def test_problems(data: bytes, code: str) -> None:
    found = walk(data).problems
    assert [problem.code for problem in found] == [code]
    assert 0 <= found[0].offset <= len(data)


def test_the_walk_ends_where_readers_part() -> None:
    hidden = block(b"l", 512, kind=b"1", link=b"a") + block(b"hidden") + END
    assert walk(block(b"a") + hidden).members[-1].name == "a"


def test_padding_at_the_end_is_no_problem() -> None:
    assert codes(block() + END + bytes(10240)) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no tar header"),
        (bytes(10240), "no tar header"),
        (b"KDMV" + bytes(1020), "no tar header"),
        (gzip.compress(block() + END, mtime=0), "packed with gzip"),
        (b"PK\x03\x04" + bytes(600), "packed with zip"),
        (b"\xfd7zXZ\0" + bytes(600), "packed with xz"),
    ],
)
def test_no_archive(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        walk(data)


def test_finding() -> None:
    archive = walk(block(b"a") + block(b"b") + block(b"b") + block(b"d/", kind=b"5") + END)
    assert archive.find("a").name == "a"
    with pytest.raises(FormatError, match="2 members are called 'b'"):
        archive.find("b")
    with pytest.raises(UsageError, match="no member is called 'c'; there are a, b, b"):
        archive.find("c")
    with pytest.raises(UsageError):
        archive.find("d/")
    with pytest.raises(UnsupportedError, match="no regular file but a directory"):
        archive.open(archive.members[-1])
    assert archive.members[-1].kind is Kind.DIRECTORY


def test_what_is_cut_off_is_not_opened() -> None:
    archive = walk(block(b"a", 1000) + bytes(600))
    with pytest.raises(FormatError, match=r"400 of the 1000 bytes of 'a' are missing \(at offset 0x458\)"):
        archive.open(archive.find("a"))


def test_signed_checksums_and_v7() -> None:
    raw = bytearray(block(b"\xc3\xa9", magic=b"\0" * 8))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % (sum(raw) - 256 * sum(byte > 127 for byte in raw))
    archive = walk(bytes(raw) + END)
    assert (archive.members[0].name, archive.members[0].dialect) == ("é", "v7")


def test_undecodable_names_survive() -> None:
    assert walk(block(b"a\xff") + END).members[0].name == "a\udcff"


def test_tarfile_and_we_see_the_same(tmp_path: Path) -> None:
    data = block(b"a", 3) + padded(b"abc") + block(b"d/", kind=b"5") + block(b"b", 0) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        theirs = [(info.name, info.size) for info in file if info.isreg()]
    assert [(member.name, member.size) for member in walk(data).files()] == theirs
