# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Sockets that clients can reach, each with the URI that reaches it.

NBD knows no users, so who can connect can read (users spec, A14): Unix sockets are made with mode 0600, TCP binds
to loopback unless an address is given, and whoever wants more has to say so to the command line.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import shutil
import socket
import stat
import sys
import tempfile
from typing import TYPE_CHECKING
from urllib.parse import quote

from vmdkit.errors import UsageError
from vmdkit.nbd.protocol import DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Callable

_BACKLOG = 128  # connections the kernel holds while the server is busy or full
_LONGEST_PATH = 107  # bytes of a Unix socket's name on Linux


class Listener:
    """A listening socket; ``open`` tells whether others than this user on this machine can reach it."""

    def __init__(self, sock: socket.socket, *, open: bool, cleanup: Callable[[], None] | None = None) -> None:  # noqa: A002
        self.sock = sock
        self.open = open
        self._cleanup = cleanup

    @property
    def path(self) -> str | None:
        """The path of a Unix socket; None for other kinds."""
        return self.sock.getsockname() if self.sock.family == socket.AF_UNIX else None

    @property
    def port(self) -> int | None:
        """The port of a TCP or vsock socket; None for other kinds."""
        return None if self.sock.family == socket.AF_UNIX else int(self.sock.getsockname()[1])

    def uri(self, export: str = "", *, tls: bool = False) -> str:
        """Return the NBD URI of an export behind this socket."""
        scheme, name = "nbds" if tls else "nbd", quote(export, safe="")
        address = self.sock.getsockname()
        if self.sock.family == socket.AF_UNIX:
            return f"{scheme}+unix:///{name}?socket={quote(address, safe='/')}"
        if self.sock.family == socket.AF_VSOCK:
            where = _own_cid() if address[0] == socket.VMADDR_CID_ANY else address[0]
            return f"{scheme}+vsock://{where}:{address[1]}/{name}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{scheme}://{host}:{address[1]}/{name}"

    def close(self, *, remove: bool = True) -> None:
        """Close the socket; with ``remove`` its name goes too."""
        self.sock.close()
        if remove and self._cleanup is not None:
            self._cleanup()
        self._cleanup = None


def unix(path: str | None = None) -> Listener:
    """Listen on a Unix socket that only this user can open; None makes one in a new private directory.

    A socket that nobody listens on any more is replaced. Raises UsageError where something else is in the way.
    """
    directory = None
    if path is None:
        directory = tempfile.mkdtemp(prefix="vmdkit-")
        path = os.path.join(directory, "nbd.sock")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError(f"a socket's path has at most {_LONGEST_PATH} bytes; choose a shorter one", path=path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # Linux creates the name with the mode of the socket: at no time is it open
        _bind(sock, path)
        sock.listen(_BACKLOG)
        made = os.stat(path)
    except BaseException:
        sock.close()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    if made.st_mode & 0o077:  # a file system that keeps its own modes
        os.chmod(path, 0o600)

    def cleanup() -> None:
        _unlink_if_ours(path, made)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    return Listener(sock, open=False, cleanup=cleanup)


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise OSError(error.errno, error.strerror, path) from error
        if not _abandoned(path):
            raise UsageError(
                "something is there already; choose another path, or remove it if no server uses it", path=path
            ) from error
        os.unlink(path)
        sock.bind(path)


def _abandoned(path: str) -> bool:
    """Tell whether ``path`` is a socket whose server is gone."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _unlink_if_ours(path: str, made: os.stat_result) -> None:
    try:
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino):
            os.unlink(path)
    except OSError:
        pass  # gone already, or no longer ours to remove


def tcp(host: str | None = None, port: int = DEFAULT_PORT) -> Listener:
    """Listen on TCP; without ``host`` on the loopback address. ``port`` 0 takes a free one."""
    host = "127.0.0.1" if host is None else host
    if not 0 <= port < 2**16:
        raise UsageError(f"{port} is no port; write a number from 0 to 65535")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"{host!r} is no address of this machine: {error.strerror}") from error
    sock = socket.socket(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return Listener(sock, open=not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback)


def vsock(port: int = DEFAULT_PORT) -> Listener:
    """Listen for virtual machines of this host, or for the host from inside one. VMADDR_PORT_ANY takes a free port."""
    if not 0 <= port < 2**32:
        raise UsageError(f"{port} is no vsock port; write a number from 0 to 4294967295")
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((socket.VMADDR_CID_ANY, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, f"vsock port {port}") from error
    return Listener(sock, open=True)


def _own_cid() -> int:
    """Return the number by which others reach this machine (vsock(7)): a guest's own, or that of every host."""
    try:
        with open("/dev/vsock", "rb") as device:
            told = fcntl.ioctl(device, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
    except OSError:
        return socket.VMADDR_CID_HOST
    own = int.from_bytes(told, sys.byteorder)
    return socket.VMADDR_CID_HOST if own == socket.VMADDR_CID_ANY else own


def inherited(fd: int) -> Listener:
    """Take over a listening socket that somebody else made, and will remove; who reaches it is their decision."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise UsageError(f"descriptor {fd}, passed by socket activation, is no listening stream socket")
    return Listener(sock, open=False)
