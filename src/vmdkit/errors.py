# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say what went wrong, where, and what was expected.

::

    VmdkitError(Exception)              .errno for NBD replies, .path, .offset
    ├─ UsageError            EINVAL     the caller asked nonsense
    ├─ OutOfRangeError       EINVAL     the request leaves the device
    ├─ ReadOnlyError         EPERM      a write to something opened for reading
    ├─ UnsupportedError      ENOTSUP    known, but not by this driver or not at all
    ├─ FormatError           EIO        the bytes are not what the format allows
    │  ├─ DescriptorError               has .line
    │  └─ CorruptError                  has .structure
    ├─ DifferenceError       EIO        what was written does not hold what its source holds
    ├─ ChainError            EIO        parent missing, content ID mismatch, loop
    ├─ GateError             EACCES     an image named something the gate refused
    ├─ LocalProtocolError    EPROTO     we were about to break NBD
    ├─ RemoteProtocolError   EPROTO     the peer broke NBD; the connection is dead
    ├─ ConnectionLostError   ENOTCONN   the server is gone or silent; what it was asked may have happened
    └─ ReplyError            from wire  the server said no; the connection lives

A class exists only where some caller treats it differently. ``OSError`` passes through with its path.
Rule for messages: what, where (path, offset in hex), what was expected.
"""

from __future__ import annotations

import errno


class VmdkitError(Exception):
    """Base of every error this package raises on purpose.

    ``errno`` is what an NBD server answers for it; ``path`` and ``offset`` (bytes) say where.
    """

    errno: int = errno.EIO

    def __init__(self, message: str, *, path: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.offset = offset

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        at = f" (at offset {self.offset:#x})" if self.offset is not None else ""
        return f"{where}{self.message}{at}"


class UsageError(VmdkitError):
    """The caller asked for something that has no meaning."""

    errno = errno.EINVAL


class OutOfRangeError(VmdkitError):
    """A request begins before 0 or ends after the device."""

    errno = errno.EINVAL


class ReadOnlyError(VmdkitError):
    """A write, zero or trim reached a device that was opened for reading."""

    errno = errno.EPERM


class UnsupportedError(VmdkitError):
    """Recognised, but this driver cannot do it; the message says why."""

    errno = errno.ENOTSUP


class FormatError(VmdkitError):
    """The bytes are not what the format allows."""


class DescriptorError(FormatError):
    """The text descriptor is wrong; ``line`` counts from 1, 0 means the text as a whole."""

    def __init__(self, message: str, *, path: str | None = None, line: int = 0) -> None:
        super().__init__(f"{message} (descriptor line {line})" if line else message, path=path)
        self.line = line


class CorruptError(FormatError):
    """A binary structure is wrong; ``structure`` names it in VMware's words."""

    def __init__(
        self, message: str, *, structure: str = "", path: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(f"{structure}: {message}" if structure else message, path=path, offset=offset)
        self.structure = structure


class DifferenceError(VmdkitError):
    """A copy, read again, is not what its source holds; ``offset`` is the first byte of the disk that differs."""


class ChainError(VmdkitError):
    """A parent is missing, changed, of another size, or its own descendant."""


class GateError(VmdkitError):
    """An image named a file that the gate does not open."""

    errno = errno.EACCES


class LocalProtocolError(VmdkitError):
    """We were about to break the NBD protocol; nothing was sent."""

    errno = errno.EPROTO


class RemoteProtocolError(VmdkitError):
    """The peer broke the NBD protocol; the connection is dead."""

    errno = errno.EPROTO


class ConnectionLostError(VmdkitError):
    """The server went away, or does not answer in time; ``closed`` where it was the server that ended it."""

    errno = errno.ENOTCONN

    def __init__(self, message: str, *, path: str | None = None, closed: bool = False) -> None:
        super().__init__(message, path=path)
        self.closed = closed


class ReplyError(VmdkitError):
    """The server answered a request with an error; the connection lives."""

    def __init__(self, message: str, number: int, *, path: str | None = None, offset: int | None = None) -> None:
        super().__init__(message, path=path, offset=offset)
        self.errno = number
