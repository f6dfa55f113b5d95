# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tarfile
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdkit.errors import FormatError, VmdkitError
from vmdkit.storage.file import open_file
from vmdkit.storage.targz import GRANULARITY, TarGzWriter, joined
from vmdkit.storage.untar import unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

G = GRANULARITY
DICE = random.Random(3)
# size, runs of data; the source may end before the disk does
DISKS = [
    (3 * G, []),
    (3 * G, [(0, 3 * G)]),
    (512, [(0, 512)]),
    (8 * G, [(0, G), (2 * G, 2 * G), (7 * G, G)]),
    (8 * G, [(G, G + 777)]),
    (100 * G, [(at * G, G) for at in range(0, 100, 2)]),
]


def content(runs: list[tuple[int, int]], size: int) -> bytes:
    data = bytearray(size)
    for offset, length in runs:
        data[offset : offset + length] = (DICE.randbytes(64) + bytes(200)) * (length // 264) + b"x" * (length % 264)
    return bytes(data)


def write(size: int, runs: list[tuple[int, int]], data: bytes) -> bytes:
    out = io.BytesIO()
    writer = TarGzWriter(out, size, runs)
    end = 0
    for offset, length in runs:
        if offset > end:
            writer.zeros(end, offset - end)
        end = offset + length
        for at in range(offset, end, G):
            writer.put(writer.pack(at, memoryview(data)[at : min(at + G, end)]))
    if end < size:
        writer.zeros(end, size - end)
    writer.finish()
    return out.getvalue()


@pytest.mark.parametrize(("size", "runs"), DISKS)
def test_python_reads_it(size: int, runs: list[tuple[int, int]]) -> None:
    data = content(runs, size)
    raw = write(size, runs, data)
    whole = gzip.decompress(raw)
    assert len(whole) % 10240 == 0
    assert whole[257:265] == b"ustar  \0"
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.size, member.issparse()) == ("disk.raw", size, size != sum(n for _, n in runs))
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == data


@pytest.mark.parametrize(("size", "runs"), DISKS)
def test_gnu_tar_reads_it(size: int, runs: list[tuple[int, int]], tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    data = content(runs, size)
    (tmp_path / "a.tar.gz").write_bytes(write(size, runs, data))
    subprocess.run(["tar", "-C", tmp_path, "-xzf", tmp_path / "a.tar.gz"], check=True)
    assert (tmp_path / "disk.raw").read_bytes() == data
    if runs != [(0, size)]:
        assert (tmp_path / "disk.raw").stat().st_blocks * 512 <= sum(n for _, n in runs) + G


def test_sizes_that_octal_digits_cannot_say() -> None:
    size, out = 3 << 40, io.BytesIO()
    writer = TarGzWriter(out, size, [(size - G, G)])
    writer.zeros(0, size - G)
    writer.put(writer.pack(size - G, memoryview(b"A" * G)))
    writer.finish()
    out.seek(0)
    with tarfile.open(fileobj=out, mode="r:gz") as archive:
        (member,) = archive.getmembers()
        assert member.size == size
        file = archive.extractfile(member)
        assert file is not None
        file.seek(size - 2)
        assert file.read() == b"AA"


@pytest.mark.parametrize(
    "do",
    [
        lambda writer: writer.zeros(0, 3 * G),
        lambda writer: writer.put(writer.pack(0, memoryview(bytes(G)))),
        lambda writer: writer.put(writer.pack(G, memoryview(bytes(G + 1)))),
        lambda writer: writer.finish(),
    ],
)
def test_holes_that_move_are_an_error(do: Callable[[TarGzWriter], None]) -> None:
    writer = TarGzWriter(io.BytesIO(), 4 * G, [(G, G)])
    with pytest.raises(VmdkitError, match="the holes of the source are not where they were"):
        do(writer)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_are_joined(one: bytes, two: bytes) -> None:
    assert joined(zlib.crc32(one), zlib.crc32(two), len(two)) == zlib.crc32(one + two)


def test_what_was_packed_is_unpacked_or_refused(tmp_path: Path) -> None:
    """Any flipped bit is found, be it in the data, the header, the checksum at the end."""
    size, runs = 4 * G, [(G, G)]
    data = content(runs, size)
    raw = bytearray(write(size, runs, data))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(raw)
    with unpack(open_file(str(path)), str(tmp_path)) as disk:
        assert disk.pread(size, 0) == data
    for at in (0, 40, len(raw) // 2, len(raw) - 6, len(raw) - 2):
        raw[at] ^= 1
        path.write_bytes(raw)
        with pytest.raises(FormatError, match="cannot be unpacked"):
            unpack(open_file(str(path)), str(tmp_path))
        raw[at] ^= 1
    path.write_bytes(raw[:-9])
    with pytest.raises(FormatError, match="cannot be unpacked"):
        unpack(open_file(str(path)), str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("one"))
        archive.addfile(tarfile.TarInfo("two"))
    with pytest.raises(FormatError, match="there is not one disk in this archive"):
        unpack(open_file(str(path)), str(tmp_path))
