# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Read a disk through qemu-nbd: a reader that others wrote, for proof."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UnsupportedError
from vmdkit.nbd.client import connect
from vmdkit.nbd.client_address import ActivatedAddress
from vmdkit.ops.verify import is_vhd
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device

PROGRAM: Final = "qemu-nbd"
_VERSION: Final = re.compile(r"\d+\.\d+(?:\.\d+)?")
_PATIENCE: Final = 30  # seconds that it gets to print its version


def version() -> str:
    """Return the version of qemu-nbd. Raises UnsupportedError where there is none."""
    if shutil.which(PROGRAM) is None:
        raise UnsupportedError(f"{PROGRAM} is not installed; in Debian it is in qemu-utils")
    told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False, timeout=_PATIENCE)
    found = _VERSION.search(told.stdout)
    return found[0] if found is not None else "of unknown version"


@contextmanager
def qemu_reader(written: Device) -> Iterator[Device]:
    """Give what qemu makes of the files of ``written``, which may have temporary names still.

    Raises UnsupportedError for what is made of no files, and where qemu-nbd is missing; what connecting raises.
    """
    version()
    with tempfile.TemporaryDirectory(prefix="vmdkit-") as directory:
        name, kind = _linked(written, directory)
        command = [PROGRAM, "--read-only", f"--format={kind}", "--persistent", "--shared=4", name]
        with connect(ActivatedAddress(command)) as device:
            yield device


def _linked(written: Device, directory: str) -> tuple[str, str]:
    """Link the files of a disk into a directory, under their last names; return the one to open, and its format."""
    if not isinstance(written, VmdkDisk):
        return _path(written), "vpc" if is_vhd(written) else "raw"
    first = ""
    for number, (line, extent) in enumerate(zip(written.descriptor.extents, written.extent_files, strict=False)):
        if extent.storage is None:
            continue
        link = os.path.join(directory, os.path.basename(line.name or f"extent{number}"))
        os.symlink(_path(extent.storage), link)
        first = link if extent.path == written.name else first
    if not first:
        first = os.path.join(directory, f"{os.urandom(6).hex()}.vmdk")
        os.symlink(os.path.abspath(written.name), first)
    return first, "vmdk"


def _path(file: Device) -> str:
    """Return a path that leads other processes to an open file, whatever its name is by now."""
    fd = file.fileno()
    if fd is None:
        raise UnsupportedError("it is made of no files that qemu could read", path=file.name)
    return f"/proc/{os.getpid()}/fd/{fd}"
