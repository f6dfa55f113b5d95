# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Servers that stop: they say nothing, or too slowly, take nothing, or are gone. Nobody waits for ever."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fakes.nbd_peer import ACK, DATA, DONE, EXTENDED, Gone, Peer, device, playing
from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError
from vmdkit.nbd import ClientOptions, TcpAddress, UnixAddress, connect

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SHORT = 0.3  # seconds


def slow(peer: Peer, data: bytes, pause: float = 0.02) -> None:
    """Send a byte at a time."""
    for at in range(len(data)):
        peer.send(data[at : at + 1])
        time.sleep(pause)


def test_no_greeting() -> None:
    with (
        pytest.raises(ConnectionLostError, match=r"^liar: the handshake was not over after 0\.3 seconds"),
        device(Peer.until_gone, handshake=SHORT),
    ):
        pass


def test_a_greeting_in_drips() -> None:
    """Something comes all the time, and it is not over: the limit is for the whole."""

    def script(peer: Peer) -> None:
        slow(peer, b"NBDMAGICIHAVEOPT\0\3", 0.05)
        peer.until_gone()

    with pytest.raises(ConnectionLostError, match="was not over after"), device(script, handshake=SHORT):
        pass


def test_options_in_drips() -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.haggle(EXTENDED)
        while True:
            slow(peer, struct.pack(">QIII", 0x3E889045565A9, EXTENDED, ACK, 0), 0.05)

    with pytest.raises(ConnectionLostError, match="was not over after"), device(script, handshake=SHORT):
        pass


def test_no_reply() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        peer.until_gone()

    with device(script, timeout=SHORT) as opened:
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match=r"no reply to the read of 512 bytes at 0x0 within 0\.331"):
                opened.pread(512, 0)


def test_a_reply_in_drips() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        asked = peer.request()
        slow(peer, struct.pack(">IHHQIQ", 0x668E33EF, DONE, DATA, asked.cookie, 8 + asked.length, 0) + bytes(512))

    with device(script, timeout=SHORT) as opened, pytest.raises(ConnectionLostError, match="no reply to the read"):
        opened.pread(512, 0)


def test_everybody_else_is_answered() -> None:
    """One request never is; its thread must not wait for the others to stop."""
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.handshake()
        while True:
            asked = peer.request()
            if asked.offset:
                peer.data(asked, asked.offset, bytes(asked.length))

    def others() -> None:
        while not stop.is_set():
            try:
                opened.pread(512, 4096)
            except ConnectionLostError:
                return

    with device(script, timeout=SHORT) as opened:
        threads = [threading.Thread(target=others) for _ in range(3)]
        for thread in threads:
            thread.start()
        with pytest.raises(ConnectionLostError, match="no reply to the read of 512 bytes at 0x0"):
            opened.pread(512, 0)
        stop.set()
        for thread in threads:
            thread.join()


def test_nothing_is_taken() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        threading.Event().wait(1)

    message = "the server has not taken the write of 8388608 bytes at 0x0 within"
    with (
        device(script, timeout=SHORT, slowest=1e9) as opened,
        pytest.raises(ConnectionLostError, match=message),
    ):
        opened.pwrite(bytes(8 * MIB), 0)


def test_gone_before_the_reply() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        peer.request()

    with device(script) as opened, pytest.raises(ConnectionLostError, match=r"liar: the server closed the connection$"):
        opened.pread(512, 0)


def test_gone_in_the_reply() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        asked = peer.request()
        peer.chunk(asked, DATA, struct.pack(">Q", 0) + bytes(100), length=8 + asked.length)

    with (
        device(script) as opened,
        pytest.raises(ConnectionLostError, match="closed the connection in the middle of a reply"),
    ):
        opened.pread(MIB, 0)


def test_gone_while_it_is_written_to() -> None:
    def script(peer: Peer) -> None:
        peer.handshake()
        peer.recv(1000)

    with device(script) as opened, pytest.raises(ConnectionLostError):
        opened.pwrite(bytes(8 * MIB), 0)


def test_an_error_said_before_leaving_is_heard() -> None:
    """A write that is refused at once, by a server that then hangs up."""

    def script(peer: Peer) -> None:
        peer.handshake(mode=0)
        header = peer.recv(28)
        peer.simple(struct.unpack(">IHHQQI", header)[3], 28)
        peer.sock.shutdown(socket.SHUT_WR)
        while True:
            peer.recv(1 << 16)

    with device(script) as opened, pytest.raises(ReplyError, match="No space left on device"):
        opened.pwrite(bytes(8 * MIB), 0)


@pytest.mark.parametrize("said", [b"\x67\x44\x66\x98" + bytes(12), b"x"])
def test_words_after_the_end(said: bytes) -> None:
    """What could it be that we did not ask for?"""

    def script(peer: Peer) -> None:
        peer.handshake()
        try:
            peer.serve()
        except Gone:
            peer.send(said)

    with pytest.raises(RemoteProtocolError, match="after the end; silence was expected"), device(script) as opened:
        opened.pread(512, 0)


def test_a_server_that_does_not_hang_up() -> None:
    """It gets a moment, and we go."""
    leave = threading.Event()

    def script(peer: Peer) -> None:
        peer.handshake()
        leave.wait(10)

    with playing(script) as address:
        opened = connect(address, options=ClientOptions(timeout=5))
        opened.close()
        leave.set()
        assert opened.closed


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Connection refused") as caught:
        connect("nbd://127.0.0.1:1/x")
    assert caught.value.filename == "nbd://127.0.0.1:1/x"
    with pytest.raises(FileNotFoundError):
        connect(f"nbd+unix:///?socket={tmp_path}/none")
    with pytest.raises(FileNotFoundError):
        connect(UnixAddress(str(tmp_path / "none"), "a name"))
    with pytest.raises(OSError, match="the host is not found"):
        connect(TcpAddress("no-such-host.invalid", 1, "a name"))


def test_a_listener_that_takes_nobody() -> None:
    """The kernel has accepted, the program has not: the greeting is waited for, not longer than allowed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(ConnectionLostError, match=r"not over after 0\.2 seconds"):
            connect(uri, options=ClientOptions(handshake=0.2))


def test_a_signal_while_waiting() -> None:
    """Ctrl-C comes through at once, and no byte comes into the buffer afterwards."""
    ready = threading.Event()

    def script(peer: Peer) -> None:
        peer.handshake()
        asked = peer.request()
        ready.wait(10)
        peer.data(asked, 0, b"\xee" * asked.length)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    buf = bytearray(MIB)
    try:
        with device(script) as opened:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                opened.pread_into(buf, 0)
            ready.set()
            with pytest.raises(ConnectionLostError, match="a request was interrupted"):
                opened.pread(1, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not any(buf)
