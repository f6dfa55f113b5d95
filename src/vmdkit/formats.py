# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""THE table of formats that ``convert`` writes, and how a new disk of each comes into being.

::

    FORMATS[name].make ─► Output.device          takes the bytes, or Output.sink does, in order
                          Output.complete        tables, headers, footers; durable, still nameless
                          Output.read_back       by a reader's path
                          the block ends         names appear, the descriptor's last

An error before the last line leaves nothing under the final name and no temporary files.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.filters.slice import SliceDevice
from vmdkit.maker import Workshop
from vmdkit.ops.offload import Pipe
from vmdkit.ops.plan import plan, whole
from vmdkit.ops.sink import RawSink
from vmdkit.storage.target import new_file, read_back, refuse_own_files
from vmdkit.units import KIB, SECTOR
from vmdkit.vmdk.create import SHAPES, Construction, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from vmdkit.device import Device
    from vmdkit.ops.sink import Sink
    from vmdkit.storage.file import FileDevice
    from vmdkit.vmdk.disk import VmdkDisk
    from vmdkit.vmdk.files import Files

STDOUT = "-"  # a path that stands for standard output
_BLOCK = 64 * KIB  # bytes of zeros that become a hole of a file that the kernel fills: larger grains would be rare


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made: ``size`` bytes at ``path``; ``options`` are those of the format's row."""

    path: str
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    parent: VmdkDisk | None = None
    overwrite: bool = False
    sync: bool = True
    files: Files = field(default_factory=Workshop)


