# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Random layouts in random subformats and chains read as the model says, at random places."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import images
from images import CHILDREN, SUBFORMATS
from layout import SECTOR, expected_bytes, fill
from model import Model
from vmdkit import opener

if TYPE_CHECKING:
    from collections.abc import Callable

    from images import Image
    from vmdkit.device import Device

LARGEST = 3 << 20
RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
LETTERS = "ABCxyz"


@st.composite
def models(draw: st.DrawFn, size: int, kinds: str = f"{LETTERS}0-") -> Model:
    """Draw a disk: some pieces that begin at grains, some anywhere, some as short as a sector."""
    model = Model(size)
    for _ in range(draw(st.integers(0, 8))):
        unit = draw(st.sampled_from((SECTOR, 4096, 64 << 10)))
        start = draw(st.integers(0, (size - 1) // unit)) * unit
        count = draw(st.integers(1, 1 + (256 << 10) // unit)) * unit
        model.put(draw(st.sampled_from(kinds)), min(count, size - start), start)
    return model


SIZES = st.integers(1, LARGEST // SECTOR).map(lambda sectors: sectors * SECTOR)


def check(device: Device, model: Model, ranges: list[tuple[int, int]]) -> None:
    """Compare a device with its model: as a whole, in the given ranges, and through extents and locate."""
    assert device.size == model.size
    assert device.pread(model.size, 0) == model.pread(model.size, 0)
    for one, other in ranges:
        offset = one % model.size
        count = other % (model.size - offset + 1)
        assert device.pread(count, offset) == model.pread(count, offset)
        at = offset
        for run in device.extents(count, offset):
            assert run.offset == at
            assert not run.flags & 2 or model.is_zero(run.length, run.offset)
            at += run.length
        assert at == offset + count
        at = offset
        for place in device.locate(count, offset):
            assert place.offset == at
            if place.storage is not None and place.kind.value == "data":
                assert place.storage.pread(place.length, place.at) == model.pread(place.length, place.offset)
            at += place.length
        assert at == offset + count


RANGES = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=6)


def with_image(make: Callable[[Path], Image], ranges: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        image = make(Path(place))
        with opener.open(image.path) as device:
            check(device, image.model, ranges)


@RELAXED
@given(st.data(), st.sampled_from(sorted(SUBFORMATS)), SIZES, RANGES)
def test_one_layer(data: st.DataObject, kind: str, size: int, ranges: list[tuple[int, int]]) -> None:
    model = data.draw(models(size))
    with_image(lambda place: SUBFORMATS[kind].build(place, model), ranges)


@RELAXED
@given(
    st.data(),
    st.sampled_from(sorted(SUBFORMATS)),
    st.lists(st.sampled_from(sorted(CHILDREN)), min_size=1, max_size=3),
    SIZES,
    RANGES,
)
def test_chains(data: st.DataObject, base: str, tops: list[str], size: int, ranges: list[tuple[int, int]]) -> None:
    links: list[tuple[str, str | Model]] = []
    below: Model | None = None
    for kind in (base, *tops):
        model = data.draw(models(size))
        model.parent = below
        links.append((kind, model))
        below = model
    with_image(lambda place: images.chain(place, links), ranges)


@RELAXED
@given(
    st.data(),
    st.lists(st.integers(1, 600), min_size=1, max_size=6),
    st.lists(st.sampled_from(("FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE")), min_size=6, max_size=6),
    RANGES,
)
def test_extents_side_by_side(
    data: st.DataObject, lengths: list[int], kinds: list[str], ranges: list[tuple[int, int]]
) -> None:
    model = data.draw(models(sum(lengths) * SECTOR))
    pieces = [images.Piece(kind, length * SECTOR) for kind, length in zip(kinds, lengths, strict=False)]
    with_image(lambda place: images.assemble(place, model, pieces), ranges)


# ── the oracle itself ────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ABa0-")), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.sampled_from("CD0-=")), max_size=6),
)
def test_the_model_is_a_bytearray(parts: list[tuple[int, str]], changes: list[tuple[int, int, str]]) -> None:
    layout = " ".join(f"{count * SECTOR}:{what}" for count, what in parts)
    parent = Model(sum(count for count, _ in parts) * SECTOR)
    parent.put("P", parent.size, 0)
    model, plain = Model(layout, parent), bytearray(expected_bytes(layout, parent.pread(parent.size, 0)))
    for at, count, what in changes:
        offset = at * SECTOR % model.size
        length = min(count * SECTOR, model.size - offset)
        if what == "=":
            model.write(b"written " * (length // 8), offset)
            plain[offset : offset + length] = b"written " * (length // 8)
        else:
            model.put(what, length, offset)
            plain[offset : offset + length] = fill("P" if what == "-" else what, length, offset)
    assert model.pread(model.size, 0) == plain
    assert sum(run.length for run in model.grains(4096)) == model.size
    for run in model.grains(4096):
        if run.what == "0":
            assert not any(plain[run.offset : run.offset + run.length])
        elif run.what == "-":
            assert plain[run.offset : run.offset + run.length] == fill("P", run.length, run.offset)
