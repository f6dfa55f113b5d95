# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Servers to be mistreated. Whatever a test did, afterwards nothing is left open, and no server has met a bug."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Final

import pytest

from layout import fill
from nbdserver import eventually
from nbdwire import Client, connect, serving
from vmdkit.storage.file import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device
    from vmdkit.nbd import Server

MIB: Final = 1 << 20
SIZE: Final = 8 * MIB
HOLE: Final = range(MIB, 2 * MIB)  # everything else is data


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """See that the test leaves no descriptor and no thread behind, and that no server called anything a bug."""
    files, threads = descriptors(), threading.active_count()
    yield
    assert eventually(descriptors, files) <= files, "the server left files open"
    assert eventually(threading.active_count, threads) <= threads, "the server left threads behind"
    bugs = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not bugs, bugs


@pytest.fixture(scope="session")
def content() -> bytes:
    """Return what the exports hold at first."""
    data = fill("a", SIZE, 0)
    return data[: HOLE.start] + bytes(len(HOLE)) + data[HOLE.stop :]


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    """Return a raw disk with a hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(content[: HOLE.start])
        file.seek(HOLE.stop)
        file.write(content[HOLE.stop :])
    return path


@pytest.fixture
def device(path: Path) -> Iterator[Device]:
    """Return that disk, to be read."""
    with open_file(str(path)) as device:
        yield device


@pytest.fixture
def writable(path: Path) -> Iterator[Device]:
    """Return that disk, to be written."""
    with open_file(str(path), writable=True) as device:
        yield device


@pytest.fixture
def server(device: Device) -> Iterator[Server]:
    """Serve it."""
    with serving(device) as server:
        yield server


@pytest.fixture
def writable_server(writable: Device) -> Iterator[Server]:
    """Serve it for writing."""
    with serving(writable, writable=True) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Return a client that has not said anything yet."""
    with connect(server) as client:
        yield client


@pytest.fixture
def writer(writable_server: Server) -> Iterator[Client]:
    """Return a client of a writable export, past its handshake."""
    with connect(writable_server) as client:
        yield client.enter()
