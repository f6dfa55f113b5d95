# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Flags of commands: each where it belongs does its work, anywhere else it is refused, and the connection lives."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

import nbdwire as n
from nbdwire import Client, connect, serving
from vmdkit.nbd import Export, Options, Server
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device

MIB = 1 << 20
BASE = "base:allocation"
NAMES = {n.READ: "READ", n.WRITE: "WRITE", n.FLUSH: "FLUSH", n.TRIM: "TRIM", n.CACHE: "CACHE"}
NAMES |= {n.ZERO: "WRITE_ZEROES", n.STATUS: "BLOCK_STATUS"}
ALLOWED = dict.fromkeys(NAMES, n.FUA)  # which may stand anywhere
ALLOWED[n.READ] |= n.DF
ALLOWED[n.ZERO] |= n.NO_HOLE | n.FAST_ZERO
ALLOWED[n.STATUS] |= n.REQ_ONE


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("command", NAMES, ids=NAMES.values())
def test_every_flag_of_every_command(writable_server: Server, command: int, mode: int) -> None:
    with connect(writable_server) as client:
        client.enter(mode, contexts=[BASE])
        for bit in range(16):
            flag = 1 << bit
            if mode == 2 and flag == n.PAYLOAD:
                continue  # changes what the length means: tested elsewhere
            length = 0 if command == n.FLUSH else 512
            reply = client.request(command, 0, length, flag, b"x" * 512 if command == n.WRITE else b"")
            if flag & ALLOWED[command]:
                assert (flag, reply.error) in ((flag, 0), (n.FAST_ZERO, n.ENOTSUP))
            else:
                assert (reply.error, reply.message) == (n.EINVAL, f"{NAMES[command]} has no flags {flag:#x}")
        assert client.alive()


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("command", [8, 9, 100, 0xFFFF])
def test_unknown_command(client: Client, command: int, mode: int) -> None:
    client.enter(mode)
    reply = client.request(command, 0, 512)
    assert reply.error == n.EINVAL
    if mode:
        assert reply.message == f"command {command} is not known here"
    assert client.alive()


def test_a_payload_behind_an_unknown_command_is_read_over(client: Client) -> None:
    client.enter(2)
    assert client.request(99, 0, 70_000, n.PAYLOAD, b"?" * 70_000).error == n.EINVAL
    assert client.alive()


# ── reads ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("length", [512, 4096, 300_000, 3 * MIB])
def test_df_asks_for_one_piece(client: Client, content: bytes, length: int, mode: int) -> None:
    client.enter(mode)
    start = MIB - 200
    plain = client.request(n.READ, start, length)
    whole = client.request(n.READ, start, length, n.DF)
    assert [kind for kind, _ in whole.chunks] == [1]
    assert plain.holes()
    assert plain.data(length, start) == whole.data(length, start) == content[start : start + length]


def test_df_over_a_hole(client: Client) -> None:
    client.enter()
    assert client.request(n.READ, MIB, 4096, n.DF).chunks == [(1, struct.pack(">Q", MIB) + bytes(4096))]


def test_fua_is_refused_where_it_was_not_offered(client: Client) -> None:
    client.enter()
    assert not client.flags & 8
    reply = client.request(n.READ, 0, 512, n.FUA)
    assert (reply.error, reply.message) == (n.EINVAL, "READ has no flags 0x1")
    assert client.alive()


# ── block status ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [1, 2])
def test_req_one(client: Client, mode: int) -> None:
    client.enter(mode, contexts=[BASE])
    assert client.request(n.STATUS, MIB - 4096, 8192).extents() == {1: [(4096, 0), (4096, 3)]}
    assert client.request(n.STATUS, MIB - 4096, 8192, n.REQ_ONE).extents() == {1: [(4096, 0)]}
    assert client.request(n.STATUS, 0, 8 * MIB, n.REQ_ONE).extents() == {1: [(MIB, 0)]}


def test_status_for_a_client_with_simple_replies(client: Client) -> None:
    client.enter(0)
    assert client.request(n.STATUS, 0, 512).error == n.EINVAL
    assert client.alive()


# ── zeros ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_fast_zero_that_is_not_fast(mode: int) -> None:
    with MemoryDevice(b"m" * MIB) as device, serving(device, writable=True) as server, connect(server) as client:
        client.enter(mode)
        reply = client.request(n.ZERO, 0, 4096, n.FAST_ZERO)
        assert reply.error == n.ENOTSUP
        if mode:
            assert reply.message == "zeroing is not faster than writing here"
        assert device.pread(4096, 0) == b"m" * 4096
        assert client.request(n.ZERO, 0, 4096, n.NO_HOLE | n.FUA).error == 0
        assert device.pread(4097, 0) == bytes(4096) + b"m"


# ── exports that cannot be changed ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("flags", [0, n.FUA])
def test_a_writable_device_behind_a_read_only_export(path: Path, writable: Device, mode: int, flags: int) -> None:
    before = path.read_bytes()
    with Server(Export(writable, read_only=True), options=Options(spin=0)) as server, connect(server) as client:
        client.enter(mode)
        assert client.flags & 2
        error = n.EINVAL if flags else n.EPERM  # FUA was not offered, and that is looked at first
        for length in (1, 512, 100_000, 2 * MIB):
            assert client.request(n.WRITE, 0, length, flags, b"x" * length).error == error
        for command in (n.TRIM, n.ZERO):
            reply = client.request(command, 0, 4096, flags)
            assert reply.error == error
            if mode and not flags:
                assert reply.message == "this export is read-only"
        assert client.request(n.FLUSH).error == 0
        assert client.alive()
    assert path.read_bytes() == before
