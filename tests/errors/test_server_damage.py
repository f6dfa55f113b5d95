# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged disks behind a server: what is lost becomes errors with a sentence, the rest is served, the client stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import nbdwire as n
import vmdkit
from images.damage import DAMAGE, FAILS
from nbdwire import connect, serving

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

MOST = 32 << 20  # bytes of one request
LOST = {name: damage for name, damage in DAMAGE.items() if damage.outcome == FAILS}


def sound(image: Image) -> tuple[int, int]:
    """Return offset and length of a range of at most 4 KiB beside what is lost."""
    at = 0
    for offset, length in sorted(image.bad):
        if offset > at:
            break
        at = offset + length
    end = min((offset for offset, _ in image.bad if offset >= at), default=image.size)
    return at, min(end - at, 4096)


@pytest.mark.parametrize("name", LOST)
def test_lost_ranges_become_errors(tmp_path: Path, name: str) -> None:
    image = LOST[name].build(tmp_path)
    with vmdkit.open(image.path) as disk, serving(disk) as server, connect(server) as client:
        client.enter()
        for offset, length in image.bad:
            reply = client.request(n.READ, offset, min(length, MOST))
            assert reply.error == n.EIO
            assert reply.message
            assert str(tmp_path) not in reply.message
        start, count = sound(image)
        if count:
            assert client.read(start, count) == image.model.pread(count, start)
        else:
            client.request(n.FLUSH)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("flags", [0, n.DF])
def test_an_error_in_the_middle_of_a_read(tmp_path: Path, mode: int, flags: int) -> None:
    image = DAMAGE["gte-beyond-eof"].build(tmp_path)
    with vmdkit.open(image.path) as disk, serving(disk) as server, connect(server) as client:
        client.enter(mode)
        start = max(0, image.bad[0][0] - (1 << 20))
        whole = client.request(n.READ, start, min(disk.size - start, 3 << 20), flags if mode else 0)
        assert whole.error == n.EIO
        if mode:
            assert "grain" in whole.message
        for at in (*range(0, disk.size - 4096, 65536), disk.size - 512):
            bad = any(at < offset + length and offset < at + 512 for offset, length in image.bad)
            reply = client.request(n.READ, at, 512)
            assert reply.error == (n.EIO if bad else 0)
            if not bad and mode:
                assert reply.data(512, at) == image.model.pread(512, at)


def test_errors_among_pipelined_requests(tmp_path: Path) -> None:
    image = DAMAGE["gte-beyond-eof"].build(tmp_path)
    with vmdkit.open(image.path) as disk, serving(disk) as server, connect(server) as client:
        client.enter()
        places = list(range(0, disk.size - 512, 65536))
        client.send(b"".join(client.header(n.READ, at, 512, cookie=number) for number, at in enumerate(places)))
        seen = {}
        for _ in places:
            reply = client.reply()
            seen[reply.cookie] = reply
        for number, at in enumerate(places):
            bad = any(at < offset + length and offset < at + 512 for offset, length in image.bad)
            assert seen[number].error == (n.EIO if bad else 0)
            assert bad or seen[number].data(512, at) == image.model.pread(512, at)
        assert any(reply.error for reply in seen.values())


@pytest.mark.parametrize("context", ["base:allocation", "qemu:allocation-depth"])
def test_a_map_of_what_is_lost(tmp_path: Path, context: str) -> None:
    image = DAMAGE["gde-beyond-eof"].build(tmp_path)
    with vmdkit.open(image.path) as disk, serving(disk) as server, connect(server) as client:
        client.enter(contexts=[context])
        reply = client.request(n.STATUS, 0, disk.size)
        if reply.error:
            assert reply.error == n.EIO
            assert reply.message
        else:
            (runs,) = reply.extents().values()
            assert sum(length for length, _ in runs) <= disk.size
        client.request(n.FLUSH)
