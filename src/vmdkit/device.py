# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The one interface of the project: a Device is a fixed number of bytes that can be read, perhaps written.

Callers use the public verbs; they are final, and are the *checked edge*: range, mode, alignment and the answers of
the driver are checked here, once. Drivers fill in the underscored verbs and may rely on what the edge promises.

::

      caller:   pread_into pread pwrite zero trim flush cache extents locate place close
      ────────────────────────────── the checked edge ───────────────────────────────────
      driver:  _pread_into      _pwrite _zero _trim _flush _cache _extents _locate _place _close
               (required)       (each absent one has exactly one default)

Contract (printed with examples in docs/device.md, asserted by tests/conformance):

* Reads are positional, complete and thread-safe: a call fills the whole buffer or raises.
* Zero-length calls return at once and never reach the driver; a range outside the device raises before it.
* A driver sees only ranges aligned to ``block_size.minimum``.
* No order is promised between writes until ``flush``; after it returns, completed writes survive power loss.
* ``zero`` always leaves zeros; ``trim`` is advice; ``fast=True`` is fast or raises UnsupportedError.
* ``extents`` and ``locate`` cover exactly the asked range, ascending, contiguous, joined where equal.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, Final, NamedTuple, final

from vmdkit import ranges
from vmdkit.errors import (
    LocalProtocolError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
    UsageError,
)
from vmdkit.kernels import ZEROS
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    Buffer = bytes | bytearray | memoryview

ALLOCATION: Final = "base:allocation"  # flags: HOLE and ZERO below, as NBD
DEPTH: Final = "qemu:allocation-depth"  # flags: 0 unallocated, 1 this layer, 2 its parent, ...
_DISCARD_STEP = MIB  # bytes read and dropped at once by the default cache verb


class Can(IntFlag):
    """What a device offers beyond reading."""

    NONE = 0
    WRITE = 1
    FLUSH = 2
    FUA = 4
    ZERO = 8
    FAST_ZERO = 16
    TRIM = 32
    EXTENTS = 64
    CACHE = 128
    MULTI_CONN = 256  # flush on one connection covers what completed on all
    RESIZE = 0x200  # the end can be moved; what VMDK needs of the files it grows
    FORK = 0x400  # processes forked after opening may all use it
    PLACE = 0x800  # says where bytes that are about to be written belong


