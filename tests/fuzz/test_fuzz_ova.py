# Invariant: any bytes: the archive is walked, or FormatError is raised; nothing else, within 5 seconds of processor
# time. Members lie inside the archive, one behind the other, and what tarfile finds without complaint we find too.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Archives, broken: headers, sizes, names, extensions; walked, held against the rules, and their facts told."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import EDGES, INTERESTING, SECONDS, corpus, for_a_while, guarded, under_atheris
from ovas import END, Ovf, Part, block, manifest, padded
from vmdkit.errors import FormatError, VmdkitError
from vmdkit.ova.archive import Kind, read_archive
from vmdkit.ova.disk import read_envelope
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

TYPES = (b"0", b"\0", b"1", b"2", b"3", b"5", b"7", b"L", b"K", b"S", b"x", b"g", b"V", b"\xff")


def seed() -> bytes:
    """Return a small sound archive."""
    text = Ovf([Part("d.vmdk", b"disk" * 300, 1 << 20)]).text()
    files = {"box.ovf": text, "box.mf": manifest({"box.ovf": text, "d.vmdk": b"disk" * 300}), "d.vmdk": b"disk" * 300}
    return b"".join(block(name.encode(), len(data)) + padded(data) for name, data in files.items()) + END


def target(data: bytes) -> None:
    """Walk it; read the descriptor where there is one."""
    begun = time.process_time()
    device = MemoryDevice(data, name="x.ova", writable=False)
    with contextlib.suppress(FormatError):
        archive = read_archive(device)
        end = 0
        for member in archive.members:
            assert end <= member.header < member.at
            assert member.at <= device.size
            end = member.at + member.size
            if member.kind is Kind.FILE:
                with contextlib.suppress(FormatError), archive.open(member) as window:
                    assert window.pread(window.size, 0) == data[member.at : member.at + member.size]
        assert all(0 <= problem.offset <= device.size for problem in archive.problems)
        if not archive.problems:
            assert theirs(data) == [(member.stored.rstrip("/"), member.size) for member in archive.members]
        with contextlib.suppress(VmdkitError):
            read_envelope(archive)
    spent = time.process_time() - begun
    assert spent < SECONDS, f"{spent:.1f} seconds"


def theirs(data: bytes) -> list[tuple[str, int]]:
    """Return what Python's tarfile finds."""
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as file:
        return [(info.name, info.size) for info in file]


def make(rng: random.Random) -> bytes:
    """Return a broken archive: fields changed with the checksum made right, blocks moved, bytes anywhere, cuts."""
    data = bytearray(seed())
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(0, max(len(data), 1), 512)
        stroke = rng.random()
        if stroke < 0.5:
            data[at : at + 512] = header(rng)
        elif stroke < 0.7:
            more = b"".join(
                header(rng) + padded(rng.randbytes(rng.choice((0, 10, 600)))) for _ in range(rng.randrange(3))
            )
            data[at:at] = more
        elif stroke < 0.8 and data:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif stroke < 0.9:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data[at : at + 512] = rng.choice((bytes(512), bytes(data[:512]), rng.randbytes(512), b""))
    return bytes(data)


def header(rng: random.Random) -> bytes:
    """Return a header block whose checksum is right, and little else."""
    number = rng.choice((rng.choice(INTERESTING), rng.choice(EDGES), rng.randrange(3000)))
    field = rng.choice(
        (b"%011o\0" % (number % 8**11), b"\x80" + (number % (1 << 88)).to_bytes(11, "big"), rng.randbytes(12))
    )
    name = rng.choice((b"d.vmdk", b"box.ovf", b"../x", b"/x", b"./a", b"a/", b"", rng.randbytes(20)))
    magic = rng.choice((b"ustar\x0000", b"ustar  \0", bytes(8)))
    made = block(name, 0, rng.choice(TYPES), magic, field, prefix=rng.choice((b"", b"p")))
    return made + (padded(pax(rng)) if rng.random() < 0.3 else b"")


def pax(rng: random.Random) -> bytes:
    """Return lines of a pax header, right or nearly so."""
    text = b"%s=%s\n" % (
        rng.choice((b"path", b"size", b"GNU.sparse.size", b"x")),
        rng.choice((b"1", b"-1", b"a/b", b"")),
    )
    return b"%d %s" % (len(text) + rng.choice((2, 3, 3, 4)), text)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_archives(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    guarded(target, data)


@pytest.mark.parametrize("path", corpus("ova"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


def test_the_seed_is_sound() -> None:
    assert read_archive(MemoryDevice(seed(), writable=False)).problems == []
    target(seed())


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


if __name__ == "__main__":
    under_atheris(target)
