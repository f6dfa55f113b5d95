# Invariant: any bytes: open + read parses, or raises VmdkitError or OSError; nothing else, within 5 seconds of
# processor time; what is read is the same however it is cut, and what is said to be zero is zero.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Streams, broken: headers, footers, markers, tables, compressed grains; read through their tables and salvaged."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import images
from fuzz.harness import Seed, assert_sound, corpus, for_a_while, guarded, mutate, seed, under_atheris, use
from images import STREAMS
from images.stream import marker
from vmdkit.vmdk.image import Options

LAYOUT = "4k:A 4k:- 4k:b 4k:0 2M:- 4k:C 1k:d"
KEYS = {"a": "A", "e": "ESX", "b": "B", "o": "OPEN", "q": "QEMU", "n": "BARE"}


@functools.cache
def seeds() -> dict[str, Seed]:
    """Return small sound streams, by a byte that chooses among them."""
    with tempfile.TemporaryDirectory() as directory:
        return {
            key: seed(images.stream_optimized(Path(directory) / key, LAYOUT, replace(STREAMS[name], grain=4096)))
            for key, name in KEYS.items()
        }


def target(data: bytes) -> None:
    """The first byte is the kind of the stream that was broken; it is only for the reader of a failure."""
    for option in (Options(), Options(salvage=True), Options(redundant=True)):
        use({"disk.vmdk": data[1:]}, "disk.vmdk", option)


def make(rng: random.Random) -> bytes:
    """Return a broken stream."""
    key = rng.choice(list(KEYS))
    data = bytearray(mutate(seeds()[key], rng))
    if rng.random() < 0.3:  # markers where they are not due
        at = rng.randrange(0, len(data) + 1, 512)
        data[at : at + rng.choice((0, 512))] = marker(
            rng.choice((0, 1, 2, 3, 4, 5, 77)), rng.choice((0, 1, 4, 1 << 40))
        )
    return key.encode() + bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_streams(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KEYS)), st.binary(max_size=600), st.integers(0, 40))
def test_any_bytes_in_place_of_sectors(key: str, body: bytes, sector: int) -> None:
    start = seeds()[key]
    data = bytearray(start.files[start.broken])
    at = min(22 + sector, len(data) // 512) * 512
    data[at : at + len(body)] = body
    guarded(target, key.encode() + bytes(data))


@pytest.mark.parametrize("path", corpus("stream"), ids=lambda path: path.name)
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
