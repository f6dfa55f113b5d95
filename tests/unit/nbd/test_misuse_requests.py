# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that make no sense: each gets its error number and a sentence, and the connection lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import connect, serving
from vmdkit.device import BlockSize
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import MIB

if TYPE_CHECKING:
    from nbdwire import Client
    from vmdkit.nbd import Server

END = 8 * MIB


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error", "says"),
    [
        (77, 0, 512, 0, n.EINVAL, "command 77"),
        (n.READ, 0, 512, 0x80, n.EINVAL, "READ has no flags 0x80"),
        (n.READ, 0, 512, n.NO_HOLE, n.EINVAL, "READ has no flags"),
        (n.FLUSH, 0, 0, n.DF, n.EINVAL, "FLUSH has no flags"),
        (n.FLUSH, 0, 512, 0, n.EINVAL, "neither offset nor length"),
        (n.READ, END - 1, 2, 0, n.EINVAL, "leave the export"),
        (n.READ, 2**64 - 1, 1, 0, n.EINVAL, "leave the export"),
        (n.READ, 0, 32 * MIB + 1, 0, n.EINVAL, "at most 33554432"),
        (n.READ, 0, 2**32 - 1, 0, n.EINVAL, "at most 33554432"),
        (n.TRIM, 0, 512, 0, n.EPERM, "read-only"),
        (n.ZERO, 0, 512, 0, n.EPERM, "read-only"),
        (n.CACHE, END, 1, 0, n.EINVAL, "leave the export"),
    ],
)
def test_refused(
    client: Client, mode: int, command: int, offset: int, length: int, flags: int, error: int, says: str
) -> None:
    client.enter(mode)
    reply = client.request(command, offset, length, flags)
    assert reply.error == error
    if mode:
        assert says in reply.message
    assert client.alive()


def test_df_needs_structured_replies(client: Client) -> None:
    client.enter(mode=0)
    assert client.request(n.READ, 0, 512, n.DF).error == n.EINVAL


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_write_to_read_only_is_read_to_its_end(client: Client, mode: int) -> None:
    client.enter(mode)
    for count in (1, 4096, 300_000, 5 * MIB):
        reply = client.write(0, b"x" * count)
        assert reply.error == n.EPERM
        assert client.alive()


@pytest.mark.parametrize("command", [n.READ, n.TRIM, n.ZERO, n.CACHE])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_no_bytes(writable_server: Server, mode: int, command: int) -> None:
    with connect(writable_server) as client:
        client.enter(mode)
        reply = client.request(command, 4096, 0)
        assert (reply.error, reply.chunks) == (0, [])
        assert client.alive()


def test_write_of_no_bytes(writer: Client) -> None:
    assert writer.write(0, b"").error == 0
    assert writer.alive()


@pytest.mark.parametrize(
    ("command", "length"), [(n.ZERO, 1), (n.ZERO, 2**32 - 1), (n.WRITE, 1), (n.WRITE, 70_000), (n.WRITE, 4 * MIB)]
)
def test_changing_past_the_end(writer: Client, command: int, length: int) -> None:
    payload = b"x" * length if command == n.WRITE else b""
    assert writer.request(command, END, length, 0, payload).error == n.ENOSPC
    assert writer.alive()


def test_trim_past_the_end(writer: Client) -> None:
    assert writer.request(n.TRIM, END, 1).error == n.EINVAL


def test_write_larger_than_the_maximum_is_dropped(writer: Client) -> None:
    reply = writer.write(0, bytes(32 * MIB + 512))
    assert reply.error == n.EINVAL
    assert "at most" in reply.message
    assert writer.alive()


def test_write_too_large_to_drop_closes(writer: Client) -> None:
    writer.send(writer.header(n.WRITE, 0, 64 * MIB + 1))
    assert writer.closed()


def test_extended_payload_of_any_size_is_no_way_to_keep_us_busy(client: Client) -> None:
    client.enter(mode=2)
    client.send(client.header(n.READ, 0, 2**63, n.PAYLOAD))
    assert client.closed()


def test_wrong_magic_closes(client: Client) -> None:
    client.enter()
    client.send(client.header(n.READ, 0, 512) + b"\0" * 28 + client.header(n.READ, 0, 512))
    with pytest.raises(n.Closed):
        client.drain()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_unaligned_to_what_was_told(mode: int) -> None:
    with (
        MemoryDevice(1 << 20, block_size=BlockSize(4096, 4096, 65536)) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter(mode)
        assert client.sizes == (4096, 4096, 65536)
        for command, offset, length in [
            (n.READ, 512, 4096), (n.READ, 0, 512), (n.TRIM, 1, 4096), (n.ZERO, 0, 5), (n.CACHE, 0, 3),
        ]:  # fmt: skip
            reply = client.request(command, offset, length)
            assert reply.error == n.EINVAL
            if mode:
                assert "aligned to 4096" in reply.message
        assert client.write(0, b"x" * 512).error == n.EINVAL
        assert client.request(n.READ, 0, 65536 + 4096).error == n.EINVAL
        assert client.read(4096, 4096) == bytes(4096)


def test_unaligned_from_a_client_that_was_not_told() -> None:
    with (
        MemoryDevice(1 << 20, block_size=BlockSize(4096, 4096, 65536)) as device,
        serving(device, writable=True) as server,
        connect(server) as client,
    ):
        client.enter(infos=())
        assert client.sizes[0] == 1
        assert client.write(1000, b"hello").error == 0
        assert client.read(999, 7) == b"\0hello\0"


def test_commands_that_were_not_advertised() -> None:
    from vmdkit.device import Can, Device

    class Plain(Device):
        """Can be read, nothing else."""

        def __init__(self) -> None:
            super().__init__(4096, can=Can.NONE)

        def _pread_into(self, view: memoryview, offset: int) -> None:
            view[:] = b"p" * len(view)

    with Plain() as device, serving(device) as server, connect(server) as client:
        client.enter()
        reply = client.request(n.CACHE, 0, 512)
        assert (reply.error, reply.message) == (n.EINVAL, "CACHE was not advertised")
        assert client.read(1, 5) == b"ppppp"
