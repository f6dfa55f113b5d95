# Invariant: any bytes: open + read parses, or raises VmdkitError or OSError; nothing else, within 5 seconds of
# processor time; what is read is the same however it is cut, and what is said to be zero is zero.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptors from strangers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import EDGES, INTERESTING, corpus, for_a_while, guarded, under_atheris, use
from images import STYLES, Text
from vmdkit.vmdk.image import Options

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "a.raw": b"a" * 4096,
    "b.raw": b"b" * 1000,
    "base.vmdk": b'# Disk DescriptorFile\nCID=1\nRW 8 FLAT "a.raw" 0\n',
}
LINES = (
    'RW 8 FLAT "a.raw" 0',
    'RW 4 FLAT "a.raw" 4',
    'RDONLY 1 VMFS "b.raw"',
    "RW 8 ZERO",
    "NOACCESS 8 ZERO",
    'RW 8 SPARSE "a.raw"',
    'RW 8 VMFSSPARSE "base.vmdk"',
    'RW 8 SESPARSE "disk.vmdk"',
)
PIECES = [
    *(line.encode() for line in LINES),
    *(b"%s=" % key for key in (b"version", b"encoding", b"CID", b"parentCID", b"createType", b"parentFileNameHint")),
    *(b'"%s"' % value for value in (b"custom", b"vmfs", b"GBK", b"Shift_JIS", b"utf-16", b"base.vmdk", b"a.raw")),
    b"ffffffff", b"00000001", b"RW ", b"FLAT ", b'"', b"\n", b"\r\n", b"\0", b"#", b"=", b" ", b"\t",
    b"\x81\x5c", b"\xff", b"\xef\xbb\xbf", b"ddb.", b"ddb.iofilters",
    b"changeTrackPath=", b"\xe2\x80\xa8", b"\xef\xbc\x91", b"RW 8 FLAT \"disk.vmdk\" 0",
]  # fmt: skip


def target(data: bytes) -> None:
    """Parse, open and read a descriptor beside a few files."""
    for options in (
        Options(),
        Options(ignore_cid=True, salvage=True),
        Options(untrusted=True),
        Options(single_link=True),
    ):
        use({**FILES, "disk.vmdk": data}, "disk.vmdk", options)


def sound(rng: random.Random) -> bytes:
    rows = tuple(rng.choices(LINES, k=rng.choice((1, 1, 2, 5))))
    text = Text(create_type=rng.choice(("custom", "monolithicSparse", "vmfs")), lines=rows, cid=rng.choice((1, 2)))
    if rng.random() < 0.4:
        text = text.but(parent_cid=1, hint=rng.choice(("base.vmdk", "disk.vmdk", "..\\base.vmdk", "/x/base.vmdk")))
    return text.render(STYLES[rng.choice(list(STYLES))])


def make(rng: random.Random) -> bytes:
    """Return a sound text with a few strokes through it."""
    data = bytearray(sound(rng))
    for _ in range(rng.choice((1, 2, 4, 10))):
        at = rng.randrange(len(data) + 1)
        stroke = rng.random()
        if stroke < 0.5:
            data[at:at] = rng.choice(PIECES)
        elif stroke < 0.7:
            del data[at : at + rng.choice((1, 2, 10))]
        elif stroke < 0.85:
            data[at : at + 1] = str(rng.choice((*INTERESTING, *EDGES))).encode()
        elif stroke < 0.95:
            data[at : at + 1] = rng.randbytes(1)
        else:
            data += data[rng.randrange(len(data) + 1) :]
    return bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_texts_with_strokes(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)), max_size=40))
def test_texts_put_together(pieces: list[bytes]) -> None:
    guarded(target, b"# Disk DescriptorFile\n" + b"".join(pieces))


@pytest.mark.parametrize("path", corpus("descriptor"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


if __name__ == "__main__":
    under_atheris(target)
