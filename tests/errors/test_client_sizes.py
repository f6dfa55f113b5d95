# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A server that tells impossible sizes: of the export, of its blocks."""

from __future__ import annotations

import pytest

from fakes.nbd_peer import FLAGS, READ_ONLY, SIZE, Peer, device
from vmdkit.errors import RemoteProtocolError, UsageError

K = 1024
IMPOSSIBLE = {
    "negative export": (2**63, None, r"an export of 9223372036854775808 bytes; more than 2\^63 - 1 cannot be"),
    "huge export": (2**64 - 1, None, "an export of 18446744073709551615 bytes"),
    "part of a block": (SIZE + 1, (512, 4096, 32 << 20), "8388609 bytes, which are no whole blocks of 512"),
    "minimum 0": (SIZE, (0, 4096, 32 << 20), "a minimum block size of 0; a power of 2 up to 65536"),
    "minimum 3": (SIZE, (3, 4096, 32 << 20), "a minimum block size of 3"),
    "minimum 128k": (SIZE, (128 * K, 128 * K, 32 << 20), "a minimum block size of 131072"),
    "preferred 0": (SIZE, (512, 0, 32 << 20), "a preferred block size of 0; a power of 2 from 512 on"),
    "preferred 5000": (SIZE, (512, 5000, 32 << 20), "a preferred block size of 5000"),
    "preferred below": (SIZE, (512, 256, 32 << 20), "a preferred block size of 256"),
    "maximum 0": (SIZE, (512, 4096, 0), "a maximum block size of 0; a multiple of the minimum, 512"),
    "maximum odd": (SIZE, (512, 4096, 5000), "a maximum block size of 5000"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible(name: str) -> None:
    size, blocks, message = IMPOSSIBLE[name]

    def script(peer: Peer) -> None:
        peer.handshake(size=size, blocks=blocks)
        peer.until_gone()

    with pytest.raises(RemoteProtocolError, match=message), device(script):
        pass


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 512, 2**32 - 1), (65536, 65536, 65536), (4096, 4096, 12288)])
def test_strange_but_possible(blocks: tuple[int, int, int]) -> None:
    """Requests keep to what was told, however little it is."""
    seen: list[tuple[int, int]] = []

    def script(peer: Peer) -> None:
        peer.handshake(size=12 * 65536, blocks=blocks)
        while True:
            asked = peer.request()
            seen.append((asked.offset, asked.length))
            peer.data(asked, asked.offset, b"x" * asked.length)

    with device(script) as opened:
        assert opened.pread(100_000 if blocks[2] > 1 else 40, 7) == b"x" * (100_000 if blocks[2] > 1 else 40)
    for offset, length in seen:
        assert length <= blocks[2]
        assert not offset % blocks[0]
        assert not length % blocks[0]


def test_flags_that_deny_flags() -> None:
    def script(peer: Peer) -> None:
        peer.handshake(flags=FLAGS - 1)
        peer.until_gone()

    with pytest.raises(RemoteProtocolError, match="without the one that says there are flags"), device(script):
        pass


def test_nothing_at_all() -> None:
    def script(peer: Peer) -> None:
        peer.handshake(size=0)
        peer.serve()

    with device(script) as opened:
        assert opened.pread(0, 0) == b""
        assert list(opened.extents()) == []


def test_writing_where_nobody_may() -> None:
    def script(peer: Peer) -> None:
        peer.handshake(flags=FLAGS | READ_ONLY)
        peer.serve()

    with pytest.raises(UsageError, match="the server lets nobody write to this export"), device(script):
        pass
