# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How another program starts a server: systemd's socket activation, a socket on standard input, a parent to follow.

The environment is read by the command line, which passes it in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import threading
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError
from vmdkit.nbd.listening import Listener, inherited

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_FIRST_FD = 3  # sd_listen_fds(3)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_COPY_STEP = 65536  # bytes; what a pipe holds


def activated(environment: MutableMapping[str, str]) -> list[Listener]:
    """Return the sockets passed by systemd or libnbd; none where nothing was passed to this process.

    Takes the variables out of ``environment``, so that no child believes they are meant for it.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count:
        return []
    if not count.isdecimal() or not 0 < int(count) < 1000:
        raise UsageError(f"LISTEN_FDS is {count!r}; a number of sockets was expected")
    return [inherited(fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]


def standard_socket() -> tuple[socket.socket, Callable[[], None]]:
    """Return a socket that is standard input and output; both are then closed to everybody else.

    Where they are no socket (a shell's pipes), two threads carry the bytes to one end of a socket pair. The function
    beside it waits until all that the server said before it closed the socket has been taken.
    """
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(2, 1)  # whatever prints by mistake must not end up in the stream
    os.close(null)
    if stat.S_ISSOCK(os.fstat(stdin).st_mode):
        os.close(stdout)
        return socket.socket(fileno=stdin), lambda: None
    ours, theirs = socket.socketpair()
    threading.Thread(target=_pump_in, args=(stdin, theirs), name="nbd-stdin", daemon=True).start()
    out = threading.Thread(target=_pump_out, args=(theirs, stdout), name="nbd-stdout", daemon=True)
    out.start()
    return ours, out.join


def _pump_in(source: int, sock: socket.socket) -> None:
    try:
        while data := os.read(source, _COPY_STEP):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side is gone; the server notices by itself


def _pump_out(sock: socket.socket, sink: int) -> None:
    try:
        while data := sock.recv(_COPY_STEP):
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]
    except OSError:
        sock.close()
    os.close(sink)


def exit_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the process that started this one ends.

    ``parent`` is what getppid said when the program began: a parent that ended since then sends nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot follow the parent process")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
