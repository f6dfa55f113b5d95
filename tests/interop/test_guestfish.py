# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A guest's file system, made, filled, trimmed and checked by libguestfs through our server.

libguestfs starts a small virtual machine, half a minute without hardware help, so this runs where VMDKIT_SLOW is
set and guestfish is installed (Debian: libguestfs-tools and a linux-image).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import vmdkit
from require import requires

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif("VMDKIT_SLOW" not in os.environ, reason="VMDKIT_SLOW is not set"),
    pytest.mark.skipif(shutil.which("guestfish") is None, reason="guestfish is not installed"),
    pytest.mark.timeout(600),
]

WORK = """\
run
mke2fs /dev/sda fstype:ext4
mount /dev/sda /
mkdir /d
copy-in {source} /d
fstrim /
sync
umount /
mount-ro /dev/sda /
ll /d
umount /
"""


def test_a_file_system_survives(tmp_path: Path) -> None:
    requires("qemu-img", "e2fsck")
    disk, socket = tmp_path / "disk.vmdk", tmp_path / "s"
    source = tmp_path / "file.bin"
    source.write_bytes(os.urandom(3_000_000))
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(disk), "256M"], check=True)
    server = subprocess.Popen(["vmdkit", "serve", "-w", "-t", "-U", str(socket), str(disk)])
    try:
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.05)
        subprocess.run(
            ["guestfish", "--format=raw", "-a", f"nbd:///?socket={socket}"],
            input=WORK.format(source=source), text=True, check=True, timeout=500,
            env={**os.environ, "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"},
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(30)
    raw = tmp_path / "disk.raw"
    with vmdkit.open(disk) as device, raw.open("wb") as out:
        assert not device.doubts  # type: ignore[attr-defined]
        out.write(device.pread(device.size, 0))
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", str(raw), str(disk)], check=True)
    subprocess.run(["e2fsck", "-fn", str(raw)], check=True)
    dumped = subprocess.run(["debugfs", "-R", "cat /d/file.bin", str(raw)], capture_output=True, check=True)
    assert dumped.stdout == source.read_bytes()
