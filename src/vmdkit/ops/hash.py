# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Digest what the guest sees in one run, as the raw image would be, without reading holes.

The tree hash (``tree_hash``) is faster, and the one to use between disks; this one is what other programs print.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING

from vmdkit import ranges
from vmdkit.device import Extent, ExtentFlags
from vmdkit.errors import UsageError
from vmdkit.kernels import ZEROS
from vmdkit.ops.copy import ignore
from vmdkit.ops.plan import naming
from vmdkit.ops.pool import THREADS, ordered, read_ahead
from vmdkit.ops.tree import hash_function
from vmdkit.ops.unchanged import unchanged
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from vmdkit.device import Device
    from vmdkit.ops.tree import Digest

_SMALL = 4 * MIB  # bytes; a smaller extent is digested by one thread, several at once


def hasher(algorithm: str) -> Digest:
    """Return a fresh digest: ``blake3`` or any name of hashlib.

    Raises UsageError for an unknown name, UnsupportedError where blake3 is not installed.
    """
    if algorithm == "blake3":
        return hash_function(algorithm)(b"")
    try:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    except (ValueError, TypeError) as error:
        names = ", ".join(sorted({"blake3", "sha256", "sha512", "blake2b", "md5"}))
        raise UsageError(f"no digest is called {algorithm!r}; usual ones are {names}") from error
    if not digest.digest_size:
        raise UsageError(f"{algorithm} has no length of its own and names no digest")
    return digest


def hash_device(
    device: Device,
    algorithm: str = "sha256",
    *,
    count: int | None = None,
    offset: int = 0,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> str:
    """Return the hex digest of ``count`` bytes from ``offset`` (default: all), reading ahead while hashing.

    Raises what ``hasher`` and reading raise.
    """
    digest = hasher(algorithm)
    zeros = memoryview(ZEROS)
    with unchanged(device), closing(read_ahead(device, threads=threads, count=count, offset=offset)) as pieces:
        for segment, view in pieces:
            if view is not None:
                digest.update(view)
                progress(segment.length)
                continue
            for _, step in ranges.split(0, segment.length, len(zeros)):
                digest.update(zeros[:step])
                progress(step)
    return digest.hexdigest()


def hash_extents(
    device: Device,
    algorithm: str = "sha256",
    *,
    progress: Callable[[int], None] = ignore,
    threads: int = THREADS,
) -> Generator[tuple[Extent, str | None], None, None]:
    """Yield each extent with its digest; None where it is zero, which says all. Raises as ``hash_device``.

    Callers close it (contextlib.closing), so that no thread outlives an error of their own.
    """
    hasher(algorithm)  # says early what it has to say

    def small(extent: Extent) -> bool:
        return not extent.flags & ExtentFlags.ZERO and extent.length <= _SMALL

    def digest(extent: Extent) -> tuple[Extent, str | None]:
        if extent.flags & ExtentFlags.ZERO:
            return extent, None
        offset, length = extent.offset, extent.length
        if not small(extent):
            return extent, hash_device(
                device, algorithm, count=length, offset=offset, progress=progress, threads=threads
            )
        made = hasher(algorithm)
        with naming(offset, length, device):
            made.update(memoryview(device.pread(length, offset)))
        return extent, made.hexdigest()

    with unchanged(device), closing(ordered(digest, device.extents(), threads=threads, heavy=small)) as digested:
        for extent, text in digested:
            if text is None or small(extent):
                progress(extent.length)  # a large one has told already
            yield extent, text
