# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Random disks, written as streams: the strict walk, our reader, and the model hold the same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import Model
from stream_walk import walk
from streams import ModelDevice
from vmdkit import kernels
from vmdkit.ops.copy import CopyOptions, stream
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.hosted import read_header
from vmdkit.vmdk.stream import StreamExtent
from vmdkit.vmdk.stream_writer import StreamRecipe, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device

SECTOR, KIB, MIB = 512, 1 << 10, 1 << 20
RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def disks(draw: st.DrawFn) -> Model:
    """Draw a disk: up to three tables long, pieces anywhere, but often around the seams of grains and tables."""
    size = SECTOR * draw(st.one_of(st.integers(1, 300), st.integers(1, 3 * 65536), st.sampled_from((65536, 131072))))
    model = Model(size)
    for _ in range(draw(st.integers(0, 6))):
        seam = draw(st.sampled_from((SECTOR, 64 * KIB, 32 * MIB)))
        start = draw(st.integers(0, size // seam)) * seam + SECTOR * draw(st.integers(-3, 3))
        count = SECTOR * draw(st.one_of(st.integers(1, 8), st.integers(1, 600)))
        start = min(max(start, 0), size - SECTOR)
        model.put(draw(st.sampled_from("ABxy0-")), min(count, size - start), start)
    return model


RECIPES = st.builds(
    StreamRecipe,
    grain=st.sampled_from((4 * KIB, 64 * KIB, 64 * KIB, MIB)),
    level=st.sampled_from((kernels.FAST, kernels.STORED, 1, 6)),
    area=st.sampled_from((SECTOR * 2, SECTOR * 20)),
    cid=st.just("c0ffee"),
)


def same(model: Model, pread: Callable[[int, int], bytes | bytearray]) -> None:
    """Compare all of the disk; huge holes in steps."""
    for at in range(0, model.size, 4 * MIB):
        count = min(4 * MIB, model.size - at)
        assert pread(count, at) == model.pread(count, at)


@RELAXED
@given(disks(), RECIPES, st.integers(1, 4), st.booleans())
def test_what_is_written_is_read(model: Model, recipe: StreamRecipe, threads: int, holes: bool) -> None:
    source: Device = ModelDevice(model) if holes else MemoryDevice(model.pread(model.size, 0))
    out = io.BytesIO()
    writer = StreamWriter(out, model.size, recipe)
    stream(source, writer, CopyOptions(threads=threads))
    data = out.getvalue()
    found = walk(data)
    same(model, found.pread)
    assert found.size == model.size
    assert len(found.grains) == writer.grains
    storage = MemoryDevice(data)
    with_reader = StreamExtent(storage, read_header(storage), kind="SPARSE")
    for at, grain in found.grains.items():
        count = min(found.grain, model.size - at)
        view = memoryview(bytearray(count))
        with_reader.inflate_into(view, at)
        assert view == grain[:count]
    again = io.BytesIO()
    stream(source, StreamWriter(again, model.size, recipe), CopyOptions(threads=1))
    assert again.getvalue() == data
