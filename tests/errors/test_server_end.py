# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Ending a server at the moment when something else happens."""

from __future__ import annotations

import os

from nbdwire import connect, serving
from vmdkit.nbd.pool import Pool
from vmdkit.storage.memory import MemoryDevice


def test_waking_a_pool_that_was_closed() -> None:
    # Its descriptor is gone, and the number may be that of somebody's file by then.
    reader, writer = os.pipe2(os.O_NONBLOCK)  # first, or the pipe itself takes the number
    pool = Pool()
    number = pool.fileno()
    pool.close()
    try:
        os.dup2(writer, number)
        pool.wake()
        try:
            assert os.read(reader, 100) == b""
        except BlockingIOError:
            pass  # nothing was written
        os.close(number)
    finally:
        os.close(reader)
        os.close(writer)


def test_clients_that_leave_while_the_server_ends() -> None:
    # The loop saw the end, woken by the client, and had closed its descriptors before it was woken for that.
    with MemoryDevice(4096) as device:
        for _ in range(300):
            with serving(device) as server:
                client = connect(server)
                client.hello()
                client.sock.close()