@dataclass(frozen=True, slots=True)
class Output:
    """A new disk on its way. ``device`` takes the bytes; what is never written there reads as zero, or as the parent.
    It leaves out zeros of ``block`` bytes.

    Where there is a ``sink``, it takes the bytes instead, in order.

    ``complete`` writes what the format needs besides and, unless told otherwise, waits until all of it is durable.
    ``read_back`` then opens the result by a reader's path; whoever calls it closes it.
    """

    device: Device
    block: int
    complete: Callable[[], None]
    read_back: Callable[[], Device]
    sink: Sink[Any] | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A row of FORMATS: what ``-O`` names. ``options`` are the keys that ``-o`` may have."""

    name: str
    doc: str
    make: Callable[[Order, Device], AbstractContextManager[Output]]
    options: tuple[str, ...] = ()
    parent: bool = False  # whether it can be a child
    sink: Callable[[Order, Pipe, Device], Sink[Any]] | None = None  # how it is written in order, if it can be

    def check(self, source: Device, order: Order) -> None:
        """Raise UsageError for what an order cannot have."""
        if order.size < source.size:
            raise UsageError(f"{source.size} bytes do not fit into {order.size}", path=order.path)
        unknown = [key for key in order.options if key not in self.options]
        if unknown:
            takes = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
            raise UsageError(f"{self.name} has no option {unknown[0]!r}; {takes}")
        if order.parent is not None and not self.parent:
            raise UsageError(f"{self.name} cannot have a parent")


def find_format(kind: str) -> Format:
    """Return the row that ``kind`` names, in any case; raises UnsupportedError."""
    row = FORMATS.get(kind.lower())
    if row is None:
        raise UnsupportedError(f"cannot write {kind!r}, only {', '.join(row.name for row in FORMATS.values())}")
    return row


@contextmanager
def _raw(order: Order, source: Device) -> Iterator[Output]:
    refuse_own_files(source, order.path, order.path)
    with new_file(order.path, order.size, overwrite=order.overwrite, sync=order.sync) as device:
        yield Output(device, _BLOCK, device.flush if order.sync else _nothing, lambda: read_back(device))


@contextmanager
def _vhd(order: Order, source: Device) -> Iterator[Output]:
    from vmdkit.storage import vhd

    size = -(-order.size // SECTOR) * SECTOR
    refuse_own_files(source, order.path, order.path)
    with new_file(order.path, size + vhd.FOOTER, overwrite=order.overwrite, sync=order.sync) as file:

        def complete() -> None:
            file.pwrite(vhd.footer(size), size)
            if order.sync:
                file.flush()

        def again() -> Device:
            written = read_back(file)
            vhd.check_footer(written.pread(vhd.FOOTER, size), size, order.path)
            return SliceDevice(written, 0, size)

        yield Output(SliceDevice(file, 0, size, owned=False), _BLOCK, complete, again)


@contextmanager
def _vmdk(subformat: str, order: Order, source: Device) -> Iterator[Output]:
    recipe = Recipe(subformat, **order.options)
    with Construction(
        order.files, order.path, order.size, recipe, order.parent, overwrite=order.overwrite, sync=order.sync
    ) as work:
        for name in work.names:
            refuse_own_files(source, name, work.shown(name))
        disk = work.build_disk()
        grain = min((extent.grain for extent in disk.extent_files if extent.grain), default=_BLOCK)
        yield Output(disk, grain, work.complete, work.read_back)
        work.publish()


def _stream_sink(order: Order, pipe: Pipe, _: Device) -> Sink[Any]:
    from vmdkit.vmdk.stream_writer import StreamRecipe, StreamWriter  # on use, like all that one format needs

    name = os.path.basename(order.path) if order.path != STDOUT else "stream.vmdk"
    return StreamWriter(pipe, order.size, StreamRecipe(**order.options), name=name)


def _targz_sink(order: Order, pipe: Pipe, source: Device) -> Sink[Any]:
    """Say where the data are before the first of them: that is how a tar knows holes."""
    from vmdkit.storage.targz import GRANULARITY, TarGzWriter

    segments = whole(plan(source), GRANULARITY)
    data = ((segment.offset, segment.length) for segment in segments if not segment.zero)
    return TarGzWriter(pipe, order.size, data)


@contextmanager
def _in_order(
    sink: Callable[[Order, Pipe, Device], Sink[Any]],
    reopen: Callable[[FileDevice, Order], Device],
    order: Order,
    source: Device,
) -> Iterator[Output]:
    """Append to a new file what could as well go through a pipe."""
    refuse_own_files(source, order.path, order.path)
    with new_file(order.path, 0, overwrite=order.overwrite, sync=order.sync) as file:
        fd = file.fileno()
        if fd is None:
            raise UsageError("it is closed", path=order.path)
        made = sink(order, Pipe(fd), source)
        complete = file.flush if order.sync else _nothing
        yield Output(file, made.granularity, complete, lambda: reopen(file, order), made)


def _unpacked(file: FileDevice, order: Order) -> Device:
    """Unpack a tar into a file without a name, by another program's way: Python's own tarfile."""
    from vmdkit.storage.untar import unpack  # on use: few look at what they have written

    return unpack(read_back(file), os.path.dirname(os.path.realpath(order.path)))


def _open_single(file: FileDevice, _: Order) -> Device:
    from vmdkit.vmdk.read_back import open_single  # on use: it brings every reader there is

    return open_single(read_back(file))


def _nothing() -> None:
    """Complete what is complete."""


_COMMON = ("adapter", "hwversion")
_OF_TYPE = {"SPARSE": ("grain", "zeroed_grain"), "VMFSSPARSE": ("grain",), "FLAT": ("preallocate",)}

FORMATS: dict[str, Format] = {
    row.name.lower(): row
    for row in (
        Format("raw", "the bytes as the guest sees them", _raw, sink=lambda _, pipe, __: RawSink(pipe)),
        *(
            Format(
                shape.name,
                shape.doc,
                partial(_vmdk, shape.name),
                options=(*_COMMON, *_OF_TYPE.get(shape.type, ("thin", "preallocate"))),
                parent=shape.child,
            )
            for shape in SHAPES.values()
        ),
        Format(
            "streamOptimized",
            "packed grains, written once: the disk of an OVA",
            partial(_in_order, _stream_sink, _open_single),
            options=(*_COMMON, "grain", "level", "cid", "uuid"),
            sink=_stream_sink,
        ),
        Format("vhd", "the bytes and a footer: a fixed VHD, for Azure", _vhd),
        Format(
            "tar.gz",
            "disk.raw, packed without its holes, for Google Cloud",
            partial(_in_order, _targz_sink, _unpacked),
            sink=_targz_sink,
        ),
    )
}
