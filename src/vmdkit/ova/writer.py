# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write an OVA in one pass over its disks, though what stands first is only known at last.

::

    │ head │ OVF, padded │ head │ manifest │ head │ certificate │ head │ disk 1 ... │ head │ disk 2 ... │ end │
       ▲ sizes of the disks   ▲ digests       ▲ signature          ▲ size, when the disk is written

All that stands before the disks has a length that is known before: a manifest depends on names only, a signature on
the key, and the OVF is given room for the largest sizes there can be (white space may follow its last element). So
disks are packed straight into the archive, digested on their way, and the front is filled in by a seek at the end.
The archive takes its name only then: whoever calls gives a file that has none yet.

The same input gives the same bytes: owner, mode and time of the members are fixed.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from vmdkit.errors import UsageError
from vmdkit.kernels import ZEROS
from vmdkit.ops.copy import ignore
from vmdkit.ops.pool import read_ahead
from vmdkit.ops.sink import Tee
from vmdkit.ops.unchanged import unchanged
from vmdkit.ova import manifest, tar
from vmdkit.ranges import split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.device import Device
    from vmdkit.ops.sink import Output
    from vmdkit.ova.signature import Signer

_LARGEST_FILE: Final = 10**13 - 1  # bytes; a stream has at most 2 TiB (vmdk/stream_writer.py)


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it stands in the archive. ``capacity`` and ``populated`` are bytes of a disk, 0 for other files."""

    size: int
    capacity: int = 0
    populated: int = 0


class Piece(Protocol):
    """A file that goes into the archive."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def length(self) -> int:
        """Bytes that ``write`` reports as progress."""

    def expected(self) -> Written:
        """Return what it will be, or the largest numbers it may have."""

    def write(self, output: Output, progress: Callable[[int], None]) -> Written:
        """Append all its bytes."""


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A file that is taken as it is."""

    name: str
    device: Device
    capacity: int = 0
    populated: int = 0

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self.device.size

    def expected(self) -> Written:
        """Return what it is."""
        return Written(self.device.size, self.capacity, self.populated)

    def write(self, output: Output, progress: Callable[[int], None]) -> Written:
        """Append it, reading ahead by another thread."""
        with unchanged(self.device), closing(read_ahead(self.device, threads=1)) as pieces:
            for segment, view in pieces:
                if view is not None:
                    output.write(view)
                else:
                    for _, length in split(0, segment.length, len(ZEROS)):
                        output.write(memoryview(ZEROS)[:length])
                progress(segment.length)
        return self.expected()


@dataclass(frozen=True, slots=True)
class Seal:
    """How an archive is sealed: the kind of digests, empty for no manifest; who signs; the time of the members."""

    algorithm: str = "SHA256"
    signer: Signer | None = None
    mtime: int = 0  # seconds since 1970

    def check(self) -> None:
        """Raise UsageError for what contradicts itself."""
        if self.algorithm:
            manifest.hasher(self.algorithm)
        elif self.signer is not None:
            raise UsageError("a signature is made over the manifest; without one there is nothing to sign")


class Appender:
    """Appends to a device that can grow."""

    def __init__(self, device: Device, at: int) -> None:
        self._device = device
        self.at = at

    def write(self, data: bytes | memoryview, /) -> int:
        """Append all of ``data``."""
        end = self.at + len(data)
        if end > self._device.size:
            self._device.resize(end)
        self._device.pwrite(data, self.at)
        self.at = end
        return len(data)


def write_archive(
    target: Device,
    stem: str,
    compose: Callable[[Sequence[Written]], bytes],
    pieces: Sequence[Piece],
    seal: Seal,
    progress: Callable[[int], None] = ignore,
) -> list[Written]:
    """Write an OVA into ``target``, an empty file that can grow; return what became of the pieces.

    ``compose`` makes the descriptor of what was written; its length must not grow where numbers become smaller.
    Raises UsageError for names that a tar cannot hold, and what reading and writing raise.
    """
    seal.check()
    front = _Front(stem, len(compose([piece.expected() for piece in pieces])), [piece.name for piece in pieces], seal)
    out = Appender(target, front.size)
    digests: dict[str, str] = {}
    written: list[Written] = []
    for piece in pieces:
        head = out.at
        tar.header(piece.name, 0)  # refuses names before anything is written
        out.at += tar.BLOCK
        hasher = manifest.hasher(seal.algorithm or "SHA256")
        written.append(piece.write(Tee(out, hasher), progress))
        size = out.at - head - tar.BLOCK
        out.write(bytes(tar.padding(size)))
        Appender(target, head).write(tar.header(piece.name, size, seal.mtime))
        digests[piece.name] = hasher.hexdigest()
    end = out.at + 2 * tar.BLOCK
    target.resize(end + -end % tar.RECORD)
    front.fill(target, compose(written), digests)
    return written


class _Front:
    """The members before the disks: descriptor, manifest, certificate; their room, and later their bytes."""

    def __init__(self, stem: str, room: int, names: list[str], seal: Seal) -> None:
        self._seal = seal
        self._names = [f"{stem}.ovf"]
        self._rooms = [room]
        if seal.algorithm:
            self._names.append(f"{stem}.mf")
            self._rooms.append(manifest.size(seal.algorithm, [self._names[0], *names]))
        if seal.signer is not None:
            self._names.append(f"{stem}.cert")
            self._rooms.append(seal.signer.size(seal.algorithm, self._names[1]))
        for name in self._names:
            tar.header(name, 0)
        repeated = {name for name in [*self._names, *names] if [*self._names, *names].count(name) > 1}
        if repeated:
            raise UsageError(f"two files would be called {sorted(repeated)[0]!r}")

    @property
    def size(self) -> int:
        """Bytes that all of them take, with their headers."""
        return sum(tar.BLOCK + room + tar.padding(room) for room in self._rooms)

    def fill(self, target: Device, text: bytes, digests: dict[str, str]) -> None:
        """Write them."""
        if len(text) > self._rooms[0]:
            raise UsageError(f"the descriptor has {len(text)} bytes, room is for {self._rooms[0]}")
        text = text.rstrip(b"\n").ljust(self._rooms[0] - 1) + b"\n"
        files = [text]
        if self._seal.algorithm:
            hasher = manifest.hasher(self._seal.algorithm)
            hasher.update(text)
            listed = {self._names[0]: hasher.hexdigest(), **digests}
            files.append(manifest.render(self._seal.algorithm, listed))
        if self._seal.signer is not None:
            files.append(self._seal.signer.sign(self._seal.algorithm, self._names[1], files[1]))
        at = 0
        for name, data in zip(self._names, files, strict=True):
            block = tar.header(name, len(data), self._seal.mtime) + data + bytes(tar.padding(len(data)))
            target.pwrite(block, at)
            at += len(block)


def most(capacity: int) -> Written:
    """Return the largest numbers that a disk of ``capacity`` bytes may have once it is packed."""
    return Written(_LARGEST_FILE, capacity, capacity)
