# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Unpack the disk of a gzip'd tar again, by Python's own modules: to compare it with what was packed."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
import zlib
from typing import TYPE_CHECKING

from vmdkit.errors import FormatError
from vmdkit.kernels import is_zero
from vmdkit.storage.file import FileDevice
from vmdkit.units import MIB

if TYPE_CHECKING:
    from vmdkit.device import Device


def unpack(packed: Device, directory: str) -> FileDevice:
    """Return the one member of ``packed`` (closed by this) as a file in ``directory`` that has no name.

    It takes the space of its data. Raises FormatError for anything but one regular member.
    """
    fd = packed.fileno()
    with packed, tempfile.TemporaryFile(dir=directory, prefix=".vmdkit-") as out:
        try:
            with (
                open(f"/proc/self/fd/{fd}", "rb") as raw,
                gzip.GzipFile(fileobj=raw) as whole,
                tarfile.open(fileobj=whole, mode="r:") as archive,
            ):
                members = archive.getmembers()
                member = archive.extractfile(members[0]) if len(members) == 1 else None
                if member is None:
                    raise FormatError("there is not one disk in this archive", path=packed.name)
                os.ftruncate(out.fileno(), members[0].size)
                at = 0
                while piece := member.read(MIB):
                    if not is_zero(piece):
                        os.pwrite(out.fileno(), piece, at)
                    at += len(piece)
                while whole.read(MIB):  # the checksum stands at the end, behind the archive
                    pass
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise FormatError(f"it cannot be unpacked: {error}", path=packed.name) from error
        return FileDevice(os.dup(out.fileno()), packed.name)
