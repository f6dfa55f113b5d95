# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write models with our writer, as the command does."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from model import Model
from vmdkit.device import Can, Device, ExtentFlags
from vmdkit.ops.copy import CopyOptions, stream
from vmdkit.vmdk.stream_writer import StreamRecipe, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEFAULT = StreamRecipe()


class ModelDevice(Device):
    """A model as a Device; what was never written is a hole."""

    def __init__(self, model: Model, size: int | None = None) -> None:
        super().__init__(model.size if size is None else size, name="model", can=Can.EXTENTS)
        self.model = model

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = self.model.pread(len(view), offset)

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        for start, length, what in self.model.segments(count, offset):
            yield offset + start, length, int(ExtentFlags.HOLE | ExtentFlags.ZERO) if what == "-" else 0


def far_stream(path: Path, jump: int) -> Model:
    """Write a stream whose second half begins ``jump`` bytes further than it would: a hole of the file lies between.

    No whole stream of that length could be written in the time of a test. What finds grains by the tables reads it.
    """
    model = Model("64k:A 64k:b 64k:- 64k:z 32M:- 64k:C 1k:d")
    half = 2 << 16
    with path.open("wb") as file:
        writer = StreamWriter(file, model.size, name=path.name)
        writer.put(writer.pack(0, memoryview(model.pread(half, 0))))
        file.flush()
        writer.written += jump
        file.seek(writer.written)
        for at in range(half, model.size, 1 << 20):
            count = min(1 << 20, model.size - at)
            writer.put(writer.pack(at, memoryview(model.pread(count, at))))
        writer.finish()
    return model


def written(what: str | Model, recipe: StreamRecipe = DEFAULT, *, name: str = "disk.vmdk", threads: int = 2) -> bytes:
    """Return the stream that our writer makes of a layout or a model."""
    out = io.BytesIO()
    device = ModelDevice(Model(what) if isinstance(what, str) else what)
    writer = StreamWriter(out, device.size, recipe, name=name)
    stream(device, writer, CopyOptions(threads=threads))
    assert writer.written == len(out.getbuffer())
    return out.getvalue()
