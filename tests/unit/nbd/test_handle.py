# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The handle of vmdkit.nbd: what tests/interop/test_handle.py cannot compare with libnbd."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import vmdkit.nbd as nbd
from fakes.nbd_peer import FLAGS, Peer, hosting
from layout import fill
from nbdwire import serving
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def test_what_a_program_gets_from_our_server() -> None:
    device = MemoryDevice(fill("A", MIB, 0))
    with serving(device) as server:
        h = nbd.NBD()
        h.connect_socket(server.connect().detach())
        assert h.get_extended_headers_negotiated()
        assert h.pread(1000, 5) == device.pread(1000, 5)
        with pytest.raises(nbd.Error, match="server does not support write operations") as caught:
            h.pwrite(b"x", 0)
        assert (caught.value.errno, caught.value.errnum) == ("EPERM", 1)
        h.shutdown()
        h.close()


def test_errors_print_as_libnbds() -> None:
    error = nbd.Error("nbd_pread: request out of bounds: Invalid argument", 22)
    assert str(error) == "nbd_pread: request out of bounds: Invalid argument (EINVAL)"
    assert str(nbd.Error("nothing to do with the system")) == "nothing to do with the system"
    assert (error.string, error.errno, error.errnum) == (error.args[0], "EINVAL", 22)


def test_a_server_that_lies(tmp_path: Path) -> None:
    def liar(peer: Peer) -> None:
        peer.handshake(flags=FLAGS)
        asked = peer.request()
        peer.data(asked, asked.offset + 1, bytes(asked.length))

    with hosting(tmp_path / "s", liar) as uri:
        h = nbd.NBD()
        h.connect_uri(uri)
        with pytest.raises(nbd.Error, match="the server broke the protocol") as caught:
            h.pread(512, 0)
        assert caught.value.errno == "EPROTO"
        assert h.connection_state().startswith("DEAD")
        h.close()


def test_silence_has_an_end(tmp_path: Path) -> None:
    def silent(peer: Peer) -> None:
        peer.handshake()
        peer.until_gone()

    with hosting(tmp_path / "s", silent) as uri:
        h = nbd.NBD()
        h.set_timeout(0.2)
        h.connect_uri(uri)
        with pytest.raises(nbd.Error, match="read: command failed"):
            h.pread(512, 0)
        h.close()
    with hosting(tmp_path / "t", Peer.until_gone) as uri:
        h = nbd.NBD()
        h.set_timeout(0.2)
        with pytest.raises(nbd.Error, match="handshake: "):
            h.connect_uri(uri)


def test_threads_share_a_handle() -> None:
    device = MemoryDevice(fill("A", MIB, 0))
    wrong: list[int] = []
    with serving(device) as server:
        h = nbd.NBD()
        h.connect_socket(server.connect().detach())

        def work(seed: int) -> None:
            for turn in range(50):
                offset = (seed * 7919 + turn * 104729) % (MIB - 512)
                if h.pread(512, offset) != device.pread(512, offset):
                    wrong.append(offset)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        h.close()
    assert not wrong


def test_a_handle_that_goes_takes_all_along() -> None:
    with serving(MemoryDevice(bytes(4096))) as server:
        h = nbd.NBD()
        h.connect_socket(server.connect().detach())
        del h


@pytest.mark.parametrize("value", [0, -1])
def test_time_limits_are_positive(value: float) -> None:
    with pytest.raises(nbd.Error, match="nbd_set_timeout: seconds: invalid value"):
        nbd.NBD().set_timeout(value)


def test_importing_is_cheap() -> None:
    """Neither server nor client is imported for a name of the package."""
    program = (
        "import sys, vmdkit.nbd; print([n for n in sys.modules if n.startswith('vmdkit.nbd.')], 'ssl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == (
        "[] False\n"
    )


def test_every_name_is_there() -> None:
    for name in nbd.__all__:
        assert getattr(nbd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'CMD_FLAG_NONSENSE'"):
        _ = nbd.CMD_FLAG_NONSENSE
