# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The command itself under attack: it stays up, keeps no descriptor, writes no traceback, and ends in order."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

import images
import nbdwire as n
from nbdserver import Served, eventually, serving
from nbdwire import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Build = Callable[[Path, str], images.Image]

MIB = 1 << 20
KINDS: Final[dict[str, Build]] = {"flat": images.monolithic_flat, "sparse": images.monolithic_sparse}
GO = struct.pack(">8sII", b"IHAVEOPT", n.GO, 6) + n.go()
HANDSHAKE = struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", n.STRUCTURED, 0) + GO


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Serve a flat disk by several processes, and a sparse one for writing by a single one."""
    one, other = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("sparse")
    flat = images.monolithic_flat(one, "8M:A 8M:-")
    sparse = images.monolithic_sparse(other, "8M:A 8M:-")
    with serving(one, "-t", flat.path) as first, serving(other, "-t", "-w", sparse.path) as second:
        yield {"flat": first, "sparse": second}


@pytest.fixture(params=["flat", "sparse"])
def served(servers: dict[str, Served], request: pytest.FixtureRequest) -> Iterator[Served]:
    """Return one of them; after the test it must be as it was before."""
    server = servers[request.param]
    with come(server) as client:
        assert client.enter().alive()
    before = eventually(server.descriptors, 0, patience=0.05)
    yield server
    with come(server) as client:
        assert client.enter().alive(), "the server does not serve any more"
    spare = 12 if request.param == "flat" else 0  # one more worker may have been forked
    assert eventually(server.descriptors, before + spare) <= before + spare, "descriptors were left open"
    assert not server.bugs(), server.bugs()


def come(server: Served, timeout: float = 10.0) -> Client:
    """Connect to a server."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(server.path)
    return Client(sock, timeout)


def test_disconnect_at_every_byte(served: Served) -> None:
    words = HANDSHAKE + struct.pack(">IHHQQI", 0x25609513, 0, n.READ, 7, 0, 512)
    for cut in range(len(words) + 1):
        with come(served) as client:
            client.send(words[:cut])


def test_every_byte_alone(served: Served) -> None:
    with come(served) as client:
        for byte in HANDSHAKE:
            client.send(bytes([byte]))
        client.recv(18 + 20)
        client.mode = 1
        while client.option_reply(n.GO)[0] != n.ACK:
            pass
        for byte in client.header(n.READ, 0, 512, cookie=9):
            client.send(bytes([byte]))
        assert client.reply().cookie == 9


def test_disconnect_inside_a_write(served: Served) -> None:
    for sent in (0, 1, 511, 65535, 65536, MIB, MIB + 1, 2 * MIB - 1):
        with come(served) as client:
            client.enter()
            try:
                client.send(client.header(n.WRITE, 8 * MIB, 2 * MIB) + bytes(sent))
            except ConnectionError:
                pass  # a read-only export need not take it


def test_garbage_after_the_handshake(served: Served) -> None:
    for seed in range(20):
        with come(served) as client:
            client.enter()
            try:
                client.send(random.Random(seed).randbytes(5000))
                while client.sock.recv(65536):
                    pass
            except ConnectionError:
                pass


def test_clients_that_come_and_go(served: Served) -> None:
    for _ in range(300):
        with come(served):
            pass


def test_many_clients_at_once(served: Served) -> None:
    clients = [come(served) for _ in range(50)]
    for client in clients:
        client.enter()
    for client in clients:
        client.send(client.header(n.READ, 0, 65536) * 10)
    for client in clients:
        with client:
            for _ in range(10):
                assert not client.reply().error


def test_clients_that_take_nothing_cost_little_memory(served: Served) -> None:
    before = served.resident()
    greedy = [come(served) for _ in range(8)]
    try:
        for mode, client in enumerate(greedy):
            client.enter(mode % 3)
            client.sock.settimeout(0.1)
            words = client.header(n.READ, 0, 8 * MIB) * 50_000
            with pytest.raises(TimeoutError):
                client.send(words)
        begun = time.monotonic()
        with come(served) as other:
            other.enter()
            for at in range(100):
                other.read(at * 4096, 4096)
        assert time.monotonic() - begun < 5
        assert served.resident() - before < 200 * MIB  # eight clients have asked for 3 TiB
    finally:
        for client in greedy:
            client.sock.close()


def test_options_without_end(served: Served) -> None:
    with come(served) as client:
        client.hello()
        client.send(struct.pack(">8sII", b"IHAVEOPT", n.LIST, 0) * 256)
        with pytest.raises((n.Closed, ConnectionError)):  # noqa: PT012  # either may notice
            client.send(struct.pack(">8sII", b"IHAVEOPT", n.LIST, 0) * 10_000)
            while True:
                client.recv(1024)


