# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import sys
from typing import Any

import pytest

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ops.hash import hash_device, hash_extents, hasher
from vmdkit.ops.pool import CHUNK
from vmdkit.storage.memory import MemoryDevice

LUMPS = [(100, b"A"), (3 * CHUNK + 1, None), (2 * CHUNK, b"bc"), (9, b"\0")]


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b"])
def test_is_the_digest_of_all_bytes(algorithm: str, pieces: Any) -> None:
    source = pieces(LUMPS)
    steps: list[int] = []
    expected = hashlib.new(algorithm, source.data).hexdigest()
    assert hash_device(source, algorithm, progress=steps.append) == expected
    assert sum(steps) == source.size
    assert not any(100 <= at < 100 + 3 * CHUNK + 1 for at, _ in source.reads)


def test_a_range(pieces: Any) -> None:
    source = pieces(LUMPS)
    expected = hashlib.sha256(source.data[50 : 50 + CHUNK]).hexdigest()
    assert hash_device(source, count=CHUNK, offset=50) == expected


def test_nothing() -> None:
    assert hash_device(MemoryDevice(0)) == hashlib.sha256().hexdigest()


def test_extents(pieces: Any) -> None:
    source = pieces([*LUMPS, (10, None), (5 * CHUNK, b"d")])
    steps: list[int] = []
    found = list(hash_extents(source, progress=steps.append))
    assert [tuple(extent) for extent, _ in found] == [tuple(extent) for extent in source.extents()]
    for extent, digest in found:
        data = source.data[extent.offset : extent.offset + extent.length]
        assert digest == (None if extent.flags else hashlib.sha256(data).hexdigest())
    assert sum(steps) == source.size


def test_blake3(pieces: Any) -> None:
    blake3 = pytest.importorskip("blake3")
    source = pieces(LUMPS)
    assert hash_device(source, "blake3") == blake3.blake3(bytes(source.data)).hexdigest()


def test_blake3_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vmdkit\[hash\]'"):
        hasher("blake3")


@pytest.mark.parametrize("name", ["crc32", "", "shake_128"])
def test_names_of_no_digest(name: str) -> None:
    with pytest.raises(UsageError):
        hasher(name)
