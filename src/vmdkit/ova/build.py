# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Build an OVA: disks of any kind become streams that VMware takes, and go straight into the archive.

A disk that is a sound stream already is taken as it is: packing it again would cost time, and gain nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit import kernels, opener
from vmdkit.errors import VmdkitError
from vmdkit.ops.copy import CopyOptions, ignore, stream
from vmdkit.ops.pool import THREADS
from vmdkit.ova.compose import DiskFacts, compose
from vmdkit.ova.disk import open_storage
from vmdkit.ova.look import Look, look
from vmdkit.ova.machine import CONTROLLERS, plain
from vmdkit.ova.rules import RULES, Level
from vmdkit.ova.targets import hardware_for
from vmdkit.ova.writer import Seal, Verbatim, Written, most, write_archive
from vmdkit.storage.file import open_file
from vmdkit.units import SECTOR
from vmdkit.vmdk.image import FileKind, classify
from vmdkit.vmdk.stream_writer import StreamRecipe, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack

    from vmdkit.device import Device
    from vmdkit.ops.sink import Output
    from vmdkit.ova.machine import DiskSpec, Machine
    from vmdkit.ova.targets import Target
    from vmdkit.ova.writer import Piece


@dataclass(frozen=True, slots=True)
class Packing:
    """How disks are packed. ``again`` packs streams that are sound already, too."""

    level: int = kernels.LEVEL
    threads: int = THREADS
    again: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """A disk that is packed into a stream on its way into the archive."""

    name: str
    device: Device
    recipe: StreamRecipe
    threads: int = THREADS

    @property
    def length(self) -> int:
        """Bytes of the disk."""
        return self.device.size

    def expected(self) -> Written:
        """Return the largest numbers it may have."""
        return most(self.device.size + -self.device.size % SECTOR)

    def write(self, output: Output, progress: Callable[[int], None]) -> Written:
        """Pack it; deflate in threads."""
        writer = StreamWriter(output, self.device.size, self.recipe, name=self.name)
        stream(self.device, writer, CopyOptions(threads=self.threads), progress)
        capacity = writer.header.capacity  # less than a grain, perhaps
        return Written(writer.written, capacity, min(capacity, writer.grains * writer.header.grain_size))


@dataclass(slots=True)
class Plan:
    """What will be built: the pieces of the archive, and their progress in bytes."""

    machine: Machine
    hardware: int
    stem: str
    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    total: int = 0


def plan(
    machine: Machine,
    targets: Sequence[Target],
    packing: Packing,
    open_source: Callable[[DiskSpec], Device],
    opened: ExitStack,
) -> Plan:
    """Open every disk, and decide how it goes into the archive; ``opened`` closes them.

    Raises UsageError for a machine that cannot be, and what opening raises.
    """
    machine.check()
    made = Plan(machine, machine.hardware or hardware_for(targets), plain(machine.name))
    for number, disk in enumerate(machine.disks, start=1):
        if not disk.source:
            continue
        name = disk.file or f"{made.stem}-disk{number}.vmdk"
        kind = CONTROLLERS[disk.controller or machine.controller]
        taken = None if packing.again else _as_it_is(disk, name, kind.adapter, targets, packing.threads, opened)
        if taken is not None:
            made.pieces.append(taken)
            made.total += taken.device.size
            made.notes.append(f"{disk.source}: a sound stream, taken as it is as {name}")
            continue
        device = opened.enter_context(open_source(disk))
        recipe = recipe_for(name, device.size, kind.adapter, made.hardware, packing)
        made.pieces.append(Packed(name, device, recipe, packing.threads))
        made.total += device.size
        made.notes.append(f"{disk.source}: packed as {name}")
    return made


def recipe_for(name: str, size: int, adapter: str, hardware: int, packing: Packing) -> StreamRecipe:
    """Return how a disk is packed; its content ID depends on name and size only, so that builds can be repeated."""
    digest = int.from_bytes(hashlib.sha256(f"{name} {size}".encode()).digest()[:4], "big")
    cid = digest % 0xFFFFFFF0 + 1  # none of the reserved ones
    return StreamRecipe(adapter=adapter, hwversion=str(hardware), level=packing.level, cid=f"{cid:08x}")


def _as_it_is(
    disk: DiskSpec, name: str, adapter: str, targets: Sequence[Target], threads: int, opened: ExitStack
) -> Verbatim | None:
    """Return a stream that breaks no rule as a piece; None for every other disk."""
    if disk.raw or opener.scheme_of(disk.source) is not None:
        return None
    device: Device
    try:
        if opener.names_archive(disk.source):
            device = open_storage(disk.source)[0]
        else:
            device = open_file(disk.source)
    except VmdkitError:
        return None
    if classify(device) is not FileKind.HOSTED:
        device.close()
        return None
    seen = look(device, threads=threads)
    fits = seen.text is not None and seen.text.ddb.get("adaptertype", "").lower() == adapter
    if not fits or not is_sound(seen, targets):
        device.close()
        return None
    opened.enter_context(device)
    return Verbatim(name, device, seen.capacity or 0, seen.populated or 0)


def is_sound(seen: Look, targets: Iterable[Target]) -> bool:
    """Tell whether a disk is a stream that none of the targets has anything against."""
    levels = {RULES[fault.rule].level(target) for fault in seen.faults for target in targets}
    return seen.is_stream and not levels & {Level.ERROR, Level.WARNING}


def build(target: Device, made: Plan, seal: Seal, progress: Callable[[int], None] = ignore) -> list[Written]:
    """Write the planned OVA into ``target``, an empty file that can grow."""

    def text(written: Sequence[Written]) -> bytes:
        rest = iter(zip(made.pieces, written, strict=True))
        facts: list[DiskFacts] = []
        for disk in made.machine.disks:
            if not disk.source:
                facts.append(DiskFacts("", disk.size))
                continue
            piece, one = next(rest)
            facts.append(DiskFacts(piece.name, one.capacity, one.size, one.populated))
        return compose(made.machine, facts, made.hardware)

    return write_archive(target, made.stem, text, made.pieces, seal, progress)
