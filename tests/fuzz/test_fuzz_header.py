# Invariant: any bytes: open + read parses, or raises VmdkitError or OSError; nothing else, within 5 seconds of
# processor time; what is read is the same however it is cut, and what is said to be zero is zero.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Headers, directories and tables of hosted sparse, COWD and seSparse files, broken."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import images
from fuzz.harness import Seed, assert_sound, corpus, for_a_while, guarded, mutate, seed, under_atheris, use
from images import Cowd, Hosted
from vmdkit.vmdk.image import Options

LAYOUT = "4k:A 4k:- 4k:b 4k:0 3M:- 4k:C 1k:d"


@functools.cache
def seeds() -> dict[str, Seed]:
    """Return small sound images, by a byte that chooses among them."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        rows = {
            "h": images.monolithic_sparse(where / "h", LAYOUT, Hosted(grain=4096)),
            "z": images.monolithic_sparse(where / "z", LAYOUT, Hosted(grain=4096, zero_grains=True, on_demand=True)),
            "t": images.monolithic_sparse(where / "t", LAYOUT, Hosted(grain=512, rgd=False, descriptor=2)),
            "p": images.split_sparse(where / "p", LAYOUT, Hosted(grain=4096, descriptor=0), 2 << 20),
            "c": images.vmfs_sparse(where / "c", LAYOUT),
            "d": images.vmfs_sparse(where / "d", LAYOUT, Cowd(grain=4096)),
        }
        found = {key: seed(image) for key, image in rows.items()}
        # seSparse has regions of a MiB: the smallest is several MiB, so its grains are few.
        found["s"] = seed(images.se_sparse(where / "s", "4k:A 4k:- 4k:b 4k:0"))
    return found


def target(data: bytes) -> None:
    """The first byte says which image the rest takes a file of."""
    start = seeds().get(chr(data[0]) if data else "h", seeds()["h"])
    files = {**start.files, start.broken: data[1:]}
    options = [Options(), Options(redundant=True), Options(ignore_journal=True, ignore_cid=True, salvage=True)]
    for option in options[: 2 if data[:1] in b"sh" else 1]:
        use(files, start.opened, option)
    if data[:1] == b"s":
        use(files, start.opened, options[2])


def make(rng: random.Random) -> bytes:
    """Return a broken file behind the byte of its image."""
    key = rng.choice("hhzztpcds")
    return key.encode() + mutate(seeds()[key], rng)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_files(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"KDMV", b"kdmv", b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0"]),
    st.binary(max_size=3000),
    st.sampled_from("htcs"),
)
def test_any_bytes_after_a_magic(magic: bytes, body: bytes, key: str) -> None:
    guarded(target, key.encode() + magic + body)


@pytest.mark.parametrize("path", corpus("header"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


def test_the_seeds_are_sound() -> None:
    for key, start in seeds().items():
        assert_sound(start)
        target(key.encode() + start.files[start.broken])


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


if __name__ == "__main__":
    under_atheris(target)
