# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Connections that are lost: what is asked again, what must not be, and what nobody may vouch for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nbd_peer import FLAGS, FLUSH, READ, SIZE, STATUS, TRIM, WRITE, ZERO, Asked, Peer, hosting
from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError
from vmdkit.nbd import ClientOptions, NbdDevice, connect
from vmdkit.nbd.client_core import Request
from vmdkit.nbd.protocol import Command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmdkit.nbd.client_connection import Connection

    Script = Callable[[Peer], None]


def open_device(uri: str, **options: Any) -> NbdDevice:
    settings: dict[str, Any] = {"timeout": 5.0, "handshake": 5.0, "reconnect": 5.0, **options}
    return connect(uri, writable=True, options=ClientOptions(**settings))


def serving(content: bytearray, seen: list[Asked] | None = None, *, drop: int = 1 << 30, **good: Any) -> Script:
    """Be a good server of ``content``; hang up at request number ``drop`` without a reply."""

    def script(peer: Peer) -> None:
        peer.handshake(**good)
        for number in range(1 << 30):
            asked = peer.request()
            if seen is not None:
                seen.append(asked)
            if number == drop:
                return
            place = slice(asked.offset, asked.offset + asked.length)
            if asked.command == READ:
                peer.data(asked, asked.offset, bytes(content[place]))
            elif asked.command == STATUS:
                peer.extents(asked, (asked.length, 0))
            else:
                if asked.command == WRITE:
                    content[place] = asked.payload
                elif asked.command == ZERO:
                    content[place] = bytes(asked.length)
                peer.chunk(asked, 0)

    return script


def commands(seen: list[Asked]) -> list[int]:
    return [asked.command for asked in seen]


def test_nothing_is_asked_again_unless_that_is_wished(tmp_path: Path) -> None:
    content, seen = bytearray(SIZE), list[Asked]()
    with hosting(tmp_path / "s", serving(content, seen, drop=1), serving(content, seen)) as uri:
        with open_device(uri, reconnect=0.0) as opened:
            opened.pread(512, 0)
            for _ in range(2):
                with pytest.raises(ConnectionLostError, match="the server closed the connection"):
                    opened.pread(512, 0)
    assert len(seen) == 2


def test_reads_are_asked_again(tmp_path: Path) -> None:
    content, seen = bytearray(b"x" * SIZE), list[Asked]()
    with hosting(tmp_path / "s", serving(content, drop=0), serving(content, drop=1), serving(content, seen)) as uri:
        with open_device(uri) as opened:
            assert opened.pread(100, 7) == b"x" * 100
            assert opened.pread(100, 7) == b"x" * 100
            assert list(opened.extents()) == [(0, SIZE, 0)]
    assert commands(seen) == [READ, STATUS]


@pytest.mark.parametrize(("verb", "command"), [("pwrite", WRITE), ("zero", ZERO), ("trim", TRIM)])
def test_changes_are_made_again_where_the_server_hung_up(verb: str, command: int, tmp_path: Path) -> None:
    content, seen = bytearray(b"x" * SIZE), list[Asked]()
    with hosting(tmp_path / "s", serving(content, seen, drop=0), serving(content, seen)) as uri:
        with open_device(uri) as opened:
            if verb == "pwrite":
                opened.pwrite(b"new", 4096)
            else:
                getattr(opened, verb)(8192, 4096)
            opened.flush()
    assert commands(seen) == [command, command, FLUSH]
    assert seen[0][:3] == seen[1][:3]


def test_changes_are_not_made_again_where_we_gave_up(tmp_path: Path) -> None:
    """The old request may still wait inside the server, and would undo what came after its repetition."""
    seen: list[Asked] = []

    def silent(peer: Peer) -> None:
        peer.handshake()
        seen.append(peer.request())
        peer.until_gone()

    with hosting(tmp_path / "s", silent, serving(bytearray(SIZE), seen)) as uri:
        with open_device(uri, timeout=0.3) as opened:
            with pytest.raises(ConnectionLostError, match="no reply to the write of 3 bytes at 0x0"):
                opened.pwrite(b"new", 0)
            assert opened.pread(3, 0) == bytes(3)
    assert commands(seen) == [WRITE, READ]


def test_reads_are_asked_again_where_we_gave_up(tmp_path: Path) -> None:
    def silent(peer: Peer) -> None:
        peer.handshake()
        peer.until_gone()

    with (
        hosting(tmp_path / "s", silent, serving(bytearray(b"x" * SIZE))) as uri,
        open_device(uri, timeout=0.3) as opened,
    ):
        assert opened.pread(3, 0) == b"xxx"


def test_a_flush_does_not_vouch_for_what_another_server_had(tmp_path: Path) -> None:
    """Completed, not flushed, and then the server went: the write may be gone, and a new server knows nothing of it."""
    content, seen = bytearray(SIZE), list[Asked]()
    with hosting(tmp_path / "s", serving(content, drop=1), serving(content, seen)) as uri:
        with open_device(uri) as opened:
            opened.pwrite(b"a", 0)
            assert opened.pread(1, 0) == b"a"  # the connection is lost here
            with pytest.raises(ConnectionLostError, match="writes that were not flushed may be lost with a connection"):
                opened.flush()
            opened.pwrite(b"a", 0)
            opened.flush()
    assert commands(seen) == [READ, WRITE, FLUSH]


