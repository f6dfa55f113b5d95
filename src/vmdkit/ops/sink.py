# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a disk is written into in order: a pipe, a stream of compressed grains, a member of an archive.

``ops.copy.stream`` walks the source once and drives a Sink::

    read a piece ─► pack(offset, view) ─┐   any number of threads, in any order: scan, deflate, nothing else
    read a piece ─► pack(offset, view) ─┼─► put(packed)            one thread, ascending
    a run of zeros ─────────────────────┴─► zeros(offset, length)  the same thread, in its turn
                                            finish()               once, if all went well

A sink writes to an Output: anything with a ``write`` that takes all it is given. ``Tee`` makes one of any binary file
object, counts, and lets digests see the bytes on their way, so that a manifest costs no second reading.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from vmdkit.ops.offload import Pipe

Packed = TypeVar("Packed")


class Output(Protocol):
    """Where bytes are appended. A pipe, a buffered file, a member of a tar archive: nobody seeks."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of ``data``, or raise OSError."""


class Sink(Protocol[Packed]):
    """Takes a disk from its first byte to its last; the calls cover it without gaps and without overlaps.

    ``granularity`` (bytes, at least 1): every piece and every run of zeros begins at a multiple of it, and has a
    multiple of it as its length unless the disk ends there. Pieces have at most the larger of it and 1 MiB.

    There is no way to abort: where anything fails, no more calls come, ``finish`` least of all. So a sink must not
    own what needs closing, and what it has written until ``finish`` must not pass for a whole image.
    """

    @property
    def granularity(self) -> int:
        """Return what pieces and runs of zeros are a multiple of."""

    def pack(self, offset: int, view: memoryview, /) -> Packed:
        """Make of the bytes at ``offset`` what ``put`` will take; called by many threads at once, in any order.

        Returns something that does not refer to ``view``, whose memory is used again at once; or ``view`` itself,
        which then stays as it is until ``put`` has returned. Changes nothing else.
        """

    def put(self, packed: Packed, /) -> None:
        """Write what ``pack`` has made; called in the order of the disk, always by the same thread."""

    def zeros(self, offset: int, length: int, /) -> None:
        """Write a run of zeros, which nobody has read; in order with ``put``."""

    def finish(self) -> None:
        """Write what stands at the end; makes nothing durable and closes nothing."""


@runtime_checkable
class Sender(Protocol):
    """A sink of granularity 1 that can also have the kernel move bytes which lie in a file as they are."""

    def send(self, fd: int, at: int, count: int, /) -> int:
        """Move up to ``count`` bytes from ``at`` of ``fd``; return how many, 0 where they must be read."""


class Tee:
    """An Output over any binary file object: counts the bytes, and shows them to digests (anything with ``update``).

    Patient with raw files, whose ``write`` may take only a part. ``written`` is in bytes.
    """

    def __init__(self, output: Output, *digests: Digest) -> None:
        self._output = output
        self._digests = digests
        self.written = 0

    def write(self, data: bytes | memoryview, /) -> int:
        """Append all of ``data``; returns its length. Raises what the file object raises."""
        rest = memoryview(data)
        while rest:
            taken = self._output.write(rest)
            if taken is None and isinstance(self._output, io.RawIOBase):
                raise BlockingIOError("the output does not block; only a Pipe waits for it")
            rest = rest[taken:] if isinstance(taken, int) else rest[:0]
        for digest in self._digests:
            digest.update(data)
        self.written += len(data)
        return len(data)


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Take in the next bytes."""


class RawSink:
    """The bytes as they are, into a pipe; the kernel moves what lies in files."""

    granularity = 1

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def pack(self, offset: int, view: memoryview, /) -> memoryview:
        """Return ``view``."""
        return view

    def put(self, packed: memoryview, /) -> None:
        """Write the bytes."""
        self._pipe.write(packed)

    def zeros(self, offset: int, length: int, /) -> None:
        """Write that many zero bytes: a pipe has no holes."""
        self._pipe.zeros(length)

    def send(self, fd: int, at: int, count: int, /) -> int:
        """Move up to ``count`` bytes from the file; return how many, 0 where they must be read."""
        return self._pipe.send(fd, at, count)

    def finish(self) -> None:
        """Have nothing to add."""
