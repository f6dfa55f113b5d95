# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tree hash tells what a disk holds: not how, and not less."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import witness
from images import SUBFORMATS
from layout import SECTOR
from model import Model
from vmdkit import opener
from vmdkit.ops.tree import Shape
from vmdkit.ops.tree_hash import Zeros, tree_hash
from vmdkit.storage.memory import MemoryDevice

RELAXED = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
LARGEST = 2 << 20
BLOCKS = st.sampled_from((4 << 10, 16 << 10, 64 << 10, 1 << 20))
SIZES = st.integers(1, LARGEST // SECTOR).map(lambda sectors: sectors * SECTOR)


@st.composite
def models(draw: st.DrawFn, size: int) -> Model:
    model = Model(size)
    for _ in range(draw(st.integers(0, 8))):
        unit = draw(st.sampled_from((SECTOR, 4096, 64 << 10)))
        start = draw(st.integers(0, (size - 1) // unit)) * unit
        count = draw(st.integers(1, 1 + (256 << 10) // unit)) * unit
        model.put(draw(st.sampled_from("ABxy00--")), min(count, size - start), start)
    return model


@RELAXED
@given(st.data(), st.lists(st.sampled_from(sorted(SUBFORMATS)), min_size=2, max_size=2, unique=True), SIZES, BLOCKS)
def test_one_content_has_one_digest(data: st.DataObject, kinds: list[str], size: int, block: int) -> None:
    model = data.draw(models(size))
    expected = witness.tree_hash(model.pread(model.size, 0), block)
    with tempfile.TemporaryDirectory() as place:
        for kind in kinds:
            directory = Path(place) / kind
            directory.mkdir()
            image = SUBFORMATS[kind].build(directory, model)
            with opener.open(image.path) as device:
                for zeros in Zeros:
                    assert tree_hash(device, Shape(block=block), zeros=zeros).digest.hex() == expected


@RELAXED
@given(st.data(), SIZES, BLOCKS, st.integers(0, 1 << 40), st.integers(1, 255))
def test_any_changed_byte_changes_it(data: st.DataObject, size: int, block: int, where: int, flip: int) -> None:
    content = bytearray(data.draw(models(size)).pread(size, 0))
    shape = Shape(block=block)
    before = tree_hash(MemoryDevice(content), shape)
    content[where % size] ^= flip
    after = tree_hash(MemoryDevice(content), shape)
    assert before.digest != after.digest
    span = before.first_difference(after)
    assert span is not None
    assert span[0] <= where % size < span[0] + span[1]


@RELAXED
@given(st.binary(max_size=20000), st.integers(0, 20000), st.sampled_from((4096, 16384)))
def test_any_size(content: bytes, zeros: int, block: int) -> None:
    content += bytes(zeros)
    found = tree_hash(MemoryDevice(content), Shape(block=block))
    assert found.digest.hex() == witness.tree_hash(content, block)
    assert found != tree_hash(MemoryDevice(content + b"\0"), Shape(block=block))
