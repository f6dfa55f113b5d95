# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Devices that fail: the client is told, without a path of the server, and the connection lives."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import connect, serving
from vmdkit.errors import CorruptError
from vmdkit.filters.fault import Fault, FaultDevice
from vmdkit.storage.file import open_file
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import MIB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("length", [512, 100_000, 3 * MIB])
def test_read_error(mode: int, length: int) -> None:
    memory = MemoryDevice(b"m" * 8 * MIB, name="/secret/place")
    with (
        memory,
        FaultDevice(memory, [Fault("read", 4 * MIB, 512)]) as device,
        serving(device) as server,
        connect(server) as client,
    ):
        client.enter(mode)
        reply = client.request(n.READ, 4 * MIB + 512 - length, length)
        assert reply.error == n.EIO
        if mode:
            assert reply.message == os.strerror(errno.EIO)
        assert client.read(0, 512) == b"m" * 512


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, n.ENOSPC), (errno.EDQUOT, n.ENOSPC), (errno.EROFS, n.EPERM), (errno.ENOTCONN, n.EIO)],
)
@pytest.mark.parametrize("length", [512, 200_000, 2 * MIB])
def test_write_error(number: int, error: int, length: int) -> None:
    memory = MemoryDevice(8 * MIB)
    with (
        memory,
        FaultDevice(memory, [Fault("write", 0, 512, error=number)]) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter()
        assert client.write(0, b"w" * length).error == error
        assert client.write(MIB * 4, b"w" * length).error == 0
        assert client.read(4 * MIB, length) == b"w" * length


@pytest.mark.parametrize("command", [n.FLUSH, n.TRIM, n.ZERO, n.CACHE])
@pytest.mark.parametrize("length", [4096, 2 * MIB])
def test_other_errors(command: int, length: int) -> None:
    verb = {n.FLUSH: "flush", n.TRIM: "trim", n.ZERO: "zero", n.CACHE: "cache"}[command]
    memory = MemoryDevice(8 * MIB)
    with (
        memory,
        FaultDevice(memory, [Fault(verb, times=1)]) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter()
        size = 0 if command == n.FLUSH else length
        assert client.request(command, 0, size).error == n.EIO
        assert client.request(command, 0, size).error == 0


def test_flush_error_reaches_fua() -> None:
    memory = MemoryDevice(8 * MIB)
    with (
        memory,
        FaultDevice(memory, [Fault("flush", times=1)]) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter()
        assert client.write(0, b"x", n.FUA).error == n.EIO
        assert client.write(0, b"x", n.FUA).error == 0


@pytest.mark.parametrize("length", [65536, 100 * MIB])
def test_status_error(length: int) -> None:
    memory = MemoryDevice(100 * MIB)
    with (
        memory,
        FaultDevice(memory, [Fault("extents", times=1)]) as device,
        serving(device) as server,
        connect(server) as client,
    ):
        client.enter(contexts=["base:allocation"])
        assert client.request(n.STATUS, 0, length).error == n.EIO
        assert client.request(n.STATUS, 0, length).extents() == {1: [(length, 0)]}


def test_fast_zero_that_is_not_fast() -> None:
    memory = MemoryDevice(MIB)
    with memory, serving(memory, writable=True) as server, connect(server) as client:
        client.enter()
        assert client.request(n.ZERO, 0, 4096, n.FAST_ZERO).error == n.ENOTSUP
        assert client.request(n.ZERO, 0, 4096).error == 0


def test_a_damaged_disk_is_described_without_its_path() -> None:
    class Damaged(MemoryDevice):
        """Says so."""

        def _pread_into(self, view: memoryview, offset: int) -> None:
            raise CorruptError("points past the end", structure="grain table", path="/secret/place", offset=offset)

    with Damaged(MIB) as device, serving(device) as server, connect(server) as client:
        client.enter()
        reply = client.request(n.READ, 0, 512)
        assert reply.error == n.EIO
        assert "grain table: points past the end" in reply.message
        assert "secret" not in reply.message


def test_a_bug_in_a_driver_is_an_error_too() -> None:
    class Buggy(MemoryDevice):
        """Knows no better."""

        def _pwrite(self, view: memoryview, offset: int) -> None:
            raise ZeroDivisionError

    with Buggy(MIB) as device, serving(device, writable=True) as server, connect(server) as client:
        client.enter()
        reply = client.write(0, b"x")
        assert (reply.error, reply.message) == (n.EIO, "internal error")


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_file_cut_off_while_served(path: Path, mode: int) -> None:
    with open_file(str(path)) as device, serving(device) as server, connect(server) as client:
        client.enter(mode)
        client.read(5 * MIB, 4096)
        os.truncate(path, 5 * MIB + 2048)
        for length in (4096, MIB):
            assert client.request(n.READ, 5 * MIB, length).error == n.EIO
        assert client.read(0, 4096)
