# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Flat extents: the bytes as they are; what was never written stays a hole of the host file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from images.base import Field, Part, Run, Sparse
from layout import DATA, HOLE, SECTOR, ZERO, sector

if TYPE_CHECKING:
    from pathlib import Path

    from model import Model

_STEP = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """Knobs of a flat extent."""

    before: int = 0  # bytes of other data in front, which the OFFSET of the extent line must skip
    after: int = 0  # bytes of other data behind


def write_flat(path: Path, model: Model, start: int, length: int, knobs: Flat) -> Part:
    """Write bytes ``start`` .. ``start + length`` of the model into a flat file."""
    part = Part(path, length)
    file = Sparse(path)
    for at, count in ((0, knobs.before), (knobs.before + length, knobs.after)):
        file.put(sector("X", 0) * (count // SECTOR), at)
    for offset, count, what in model.segments(length, start):
        at, kind = knobs.before + offset, what if what in "0-" else DATA
        part.runs.append(Run(offset, count, kind, path if kind == DATA else None, at))
        if what == HOLE and model.parent is None:
            continue
        for step in range(0, count, _STEP):
            some = min(_STEP, count - step)
            file.put(model.pread(some, start + offset + step), at + step)
    part.fields["data"] = Field(path, knobs.before, length)
    file.finish(knobs.before + length + knobs.after)
    return part


__all__ = ["ZERO", "Flat", "write_flat"]
