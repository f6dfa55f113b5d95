# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A server that is killed at once, with real files: what the kernel was given stays, and the rest was not promised."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

import vmdkit
from vmdkit.torture import reader
from vmdkit.torture.client import Clock
from vmdkit.torture.fixtures import plans
from vmdkit.torture.promise import Promises, compare
from vmdkit.torture.server import Server, read_files, write_files
from vmdkit.torture.workload import Driver, actions, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["sparse-child", "split-v2-child", "cowd-child", "flat"])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_flushed_stays(name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    fixture = plans()[name].make(seed)
    write_files(str(tmp_path), fixture.files)
    socket = str(tmp_path / "socket")
    words = [sys.executable, "-m", "vmdkit.cli.main", "serve", "-w", "-U", socket, fixture.top]
    clock, content = Clock(), bytearray(fixture.content)
    for crash in range(2):  # the second one after recovery
        with Server(words, str(tmp_path), socket) as server:
            client = server.connect()
            driver = Driver(client, clock, content, seed + crash)
            run(driver, actions(len(content), fixture.grain, 40, f"{seed} {crash}"))
            server.kill()
            client.close()
        assert not driver.differed
        left = reader.read(read_files(str(tmp_path)), fixture.top)
        assert not compare(Promises(content, driver.requests).at(clock.tick()), left.content)
        with vmdkit.open(tmp_path / fixture.top, writable=True) as disk:
            content = disk.pread(disk.size, 0)
        assert not compare(Promises(left.content, driver.requests).at(clock.tick()), content)
        if os.path.exists(socket):
            os.unlink(socket)
