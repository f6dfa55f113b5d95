# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The table of subformats to parametrise tests over, and chains of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Unpack

from images.assemble import (
    VMFS_TYPES,
    custom,
    full_device,
    monolithic_flat,
    partitioned_device,
    se_sparse,
    split_flat,
    split_sparse,
    vmfs,
    vmfs_sparse,
)
from images.cowd import Cowd
from images.hosted import Hosted, monolithic_sparse
from images.sesparse import SeSparse
from images.stream import STREAM_A, STREAMS, stream_optimized
from layout import DATA, HOLE, SECTOR, ZERO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from images.base import Common, Image
    from model import Model


class Build(Protocol):
    """Write a layout or a model into a directory as one image."""

    def __call__(self, directory: Path, what: str | Model, /, **common: Unpack[Common]) -> Image: ...


class Row(NamedTuple):
    """One way to store a disk: ``zeros`` is what becomes of written grains of zeros (DATA, ZERO, HOLE)."""

    build: Build
    grain: int  # bytes; SECTOR for flat files
    zeros: str
    child: bool  # it can have a parent


def _hosted(**knobs: int | str) -> Row:
    made = replace(Hosted(), **knobs)  # type: ignore[arg-type]
    zeros = ZERO if made.zero_grains else DATA
    return Row(partial(monolithic_sparse, knobs=made), made.grain, zeros, child=True)


_STREAM_ROWS: Final = {
    f"stream-{name}": Row(partial(stream_optimized, knobs=knobs), knobs.grain, HOLE, child=False)
    for name, knobs in STREAMS.items()
}

SUBFORMATS: Final[dict[str, Row]] = {
    "hosted": _hosted(),
    "hosted-zeros": _hosted(zero_grains=True),
    "hosted-v3": _hosted(version=3),
    "hosted-no-rgd": _hosted(rgd=False),
    "hosted-4k": _hosted(grain=4 << 10),
    "hosted-1m": _hosted(grain=1 << 20),
    "hosted-on-demand": _hosted(on_demand=True, grain=4 << 10),
    "hosted-reversed": _hosted(tables="reversed", order="reversed", grain=4 << 10),
    "hosted-shuffled": _hosted(order="shuffled", grain=8 << 10, zero_grains=True),
    "hosted-short": _hosted(short_tail=True),
    "hosted-256-entries": _hosted(gtes=256, grain=4 << 10),
    "hosted-one-sector-text": _hosted(descriptor=1),
    "split": Row(split_sparse, 64 << 10, DATA, child=True),
    "split-qemu": Row(partial(split_sparse, knobs=Hosted(descriptor=20)), 64 << 10, DATA, child=True),
    "split-zeros": Row(
        partial(split_sparse, knobs=Hosted(descriptor=0, zero_grains=True, grain=4 << 10)), 4 << 10, ZERO, child=True
    ),
    **_STREAM_ROWS,
    "stream-progress": Row(
        partial(stream_optimized, knobs=replace(STREAM_A, progress=2, unknown=True)), 64 << 10, HOLE, child=False
    ),
    "stream-expanded": Row(
        partial(stream_optimized, knobs=replace(STREAM_A, level=0, store_zeros=True)), 64 << 10, DATA, child=False
    ),
    "stream-short-last": Row(
        partial(stream_optimized, knobs=replace(STREAM_A, short_last=True)), 64 << 10, HOLE, child=False
    ),
    "flat": Row(monolithic_flat, SECTOR, DATA, child=False),
    "split-flat": Row(split_flat, SECTOR, DATA, child=False),
    **{kind: Row(partial(vmfs, create_type=kind), SECTOR, DATA, child=False) for kind in VMFS_TYPES},
    "vmfsSparse": Row(vmfs_sparse, SECTOR, DATA, child=True),
    "vmfsSparse-4k": Row(partial(vmfs_sparse, knobs=Cowd(grain=4 << 10, order="reversed")), 4 << 10, DATA, child=True),
    "seSparse": Row(se_sparse, 4 << 10, ZERO, child=True),
    "seSparse-odd": Row(
        partial(se_sparse, knobs=SeSparse(unmapped="odd", order="shuffled", tables="reversed")),
        4 << 10,
        ZERO,
        child=True,
    ),
    "fullDevice": Row(full_device, SECTOR, DATA, child=False),
}
# These write zeros over a part of the model (a ZERO extent), so they want a Model of their own.
PATCHED: Final[dict[str, Row]] = {
    "partitionedDevice": Row(partitioned_device, SECTOR, DATA, child=False),
    "custom": Row(custom, SECTOR, DATA, child=False),
}
CHILDREN: Final = {name: row for name, row in SUBFORMATS.items() if row.child}


def chain(directory: Path, links: Sequence[tuple[str, str | Model]], **common: Unpack[Common]) -> Image:
    """Build a chain, the base first: ``[("flat", "64k:A 64k:B"), ("seSparse", "64k:- 64k:C")]``; return the newest."""
    image: Image | None = None
    for number, (kind, what) in enumerate(links):
        facts = common.copy()
        facts["name"] = f"disk-{number:06d}" if number else "disk"
        if image is not None:
            facts["parent"] = image
        image = {**SUBFORMATS, **PATCHED}[kind].build(directory, what, **facts)
    if image is None:
        raise ValueError("a chain of no links")
    return image