class BlockSize(NamedTuple):
    """Request sizes in bytes, as NBD_INFO_BLOCK_SIZE: what must, should and may be asked."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 * MIB


class ExtentFlags(IntFlag):
    """What a run of ``base:allocation`` holds; the bits of NBD."""

    DATA = 0
    HOLE = 1
    ZERO = 2


HOLE_ZERO: Final = int(ExtentFlags.HOLE | ExtentFlags.ZERO)


class Extent(NamedTuple):
    """A run of bytes with the flags of one context; ``offset`` and ``length`` in bytes."""

    offset: int
    length: int
    flags: int


class Kind(Enum):
    """Where the bytes of a location are."""

    DATA = "data"  # verbatim in ``storage`` at ``at``
    HOLE = "hole"  # nowhere, reads as zero
    ZERO = "zero"  # stated to be zero
    COMPRESSED = "compressed"  # in ``storage``, but not verbatim
    UNKNOWN = "unknown"  # ask pread


class Location(NamedTuple):
    """A run of bytes and the place that holds them: ``storage[at : at + length]`` where ``kind`` is DATA.

    ``depth`` counts layers from the top (0) down the chain of parents.
    """

    offset: int
    length: int
    kind: Kind
    storage: Device | None = None
    at: int = 0
    depth: int = 0


class Device(ABC):
    """A fixed number of bytes. See the module's text for the contract."""

    def __init__(
        self,
        size: int,
        *,
        name: str = "",
        can: Can = Can.NONE,
        block_size: BlockSize = BlockSize(),  # noqa: B008  # immutable
        contexts: tuple[str, ...] = (ALLOCATION,),
    ) -> None:
        if size % block_size.minimum:
            raise UsageError(f"{size} bytes are no whole blocks of {block_size.minimum}", path=name)
        self._size = size
        self._end = size  # -1 once closed, so that one comparison guards both range and life
        self._set_can(can)
        self._block_size = block_size
        self._contexts = contexts
        self._name = name
        self._closing = threading.Lock()

    def _set_can(self, can: Can) -> None:
        """Say what the device offers; flags cost a microsecond to test, so the edge keeps its answers plain."""
        self._can = can
        self._writable = bool(can & Can.WRITE)

    # ── what it is ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """Bytes; constant while open, unless ``resize`` moves it."""
        return self._size

    @property
    def name(self) -> str:
        """What messages call this device: a path, a URI, or empty."""
        return self._name

    @property
    def can(self) -> Can:
        """What it offers beyond reading."""
        return self._can

    @property
    def block_size(self) -> BlockSize:
        """Minimum, preferred and maximum request in bytes; the edge makes any request fit the minimum."""
        return self._block_size

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names that ``extents`` understands."""
        return self._contexts

    @property
    def parallel(self) -> int:
        """How many requests at once pay here, as over a network; 0 where two are as good as many."""
        return 0

    @property
    def writable(self) -> bool:
        """Whether pwrite, zero and trim may be called."""
        return self._writable

    @property
    def in_place(self) -> bool:
        """Whether writing a DATA location of depth 0 where it lies does now what ``pwrite`` does.

        For servers, which know the place from ``locate`` and save the way through the device. Who has written so
        must call ``overwritten`` before anybody is told, and must not do it while another thread trims or zeroes.
        A place whose storage is not writable stays out of reach all the same.
        """
        return False

    def overwritten(self) -> None:
        """Take note of bytes that were written in place: the next flush has to cover them."""

    def fileno(self) -> int | None:
        """Return the descriptor whose byte N is byte N of this device; None where there is none.

        For copy offload (copy_file_range, sendfile) and for callers that have already checked their range.
        """
        return None

    def parts(self) -> Iterable[Device]:
        """Return the devices that this one reads from directly: files, parents, what it stands in front of."""
        return ()

    # ── the checked edge ─────────────────────────────────────────────────────────────────────────────────────

    @final
    def pread_into(self, buf: bytearray | memoryview, offset: int) -> None:
        """Fill ``buf`` with the bytes at ``offset``; raises OutOfRangeError, FormatError or OSError."""
        view = memoryview(buf).cast("B")
        count = len(view)
        if offset < 0 or count > self._end - offset:
            raise self._refuse(offset, count)
        if not count:
            return
        minimum = self._block_size.minimum
        if minimum > 1 and (offset % minimum or count % minimum):
            start, length = ranges.align(offset, count, minimum)
            whole = memoryview(bytearray(length))
            self._pread_into(whole, start)
            view[:] = whole[offset - start : offset - start + count]
            return
        self._pread_into(view, offset)

    @final
    def pread(self, count: int, offset: int) -> bytearray:
        """Return ``count`` bytes at ``offset`` (the argument order is libnbd's)."""
        if offset < 0 or count < 0 or count > self._end - offset:
            raise self._refuse(offset, count)
        buf = bytearray(count)
        self.pread_into(buf, offset)
        return buf

    @final
    def pwrite(self, buf: Buffer, offset: int, *, fua: bool = False) -> None:
        """Write all of ``buf`` at ``offset``; with ``fua`` it is durable on return."""
        view = memoryview(buf).cast("B")
        if not self._may_change(offset, len(view)):
            return
        start, minimum = offset, self._block_size.minimum
        if minimum > 1 and (offset % minimum or len(view) % minimum):
            start, length = ranges.align(offset, len(view), minimum)
            whole = memoryview(bytearray(length))
            self._pread_into(whole, start)
            whole[offset - start : offset - start + len(view)] = view
            view = whole
        if fua:
            self._pwrite_fua(view, start)
        else:
            self._pwrite(view, start)

    @final
    def zero(self, count: int, offset: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False) -> None:
        """Make ``count`` bytes at ``offset`` zero.

        ``no_hole`` keeps the space allocated. ``fast`` raises UnsupportedError rather than writing zeros.
        """
        if not self._may_change(offset, count):
            return
        if fast and not self._can & Can.FAST_ZERO:
            raise UnsupportedError("zeroing is not faster than writing here", path=self._name)
        head, middle, tail = self._cut(offset, count)
        if fast and (head[1] or tail[1]):
            raise UnsupportedError("a part of a block cannot be zeroed fast", path=self._name)
        for at, length in (head, tail):
            if length:
                self.pwrite(bytes(length), at)
        if middle[1]:
            self._zero(middle[1], middle[0], no_hole=no_hole, fast=fast)
        if fua:
            self._flush()

    @final
    def trim(self, count: int, offset: int, *, fua: bool = False) -> None:
        """Say that ``count`` bytes at ``offset`` are no longer needed; they may read as anything afterwards."""
        if not self._may_change(offset, count):
            return
        _, (start, length), _ = self._cut(offset, count)
        if length:
            self._trim(length, start)
        if fua:
            self._flush()

    @final
    def flush(self) -> None:
        """Make every completed write durable."""
        self._alive()
        self._flush()

    @final
    def resize(self, size: int, *, reserve: bool = False) -> None:
        """Move the end to ``size`` bytes; what is added reads as zero. For drivers that grow their files.

        ``reserve`` takes the space of what is added, where the storage can: writing it will not fail for lack of
        space, and it lies together.
        """
        self._alive()
        if not self._can & Can.RESIZE:
            raise UnsupportedError("its size cannot be changed", path=self._name)
        if size < 0:
            raise UsageError(f"{size} is no size", path=self._name)
        self._resize(size, reserve=reserve)
        self._size = self._end = size

    @final
    def cache(self, count: int, offset: int) -> None:
        """Bring ``count`` bytes at ``offset`` near; advice, but errors of reading are raised."""
        self._check(offset, count)
        if count:
            start, length = ranges.align(offset, count, self._block_size.minimum)
            self._cache(length, start)

    @final
    def extents(self, count: int | None = None, offset: int = 0, *, context: str = ALLOCATION) -> Iterator[Extent]:
        """Yield the runs of ``context`` that cover ``count`` bytes from ``offset`` (default: all).

        Raises UsageError for a context that is not in ``contexts``.
        """
        if context not in self._contexts:
            raise UsageError(f"no context {context!r} here, only {', '.join(self._contexts)}", path=self._name)
        count = self._size - offset if count is None else count
        self._check(offset, count)
        runs = self._checked_extents(count, offset, context)
        return (Extent(*run) for run in ranges.coalesce(runs))

    @final
    def locate(self, count: int | None = None, offset: int = 0) -> Iterator[Location]:
        """Yield where each run of ``count`` bytes from ``offset`` lies (default: all).

        An answer stays true while the device is open, unless this device is written through.
        """
        count = self._size - offset if count is None else count
        self._check(offset, count)
        return self._joined_locations(count, offset)

    @final
    def place(self, count: int, offset: int) -> Location | None:
        """Return where the first of ``count`` bytes at ``offset`` belong, for a caller that writes them there itself.

        The run is DATA and at least a byte long; all of it has to be written, through ``storage`` or its descriptor,
        before anything else is done with this range. None: only ``pwrite`` can. For what the kernel can move.
        """
        if not self._may_change(offset, count):
            return None
        run = self._place(count, offset)
        if run is not None and (run.offset != offset or not 0 < run.length <= count or run.kind is not Kind.DATA):
            raise self._lied("place", run.offset, run.length, offset)
        return run

    @final
    def close(self) -> None:
        """Give back what the device holds; later calls raise, a second close does nothing."""
        with self._closing:
            if self._end == -1:
                return
            self._end = -1
        self._close()

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._end == -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._size} bytes{' closed' if self.closed else ''}>"

    # ── for drivers ──────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def _pread_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` (never empty, in range, aligned); many threads may call at once."""

    def _pwrite(self, view: memoryview, offset: int) -> None:
        """Write all of ``view``; called only where ``can`` has WRITE."""
        raise ReadOnlyError("this device has no way to write", path=self._name)

    def _pwrite_fua(self, view: memoryview, offset: int) -> None:
        """Write ``view`` so that it is durable. Default: a write and a flush."""
        self._pwrite(view, offset)
        self._flush()

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        """Default: write zeros, a piece at a time; ``fast`` never arrives without Can.FAST_ZERO."""
        zeros = memoryview(ZEROS)
        end = offset + count
        while offset < end:
            step = min(len(zeros), end - offset)
            self._pwrite(zeros[:step], offset)
            offset += step

    def _trim(self, count: int, offset: int) -> None:
        """Default: nothing; trim is advice."""

    def _resize(self, size: int, *, reserve: bool) -> None:
        """Move the end, or leave it where it was and raise; called only where ``can`` has RESIZE."""

    def _flush(self) -> None:
        """Default: nothing; right where there is nothing volatile."""

    def _cache(self, count: int, offset: int) -> None:
        """Default: read and drop."""
        scratch = memoryview(bytearray(min(count, _DISCARD_STEP)))
        end = offset + count
        while offset < end:
            step = min(len(scratch), end - offset)
            self._pread_into(scratch[:step], offset)
            offset += step

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        """Yield ``(offset, length, flags)`` from ``offset`` on; may stop early after at least one.

        Default: one run of data, which is always a legal answer.
        """
        yield offset, count, 0

    def _locate(self, count: int, offset: int) -> Iterator[Location]:
        """Yield locations from ``offset`` on; may stop early after at least one. Default: unknown."""
        yield Location(offset, count, Kind.UNKNOWN)

    def _place(self, count: int, offset: int) -> Location | None:
        """Say where the beginning of a range belongs, and count it as written. Default: not known."""
        return None

    def _close(self) -> None:
        """Default: nothing to give back."""

    # ── the edge's own checks ────────────────────────────────────────────────────────────────────────────────

    def _alive(self) -> None:
        if self._end == -1:
            raise UsageError("the device is closed", path=self._name)

    def _refuse(self, offset: int, count: int) -> UsageError | OutOfRangeError:
        if self._end == -1:
            return UsageError("the device is closed", path=self._name)
        return OutOfRangeError(f"{count} bytes at {offset} leave the device, which has {self._size}", path=self._name)

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or count > self._end - offset:
            raise self._refuse(offset, count)

    def _may_change(self, offset: int, count: int) -> bool:
        if offset < 0 or count < 0 or count > self._end - offset:
            raise self._refuse(offset, count)
        if not self._writable:
            raise ReadOnlyError("opened for reading only", path=self._name)
        return count > 0

    def _cut(self, offset: int, count: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Cut a range into unaligned head, whole blocks, unaligned tail, each ``(offset, length)``."""
        minimum, end = self._block_size.minimum, offset + count
        start = min(-(-offset // minimum) * minimum, end)
        stop = max(end - end % minimum, start)
        return (offset, start - offset), (start, stop - start), (stop, end - stop)

    def _checked_extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        end = offset + count
        while offset < end:
            before = offset
            for start, length, flags in self._extents(end - offset, offset, context):
                if start != offset or length <= 0:
                    raise self._lied("extents", start, length, offset)
                step = min(length, end - offset)
                yield offset, step, flags
                offset += step
                if offset == end:
                    return
            if offset == before:
                raise self._lied("extents", offset, 0, offset)

    def _joined_locations(self, count: int, offset: int) -> Iterator[Location]:
        """Check the driver's locations and join neighbours that continue one another."""
        last: Location | None = None
        for run in self._checked_locations(count, offset):
            if (
                last is not None
                and run.kind is last.kind
                and run.storage is last.storage
                and run.depth == last.depth
                and (run.kind is not Kind.DATA or run.at == last.at + last.length)
            ):
                last = last._replace(length=last.length + run.length)
                continue
            if last is not None:
                yield last
            last = run
        if last is not None:
            yield last

    def _checked_locations(self, count: int, offset: int) -> Iterator[Location]:
        end = offset + count
        while offset < end:
            before = offset
            for run in self._locate(end - offset, offset):
                if run.offset != offset or run.length <= 0:
                    raise self._lied("locate", run.offset, run.length, offset)
                if run.length > end - offset:
                    run = run._replace(length=end - offset)
                yield run
                offset += run.length
                if offset == end:
                    return
            if offset == before:
                raise self._lied("locate", offset, 0, offset)

    def _lied(self, verb: str, start: int, length: int, expected: int) -> LocalProtocolError:
        return LocalProtocolError(
            f"{type(self).__name__} answered {verb} with {length} bytes at {start}; "
            f"a run that begins at {expected} was due",
            path=self._name,
        )
