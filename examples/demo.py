# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a small disk, serve it over NBD, write and read through the socket, and show where its bytes are.

Run it with `./dev demo`; needs nothing but vmdkit. Leaves nothing behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from nbd_read import Client

import vmdkit

MIB = 1024 * 1024


def show(*command: str) -> None:
    """Print a command as a user would type it, and run it."""
    print("$", *command, flush=True)
    subprocess.run(command, check=True)
    print()


def serve(disk: str, socket: str) -> subprocess.Popen[bytes]:
    """Start a server for writing, and wait until it listens."""
    print(f"$ vmdkit serve -w -U {socket} {disk} &", flush=True)
    server = subprocess.Popen(["vmdkit", "serve", "-w", "-U", socket, disk])
    for _ in range(200):
        if os.path.exists(socket) or server.poll() is not None:
            break
        time.sleep(0.05)
    return server


def main() -> int:
    """Run the demonstration; return 0 where every byte came back as it was sent."""
    message = b"written through NBD, durable after flush\n"
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        show("vmdkit", "create", "demo.vmdk", "64M")
        server = serve("demo.vmdk", "demo.sock")
        client = Client("demo.sock")
        client.pwrite(message, 10 * MIB)
        client.pwrite(bytes(range(256)) * 1024, 32 * MIB)
        client.flush()
        over_nbd = client.pread(len(message), 10 * MIB)
        client.close()
        server.wait(10)
        print(f"read back over NBD: {over_nbd.decode().strip()!r}\n")
        show("vmdkit", "info", "demo.vmdk")
        show("vmdkit", "map", "demo.vmdk")
        show("vmdkit", "hash", "demo.vmdk")
        with vmdkit.open("demo.vmdk") as disk:
            same = disk.pread(len(message), 10 * MIB) == over_nbd == message
    print("the same bytes from the file, from Python and over NBD" if same else "THE BYTES DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
