# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every misbehaving client leaves a server that lives, has logged no bug and holds no descriptor of it."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from nbdwire import Client, connect, serving
from vmdkit.storage.file import open_file
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmdkit.device import Device
    from vmdkit.nbd import Server


def descriptors() -> set[str]:
    """Return the numbers of the open descriptors of this process."""
    return {number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")}


@pytest.fixture(scope="session")
def content() -> bytes:
    """A disk of 8 MiB: the second MiB is a hole, the rest random."""
    return random.Random(3).randbytes(MIB) + bytes(MIB) + random.Random(4).randbytes(6 * MIB)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    """The disk as a file, not to be changed."""
    file = tmp_path_factory.mktemp("disk") / "disk.raw"
    with file.open("wb") as out:
        out.write(content[:MIB])
        out.seek(2 * MIB)
        out.write(content[2 * MIB :])
    return file


@pytest.fixture
def path(tmp_path: Path, original: Path) -> Path:
    """A copy of the disk."""
    shutil.copyfile(original, tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


@pytest.fixture
def device(original: Path) -> Iterator[Device]:
    """The disk, for reading."""
    with open_file(str(original)) as opened:
        yield opened


@pytest.fixture
def writable(path: Path) -> Iterator[Device]:
    """A copy of the disk, for writing."""
    with open_file(str(path), writable=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_bugs_no_leaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = descriptors()
    with caplog.at_level(logging.INFO, "vmdkit.nbd"):
        yield
    assert "bug" not in caplog.text
    if descriptors() != before:
        gc.collect()  # what a failed test left behind in its traceback is not the server's
        assert descriptors() == before


@pytest.fixture
def server(device: Device) -> Iterator[Server]:
    """The disk, for reading."""
    with serving(device) as running:
        yield running


@pytest.fixture
def writable_server(writable: Device) -> Iterator[Server]:
    """The disk, for writing."""
    with serving(writable, writable=True) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client that was not greeted yet."""
    with connect(server) as connected:
        yield connected


@pytest.fixture
def writer(writable_server: Server) -> Iterator[Client]:
    """A client that may write, with structured replies."""
    with connect(writable_server) as connected:
        yield connected.enter()
