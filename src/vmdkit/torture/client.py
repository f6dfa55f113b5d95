# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest NBD client that can torture: one connection, one request at a time, simple replies."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

from vmdkit.errors import RemoteProtocolError

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">I8sII")  # client flags, magic, option, length
_EXPORT = struct.Struct(">QH")  # size, transmission flags
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZERO = 0, 1, 2, 3, 4, 6
_FUA, _NO_HOLE = 1, 2
_FLAGS = {"flush": 4, "fua": 8, "trim": 32, "zero": 64}  # what a server may offer
_BOTH_FLAGS = 3  # fixed newstyle, no padding
_PATIENCE = 60.0  # seconds for one answer


class Clock:
    """Real time in nanoseconds, never the same twice: what strace stamps its lines with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def tick(self) -> int:
        """Return the moment, later than all before."""
        with self._lock:
            self._last = max(time.time_ns(), self._last + 1)
            return self._last


class Client:
    """A connection to the NBD server at a Unix socket; ``offers`` says which requests it takes."""

    def __init__(self, path: str, export: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.connect(path)
            magic, options, _ = _GREETING.unpack(self._receive(_GREETING.size))
            if (magic, options) != (b"NBDMAGIC", b"IHAVEOPT"):
                raise RemoteProtocolError("this is no NBD server", path=path)
            name = export.encode()
            self._socket.sendall(_OPTION.pack(_BOTH_FLAGS, b"IHAVEOPT", 1, len(name)) + name)
            self.size, flags = _EXPORT.unpack(self._receive(_EXPORT.size))
        except BaseException:
            self._socket.close()
            raise
        self.offers = {verb for verb, bit in _FLAGS.items() if flags & bit}

    def pread(self, count: int, offset: int) -> bytes:
        """Return ``count`` bytes at ``offset``."""
        self._ask(_READ, offset, count)
        return self._receive(count)

    def pwrite(self, buf: bytes, offset: int, *, fua: bool = False) -> None:
        """Write ``buf`` at ``offset``."""
        self._ask(_WRITE, offset, len(buf), bytes(buf), flags=_FUA * fua)

    def zero(self, count: int, offset: int, *, no_hole: bool = False, fua: bool = False) -> None:
        """Make a range zero."""
        self._ask(_ZERO, offset, count, flags=_FUA * fua | _NO_HOLE * no_hole)

    def trim(self, count: int, offset: int, *, fua: bool = False) -> None:
        """Give up a range."""
        self._ask(_TRIM, offset, count, flags=_FUA * fua)

    def flush(self) -> None:
        """Make durable what was answered."""
        self._ask(_FLUSH, 0, 0)

    def close(self) -> None:
        """Say goodbye."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self._socket.close()

    def _ask(self, command: int, offset: int, length: int, data: bytes = b"", *, flags: int = 0) -> None:
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, flags, command, 1, offset, length) + data)
        magic, error, _ = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC:
            raise RemoteProtocolError("this is no simple reply")
        if error:
            raise OSError(error, os.strerror(error))

    def _receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise RemoteProtocolError("the server hung up")
            parts += part
        return bytes(parts)
