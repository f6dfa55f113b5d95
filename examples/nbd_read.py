# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest NBD client that reads and writes: what stands behind `vmdkit serve`, in sixty lines.

Usage: nbd_read.py SOCKET OFFSET LENGTH    (prints a hex dump)
"""

from __future__ import annotations

import socket
import struct
import sys

OPT_EXPORT_NAME, CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH = 1, 0, 1, 2, 3
HANDSHAKE = struct.Struct(">8s8sH")  # magic, magic, flags
OPTION = struct.Struct(">8sII")  # magic, option, length
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie


class Client:
    """One connection to a Unix socket, one request at a time, simple replies."""

    def __init__(self, path: str, export: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        magic, options, _ = HANDSHAKE.unpack(self._receive(HANDSHAKE.size))
        if (magic, options) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise ConnectionError("this is no NBD server")
        name = export.encode()
        self._socket.sendall(struct.pack(">I", 3) + OPTION.pack(b"IHAVEOPT", OPT_EXPORT_NAME, len(name)) + name)
        self.size, self.flags = struct.unpack(">QH", self._receive(10))

    def pread(self, count: int, offset: int) -> bytes:
        """Return ``count`` bytes at ``offset``."""
        self._ask(CMD_READ, offset, count)
        return self._receive(count)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write ``data`` at ``offset``."""
        self._ask(CMD_WRITE, offset, len(data), data)

    def flush(self) -> None:
        """Make what was written durable."""
        self._ask(CMD_FLUSH, 0, 0)

    def close(self) -> None:
        """Say goodbye."""
        self._socket.sendall(REQUEST.pack(0x25609513, 0, CMD_DISC, 0, 0, 0))
        self._socket.close()

    def _ask(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self._socket.sendall(REQUEST.pack(0x25609513, 0, command, 1, offset, length) + data)
        magic, error, _ = REPLY.unpack(self._receive(REPLY.size))
        if magic != 0x67446698:
            raise ConnectionError("this is no simple reply")
        if error:
            raise OSError(error, "the server refused")

    def _receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("the server hung up")
            parts += part
        return bytes(parts)


if __name__ == "__main__":
    client = Client(sys.argv[1])
    print(client.pread(int(sys.argv[3]), int(sys.argv[2])).hex(" ", 2))
    client.close()