def test_a_flush_does_not_vouch_for_what_was_completed_while_a_server_went(tmp_path: Path) -> None:
    """Another thread may find the connection lost between the reply to a write and when the write is counted."""
    content = bytearray(SIZE)
    with hosting(tmp_path / "s", serving(content), serving(content)) as uri, open_device(uri) as opened:
        pool = opened._pool

        def work(connection: Connection) -> None:
            connection.call(Request(Command.WRITE, 0, 1), memoryview(b"a"))
            pool._lost(connection, ConnectionLostError("gone"))

        pool._retrying(work, Command.WRITE)
        with pytest.raises(ConnectionLostError, match="may be lost with a connection: gone"):
            opened.flush()
        opened.flush()


def test_a_flush_lost_with_its_connection(tmp_path: Path) -> None:
    content, seen = bytearray(SIZE), list[Asked]()
    with hosting(tmp_path / "s", serving(content, drop=1), serving(content, seen)) as uri:
        with open_device(uri) as opened:
            opened.pwrite(b"a", 0)
            with pytest.raises(ConnectionLostError, match="may be lost with a connection"):
                opened.flush()
            opened.flush()


def test_what_was_flushed_needs_no_doubt(tmp_path: Path) -> None:
    content = bytearray(SIZE)
    with hosting(tmp_path / "s", serving(content, drop=2), serving(content)) as uri, open_device(uri) as opened:
        opened.pwrite(b"a", 0)
        opened.flush()
        assert opened.pread(1, 0) == b"a"  # lost here
        opened.flush()


def test_another_export_under_the_same_name(tmp_path: Path) -> None:
    content = bytearray(SIZE)
    with hosting(tmp_path / "s", serving(content, drop=0), serving(content, size=SIZE - 512)) as uri:
        with open_device(uri) as opened:
            for _ in range(2):
                with pytest.raises(RemoteProtocolError, match="it had 8388608 bytes and has 8388096"):
                    opened.pread(1, 0)


def test_another_export_by_what_it_allows(tmp_path: Path) -> None:
    content = bytearray(SIZE)
    with hosting(tmp_path / "s", serving(content, drop=0), serving(content, flags=FLAGS | 2)) as uri:
        with open_device(uri) as opened, pytest.raises(RemoteProtocolError, match="differs in what it allows"):
            opened.pread(1, 0)


def test_liars_are_not_asked_again(tmp_path: Path) -> None:
    def liar(peer: Peer) -> None:
        peer.handshake()
        peer.data(peer.request(), 4096, b"x")

    with hosting(tmp_path / "s", liar, serving(bytearray(SIZE))) as uri, open_device(uri) as opened:
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match="1 bytes at 0x1000 in reply"):
                opened.pread(1, 0)


def test_refusals_are_no_lost_connections(tmp_path: Path) -> None:
    def refusing(peer: Peer) -> None:
        peer.handshake()
        while True:
            peer.error(peer.request(), 5)

    with hosting(tmp_path / "s", refusing) as uri, open_device(uri) as opened, pytest.raises(ReplyError):
        opened.pread(1, 0)


def test_a_server_that_dies_of_one_request_each_time(tmp_path: Path) -> None:
    """It takes the connection, dies of the request, and takes the next connection: there is an end to that."""
    with hosting(tmp_path / "s", serving(bytearray(SIZE), drop=0)) as uri, open_device(uri, reconnect=0.3) as opened:
        begun = time.monotonic()
        with pytest.raises(ConnectionLostError, match="it is lost each time"):
            opened.pread(1, 0)
        assert time.monotonic() - begun < 5


def test_nobody_comes_back(tmp_path: Path) -> None:
    def once(peer: Peer) -> None:
        peer.handshake()
        (tmp_path / "s").unlink()
        peer.request()

    with hosting(tmp_path / "s", once) as uri, open_device(uri, reconnect=0.3) as opened:
        with pytest.raises(ConnectionLostError, match=r"could not be had again within 0\.3 seconds: .*No such file"):
            opened.pread(1, 0)


def test_many_threads_lose_one_connection(tmp_path: Path) -> None:
    content = bytearray(bytes(range(256)) * (SIZE // 256))
    wrong: list[object] = []

    def read(seed: int) -> None:
        for turn in range(20):
            offset = (seed * 7919 + turn * 104729) % (SIZE - 4096)
            try:
                if opened.pread(4096, offset) != content[offset : offset + 4096]:
                    wrong.append(offset)
            except Exception as error:
                wrong.append(error)

    scripts = [serving(content, drop=number) for number in (3, 10, 17, 40)]
    with hosting(tmp_path / "s", *scripts, serving(content)) as uri, open_device(uri) as opened:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
