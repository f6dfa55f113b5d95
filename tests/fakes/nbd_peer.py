# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""An NBD server that does what a test tells it, also what no good server would do.

It shares no code with the client: numbers and layouts are written out again, so that a slip in one is seen. A script
is a function that gets the Peer and speaks; it runs in a thread, and ends by itself or when the client has gone.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from vmdkit.nbd import ClientOptions, SocketAddress, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vmdkit.nbd import NbdDevice

    Script = Callable[["Peer"], None]

MIB = 1 << 20
SIZE = 8 * MIB
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, INFO_REPLY, META = 1, 2, 3, 4
ERR = 2**31
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN = (ERR + number for number in range(1, 8))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FLAGS = 1 | 4 | 8 | 32 | 64 | 128 | 1024  # all that changes nothing about connections
READ_ONLY, MULTI = 2, 256
NONE, DATA, HOLE, EXTENTS, EXTENTS_64, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 2**15 + 1, 2**15 + 2
DONE = 1


class Gone(Exception):  # noqa: N818  # what the client did
    """The client has closed the connection."""


class Asked(NamedTuple):
    """A request as it came."""

    command: int
    offset: int
    length: int
    cookie: int
    flags: int
    payload: bytes


class Peer:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.mode = 0  # 0 simple, 1 structured, 2 extended
        self.options: list[int] = []  # what the client asked for

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone from error

    def recv(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            try:
                piece = self.sock.recv(count - len(out))
            except OSError as error:
                raise Gone from error
            if not piece:
                raise Gone
            out += piece
        return bytes(out)

    def until_gone(self) -> None:
        """Say nothing until the client has left."""
        while True:
            self.recv(1)

    # ── handshake ────────────────────────────────────────────────────────────────────────────────────────────

    def greet(self, flags: int = 3) -> int:
        self.send(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", flags))
        return int.from_bytes(self.recv(4), "big")

    def option(self) -> tuple[int, bytes]:
        magic, option, length = struct.unpack(">8sII", self.recv(16))
        assert magic == b"IHAVEOPT"
        self.options.append(option)
        return option, self.recv(length)

    def reply(self, option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> None:
        size = len(data) if length is None else length
        self.send(struct.pack(">QIII", 0x3E889045565A9, option, kind, size) + data)

    def info(self, option: int, size: int = SIZE, flags: int = FLAGS) -> None:
        self.reply(option, INFO_REPLY, struct.pack(">HQH", 0, size, flags))

    def haggle(self, last: int, *, mode: int = 1, contexts: Sequence[str] = ("base:allocation",)) -> bytes:
        """Answer options as a good server until ``last`` comes; returns its data, not answered yet."""
        while True:
            option, data = self.option()
            if option == last:
                return data
            if option in (STRUCTURED, EXTENDED):
                wide = option == EXTENDED
                if mode < 1 + wide:
                    self.reply(option, UNSUP)
                    continue
                self.mode = max(self.mode, 1 + wide)
            elif option in (LIST_META, SET_META):
                for number, name in enumerate(contexts, 1):
                    if option == LIST_META or name.encode() in data:
                        self.reply(option, META, struct.pack(">I", number) + name.encode())
            elif option not in (ABORT, LIST):
                self.reply(option, UNSUP)
                continue
            self.reply(option, ACK)

    def handshake(
        self, *, size: int = SIZE, flags: int = FLAGS, mode: int = 1, blocks: tuple[int, int, int] | None = None,
        contexts: Sequence[str] = ("base:allocation",),
    ) -> None:  # fmt: skip
        """Do all of it as a good server."""
        self.greet()
        self.haggle(GO, mode=mode, contexts=contexts)
        self.info(GO, size, flags)
        if blocks is not None:
            self.reply(GO, INFO_REPLY, struct.pack(">HIII", 3, *blocks))
        self.reply(GO, ACK)

    # ── transmission ─────────────────────────────────────────────────────────────────────────────────────────

    def request(self) -> Asked:
        """Receive a request. DISC means that the client is gone."""
        if self.mode == 2:
            magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQQ", self.recv(32))
            assert magic == 0x21E41C71
            payload = self.recv(length) if flags & 32 else b""
        else:
            magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", self.recv(28))
            assert magic == 0x25609513
            payload = self.recv(length) if command == WRITE else b""
        if command == DISC:
            raise Gone
        return Asked(command, offset, length, cookie, flags, payload)

    def simple(self, cookie: int, error: int = 0, data: bytes = b"", *, magic: int = 0x67446698) -> None:
        self.send(struct.pack(">IIQ", magic, error, cookie) + data)

    def chunk(
        self, asked: Asked, kind: int, payload: bytes = b"", flags: int = DONE, *, length: int | None = None,
        cookie: int | None = None, offset: int | None = None,
    ) -> None:  # fmt: skip
        size = len(payload) if length is None else length
        number = asked.cookie if cookie is None else cookie
        if self.mode == 2:
            place = asked.offset if offset is None else offset
            self.send(struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, number, place, size) + payload)
        else:
            self.send(struct.pack(">IHHQI", 0x668E33EF, flags, kind, number, size) + payload)

    def data(self, asked: Asked, offset: int, data: bytes, flags: int = DONE) -> None:
        self.chunk(asked, DATA, struct.pack(">Q", offset) + data, flags)

    def hole(self, asked: Asked, offset: int, length: int, flags: int = DONE) -> None:
        self.chunk(asked, HOLE, struct.pack(">QI", offset, length), flags)

    def extents(self, asked: Asked, *pairs: tuple[int, int], context: int = 1, flags: int = DONE) -> None:
        if self.mode == 2:
            head, code, kind = struct.pack(">II", context, len(pairs)), ">QQ", EXTENTS_64
        else:
            head, code, kind = struct.pack(">I", context), ">II", EXTENTS
        self.chunk(asked, kind, head + b"".join(struct.pack(code, *pair) for pair in pairs), flags)

    def error(
        self, asked: Asked, number: int, text: bytes = b"", flags: int = DONE, *, offset: int | None = None
    ) -> None:
        payload = struct.pack(">IH", number, len(text)) + text
        if offset is None:
            self.chunk(asked, ERROR, payload, flags)
        else:
            self.chunk(asked, ERROR_OFFSET, payload + struct.pack(">Q", offset), flags)

    def serve(self, content: bytes = b"") -> None:
        """Answer everything as a good server, until the client has left; content is zero unless it is given."""
        while True:
            asked = self.request()
            if asked.command == READ:
                data = content[asked.offset : asked.offset + asked.length] if content else bytes(asked.length)
                if self.mode:
                    self.data(asked, asked.offset, data)
                else:
                    self.simple(asked.cookie, 0, data)
            elif asked.command == STATUS:
                self.extents(asked, (asked.length, 0))
            elif self.mode:
                self.chunk(asked, NONE)
            else:
                self.simple(asked.cookie)


class Playing:
    """A script that runs, and the client's end of its socket."""

    def __init__(self, script: Script) -> None:
        self.sock, self._theirs = socket.socketpair()
        self.trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._play, args=(script,), name="peer")
        self._thread.start()

    def _play(self, script: Script) -> None:
        with self._theirs:
            try:
                script(Peer(self._theirs))
            except Gone:
                pass
            except BaseException as error:
                self.trouble = error

    def end(self) -> None:
        """See that the script is over."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client has closed it
        self._thread.join(10)
        assert not self._thread.is_alive(), "the script does not end"
        if self.trouble is not None:
            raise self.trouble


@contextmanager
def playing(script: Script) -> Iterator[SocketAddress]:
    """Run a script; gives an address that reaches it once."""
    run = Playing(script)
    try:
        yield SocketAddress(run.sock, "liar")
    finally:
        run.end()


@contextmanager
def device(script: Script, **options: Any) -> Iterator[NbdDevice]:
    """Run a script and connect to it; time limits are short, and ``writable`` is for ``connect``."""
    settings: dict[str, Any] = {"timeout": 5.0, "handshake": 5.0, **options}
    writable = settings.pop("writable", True)
    with playing(script) as address:
        opened = connect(address, writable=writable, options=ClientOptions(**settings))
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def hosting(path: Path, *scripts: Script) -> Iterator[str]:
    """Listen on a Unix socket: the first client meets the first script, the last one is for all that follow.

    Gives the address. A script raises what it wants to fail the test with.
    """
    runs: list[tuple[threading.Thread, socket.socket]] = []
    trouble: list[BaseException] = []

    def play(script: Script, sock: socket.socket) -> None:
        with sock:
            try:
                script(Peer(sock))
            except Gone:
                pass
            except BaseException as error:
                trouble.append(error)

    def listen() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            script = scripts[min(len(runs), len(scripts) - 1)]
            thread = threading.Thread(target=play, args=(script, sock), name="peer")
            runs.append((thread, sock))
            thread.start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        accepting = threading.Thread(target=listen, name="host")
        accepting.start()
        try:
            yield f"nbd+unix:///?socket={path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(10)
            for thread, sock in runs:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # its script is over
                thread.join(10)
                assert not thread.is_alive(), "a script does not end"
    if trouble:
        raise trouble[0]
