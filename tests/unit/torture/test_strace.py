# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Lines of strace, and what is made of them."""

from __future__ import annotations

import pytest

from vmdkit.errors import UnsupportedError
from vmdkit.filters.record_writes import FOREVER, Entry
from vmdkit.torture.strace import complete, parse


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def fd(name: str, number: int = 5) -> str:
    return f"{number}<{hexed('/images' + name)}>"


def entries(*lines: str, present: tuple[str, ...] = ("a.img",)) -> list[Entry]:
    return parse([f"{line}\n" for line in lines], "/images", present)


def piece(text: str) -> str:
    return f'{{iov_base="{hexed(text)}", iov_len={len(text)}}}'


def call(text: str, answer: str, at: int = 1, pid: str = "7") -> str:
    return f"{pid} 1.{at:09d} {text} = {answer} <0.000000005>"


def test_writes() -> None:
    found = entries(
        call(f'pwrite64({fd("/a.img")}, "{hexed("one")}", 3, 4096)', "3", 10),
        call(f"pwritev({fd('/a.img')}, [{piece('tw')}, {piece('o')}], 2, 512)", "3", 20),
        call(f'pwritev2({fd("/a.img")}, [{{iov_base="{hexed("three")}", iov_len=5}}], 1, 72, 0)', "2", 30),
        call(f'pwrite64({fd("/b/a.img")}, "{hexed("one")}", 3, 4096)', "3", 40),
        call(f'pwrite64(6<socket:[1]>, "{hexed("one")}", 3, 0)', "-1 EBADF (Bad file descriptor)", 50),
    )  # fmt: skip
    assert [(one.offset, one.data) for one in found] == [(4096, b"one"), (512, b"two"), (72, b"th")]
    assert {one.file for one in found} == {"a.img"}  # not those of directories below
    assert (found[0].begun, found[0].ended) == (1_000_000_010, 1_000_000_015)


def test_calls_that_overlap() -> None:
    found = entries(
        f"12  1.000000010 fdatasync({fd('/a.img')} <unfinished ...>",
        call(f'pwrite64({fd("/a.img")}, "{hexed("x")}", 1, 0)', "1", 20, "9"),
        "12  1.000000090 <... fdatasync resumed>) = 0 <0.000000080>",
        f'9   1.000000095 pwrite64({fd("/a.img")}, "{hexed("y")}", 1, 7 <unfinished ...>',
    )
    assert [one.verb for one in found] == ["write", "flush", "write"]
    assert (found[1].begun, found[1].ended) == (1_000_000_010, 1_000_000_090)
    assert (found[2].data, found[2].offset, found[2].ended) == (b"y", 7, FOREVER)


def test_sizes_and_holes() -> None:
    found = entries(
        call(f"ftruncate({fd('/a.img')}, 8192)", "0", 10),
        call(f"fallocate({fd('/a.img')}, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 512, 1024)", "0", 20),
        call(f"fallocate({fd('/a.img')}, 0, 0, 16384)", "0", 30),
    )
    assert [(one.verb, one.offset, one.length) for one in found] == [
        ("resize", 0, 8192),
        ("zero", 512, 1024),
        ("grow", 0, 16384),
    ]


def test_names() -> None:
    cwd = f"AT_FDCWD<{hexed('/images')}>"
    found = entries(
        call(f'openat({cwd}, "{hexed("t.part")}", O_RDWR|O_CREAT|O_EXCL, 0666)', fd("/t.part", 3), 10),
        call(f'pwrite64({fd("/t.part", 3)}, "{hexed("x")}", 1, 0)', "1", 20),
        call(f'rename("{hexed("t.part")}", "{hexed("a.img")}")', "0", 30),
        call(f"fsync(4<{hexed('/images')}>)", "0", 40),
        call(f'unlink("{hexed("/images/a.img")}")', "0", 50),
    )
    assert [(one.verb, one.file) for one in found] == [
        ("create", "t.part"),
        ("write", found[0].other),
        ("rename", "t.part"),
        ("flush", ""),
        ("unlink", "a.img"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        f'write({fd("/a.img")}, "{hexed("x")}", 1) = 1',
        f"mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, {fd('/a.img')}, 0) = 0x7f0000000000",
        f'pwritev2({fd("/a.img")}, [{{iov_base="{hexed("x")}", iov_len=1}}], 1, 0, RWF_DSYNC) = 1',
        f"copy_file_range({fd('/b', 4)}, NULL, {fd('/a.img')}, NULL, 4096, 0) = 4096",
        f'openat(AT_FDCWD<{hexed("/images")}>, "{hexed("a.img")}", O_RDWR|O_DSYNC) = {fd("/a.img", 3)}',
        f"fallocate({fd('/a.img')}, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) = 0",
    ],
)
def test_what_cannot_be_followed_is_refused(line: str) -> None:
    with pytest.raises(UnsupportedError):
        entries(f"7 1.000000001 {line} <0.000000001>")


def test_what_was_not_seen_is_noticed() -> None:
    entry = Entry("write", "a", 0, 1, b"x", begun=1, ended=2)
    complete([entry], {"a": b"."}, {"a": b"x"})
    with pytest.raises(UnsupportedError, match="io_uring"):
        complete([entry], {"a": b"."}, {"a": b"y"})
