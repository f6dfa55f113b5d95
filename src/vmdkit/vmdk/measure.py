# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Forecast how large a disk becomes in a format, as qemu-img measure does: for the data it holds, and when full.

Sizes are those of the files, descriptor included (generously, since it depends on names). streamOptimized is forecast
for data that cannot be compressed at all, so nothing that is written turns out larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmdkit.device import ExtentFlags
from vmdkit.errors import UsageError
from vmdkit.units import SECTOR
from vmdkit.vmdk import layout
from vmdkit.vmdk.create import SHAPES, Recipe, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmdkit.device import Device

    Runs = Iterable[tuple[int, int]]

_TEXT, _LINE = 1024, 128  # bytes of a descriptor, and of each extent line, with long names
_BLOCK = 4096  # bytes; what a file system gives at once
_MARKER = SECTOR
_GRAIN_HEAD = 12  # bytes before the packed data of a grain
_STREAM = "streamoptimized"


class Measure(NamedTuple):
    """Bytes: what the data need, and what the disk needs when every byte of it was written."""

    required: int
    fully_allocated: int


def measure(source: Device | int, kind: str, recipe: Recipe | None = None) -> Measure:
    """Return how many bytes the disk ``source`` (or an empty one of that many bytes) takes as ``kind``.

    ``kind`` is ``raw``, ``streamOptimized`` or what ``create`` makes; ``recipe`` may say grain and thin. Nothing but
    metadata is read: data that are zero count. Raises UsageError for an unknown format or a size it cannot have.
    """
    size = layout.round_up(source if isinstance(source, int) else source.size, SECTOR)
    data = [] if isinstance(source, int) else list(_data(source))
    whole = [(0, size)]
    if kind.lower() == "raw":
        return Measure(size, size)
    if kind.lower() == _STREAM:
        return Measure(_stream(size, data), _stream(size, whole))
    recipe = Recipe(kind) if recipe is None else recipe
    shape = recipe.shape
    recipe.check(size, child=False)
    if shape.is_flat:
        held = sum(length for _, length in _blocks(data, _BLOCK)) if recipe.thin else size
        text = _text(-(-size // shape.piece) if shape.piece else 1)
        return Measure(held + text, size + text)
    if shape.type == "VMFSSPARSE":
        return Measure(_cowd(size, data, recipe), _cowd(size, whole, recipe))
    return Measure(_hosted(size, data, recipe, shape), _hosted(size, whole, recipe, shape))


def _data(source: Device) -> Iterator[tuple[int, int]]:
    for run in source.extents():
        if not run.flags & ExtentFlags.ZERO:
            yield run.offset, run.length


def _blocks(data: Runs, size: int) -> Iterator[tuple[int, int]]:
    """Yield runs of whole blocks that hold any of the data; none twice."""
    done = 0
    for offset, length in data:
        start = max(done, offset - offset % size)
        end = layout.round_up(offset + length, size)
        if end > start:
            yield start, end - start
        done = max(done, end)


def _count(data: Runs, size: int) -> int:
    """Return how many blocks of ``size`` hold any of the data."""
    return sum(length for _, length in _blocks(data, size)) // size


def _text(extents: int) -> int:
    return _TEXT + _LINE * extents


def _hosted(size: int, data: Runs, recipe: Recipe, shape: Shape) -> int:
    grain = recipe.grain or layout.HOSTED_GRAIN
    area = layout.DESCRIPTOR_AREA if shape.embedded else 0
    piece = shape.piece or size
    whole, rest = divmod(size, piece)
    total = whole * layout.hosted_header(piece, grain, descriptor=area).overhead
    if rest:
        total += layout.hosted_header(rest, grain, descriptor=area).overhead
    text = 0 if shape.embedded else _text(whole + bool(rest))
    return total + _count(data, grain) * grain + text


def _cowd(size: int, data: Runs, recipe: Recipe) -> int:
    """Grains are aligned to their size, and tables, which come with them, to the same."""
    grain = recipe.grain or layout.COWD_GRAIN
    tables = _count(data, grain * layout.COWD_ENTRIES)
    head = layout.round_up(layout.cowd_header(size, grain).free, grain)
    return head + tables * layout.round_up(layout.COWD_TABLE, grain) + _count(data, grain) * grain + _text(1)


def _stream(size: int, data: Runs) -> int:
    """Return what layout A takes where deflate can only store: 5 bytes for each 65535, 6 around (format spec 1.8)."""
    grain = layout.HOSTED_GRAIN
    if size < 1:
        raise UsageError("a disk needs at least one byte")
    packed = layout.round_up(_GRAIN_HEAD + 6 + grain + 5 * -(-grain // 0xFFFF), SECTOR)
    tables = -(-size // (grain * layout.HOSTED_ENTRIES))
    held = _count(data, grain * layout.HOSTED_ENTRIES)
    directory = layout.round_up(tables * layout.WIDTH, SECTOR)
    head, foot = grain, 3 * SECTOR  # header and text, padded to a grain; footer's marker, footer, end of stream
    return head + _count(data, grain) * packed + held * (_MARKER + layout.HOSTED_TABLE) + _MARKER + directory + foot


FORMATS = ("raw", "streamOptimized", *(shape.name for shape in SHAPES.values()))
