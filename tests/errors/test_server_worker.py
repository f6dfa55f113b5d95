# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A worker whose parent goes away at a bad moment ends in order."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest

from vmdkit.nbd import Export, Options
from vmdkit.nbd.export import Exports
from vmdkit.nbd.loop import Loop
from vmdkit.nbd.workers import work
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the parent's and the worker's end; give SIGTERM back to whom it belongs."""
    handler = signal.getsignal(signal.SIGTERM)
    parent, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with parent, worker:
        yield parent, worker
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("words", [(), (b"cn",), (b"cn", b"c", b"cn")])
def test_the_parent_closes(control: tuple[socket.socket, socket.socket], words: tuple[bytes, ...]) -> None:
    # What the parent has not read of the worker's words makes the worker's end fail with ECONNRESET. libnbd ends a
    # server right behind its own connection: "a worker failed" stood on stderr then.
    parent, worker = control
    for word in words:
        worker.send(word)
    parent.close()
    with MemoryDevice(4096) as device:
        work(Loop(Options().config(Exports([Export(device)]))), worker)