def test_disc_with_replies_pending(served: Served) -> None:
    with come(served) as client:
        client.enter()
        words = b"".join(client.header(n.READ, at * 4096, 4096, cookie=at) for at in range(500))
        client.send(words + client.header(n.DISC, 0, 0))
        assert {client.reply().cookie for _ in range(500)} == set(range(500))
        assert client.closed()


# ── servers of their own ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_more_clients_than_allowed_wait(tmp_path: Path, kind: str) -> None:
    disk = KINDS[kind](tmp_path, "1M:A")
    with serving(tmp_path, "-t", "-e", "2", disk.path) as served, come(served) as first, come(served) as second:
        first.enter()
        second.enter()
        with come(served, 0.2) as third:
            with pytest.raises(TimeoutError):
                third.recv(1)
            assert first.alive()
            first.sock.close()
            third.sock.settimeout(5)
            assert third.enter().alive()
        assert second.alive()


def test_a_worker_that_dies_takes_only_its_clients(tmp_path: Path) -> None:
    disk = images.monolithic_flat(tmp_path, "1M:A")
    with serving(tmp_path, "-t", "--processes", "2", disk.path) as served, come(served) as first:
        first.enter()
        parent, *workers = served.pids()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert first.closed()
        with come(served) as second:
            assert second.enter().alive()
        assert served.pids()[0] == parent
        assert not set(served.pids()) & set(workers)
        assert "ended by itself" in served.said()


def test_clients_are_spread_evenly(tmp_path: Path) -> None:
    # As many processes as were asked for, however few processors there are; each gets as many clients as the others.
    disk = images.monolithic_flat(tmp_path, "1M:A")
    with serving(tmp_path, "-t", "--processes", "4", disk.path) as served, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(come(served)).enter() for _ in range(8)]
        _, *workers = served.pids()
        assert len(workers) == 4
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            eventually(lambda worker=worker: worker in served.pids(), 0)  # type: ignore[misc]
            ended = [client for client in clients if not living(client)]
            assert len(ended) == 2
            clients = [client for client in clients if client not in ended]
        assert not clients


def living(client: Client) -> bool:
    """Tell whether a client of a server that may be gone is served."""
    try:
        return client.alive()
    except (n.Closed, OSError):
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_without_descriptors_clients_wait(tmp_path: Path, kind: str) -> None:
    disk = KINDS[kind](tmp_path, "1M:A")
    with serving(tmp_path, "-t", "-w", "-e", "0", disk.path) as served, come(served) as first:
        first.enter()
        _, most = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{served.process.pid}/fd")))
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used + 1, most))
        with come(served, 0.4) as second:
            with pytest.raises(TimeoutError):
                second.recv(1)
            assert first.alive()
            # It does not try again and again: in a process that serves, that would keep the other clients waiting.
            assert 1 <= served.said().count("no new client can be taken: Too many open files") <= 2
            resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (most, most))
            second.sock.settimeout(10)
            assert second.enter().alive()
        assert first.alive()


def test_a_client_that_leaves_makes_room_at_once(tmp_path: Path) -> None:
    disk = images.monolithic_sparse(tmp_path, "1M:A")
    with serving(tmp_path, "-t", "-w", "-e", "0", disk.path) as served, come(served) as first, come(served) as second:
        first.enter()
        second.enter()
        _, most = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{served.process.pid}/fd")))
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used + 1, most))
        with come(served, 10) as third:
            eventually(lambda: not served.said(), 0)  # it was refused
            second.sock.close()
            assert third.enter().alive()
        assert first.alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("kind", KINDS)
def test_signals_end_it_with_clients_in_the_middle(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    disk = KINDS[kind](tmp_path, "1M:A")
    with serving(tmp_path, "-t", "-w", disk.path) as served, come(served) as busy, come(served) as silent:
        busy.enter()
        busy.send(busy.header(n.WRITE, 0, MIB) + bytes(1000))
        silent.hello()
        served.process.send_signal(number)
        assert served.process.wait(10) == 0
        assert busy.closed()
    assert not os.path.exists(served.path)


def test_writes_of_several_clients_to_one_disk(tmp_path: Path) -> None:
    disk = images.monolithic_sparse(tmp_path, "16M:-")
    with serving(tmp_path, "-t", "-w", disk.path) as served:

        def write(letter: int) -> None:
            with come(served) as client:
                client.enter()
                for block in range(letter, 256, 4):
                    assert client.write(block * 65536, bytes([65 + letter]) * 65536).error == 0
                assert client.request(n.FLUSH).error == 0

        threads = [threading.Thread(target=write, args=(letter,)) for letter in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with come(served) as client:
            client.enter()
            for block in range(256):
                assert client.read(block * 65536, 65536) == bytes([65 + block % 4]) * 65536
