# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A small NBD client that does what it is told, also what no good client would do.

It shares no code with the server: numbers and layouts are written out again, so that a slip in one is seen.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmdkit.device import Device
    from vmdkit.nbd import Server

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, INFO_REPLY, META = 1, 2, 3, 4
ERR = 2**31
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN, TOO_BIG, EXT_REQD = (ERR + each for each in (1, 2, 3, 5, 6, 9, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD = 1, 2, 4, 8, 16, 32
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95


class Closed(Exception):  # noqa: N818  # what the server did
    """The server closed the connection."""


@dataclass
class Reply:
    """A whole reply: chunks as (type, payload); of a simple one, what it is made of."""

    cookie: int
    error: int = 0
    message: str = ""
    chunks: list[tuple[int, bytes]] = field(default_factory=list)

    def data(self, length: int, start: int) -> bytes:
        """Put the content chunks of a read together; every byte must come exactly once."""
        out, seen = bytearray(length), bytearray(length)
        for kind, body in self.chunks:
            (offset,) = struct.unpack_from(">Q", body)
            piece = body[8:] if kind == 1 else bytes(*struct.unpack_from(">I", body, 8))
            at = offset - start
            assert at >= 0
            assert at + len(piece) <= length
            assert not any(seen[at : at + len(piece)])
            out[at : at + len(piece)] = piece
            seen[at : at + len(piece)] = b"\1" * len(piece)
        assert all(seen)
        return bytes(out)

    def holes(self) -> list[tuple[int, int]]:
        """Return (offset, length) of the hole chunks."""
        return [struct.unpack(">QI", body) for kind, body in self.chunks if kind == 2]

    def extents(self) -> dict[int, list[tuple[int, int]]]:
        """Return (length, flags) by context."""
        out: dict[int, list[tuple[int, int]]] = {}
        for kind, body in self.chunks:
            if kind == 5:
                out[struct.unpack_from(">I", body)[0]] = list(struct.iter_unpack(">II", body[4:]))
            elif kind == 6:
                context, count = struct.unpack_from(">II", body)
                out[context] = list(struct.iter_unpack(">QQ", body[8:]))
                assert len(out[context]) == count
        return out


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket, timeout: float = 10.0) -> None:
        self.sock = sock
        self.sock.settimeout(timeout)
        self.mode = 0  # 0 simple, 1 structured, 2 extended
        self.size = self.flags = 0
        self.sizes = (0, 0, 0)
        self._cookie = 100
        self._begun: dict[int, Reply] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def recv(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            try:
                piece = self.sock.recv(count - len(out))
            except ConnectionError as error:
                raise Closed from error
            if not piece:
                raise Closed(f"after {len(out)} of {count} bytes")
            out += piece
        return bytes(out)

    def closed(self) -> bool:
        """Wait for the end of the stream; False if something else comes, an exception if nothing does."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # ── handshake ────────────────────────────────────────────────────────────────────────────────────────────

    def hello(self, flags: int = 3) -> int:
        magic, option, theirs = struct.unpack(">8s8sH", self.recv(18))
        assert (magic, option) == (b"NBDMAGIC", b"IHAVEOPT")
        self.send(struct.pack(">I", flags))
        return int(theirs)

    def send_option(self, option: int, data: bytes = b"", length: int | None = None) -> None:
        self.send(struct.pack(">8sII", b"IHAVEOPT", option, len(data) if length is None else length) + data)

    def option_reply(self, option: int) -> tuple[int, bytes]:
        magic, number, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == 0x3E889045565A9
        assert number == option
        return kind, self.recv(length)

    def option(self, option: int, data: bytes = b"") -> tuple[int, list[bytes], str]:
        """Send an option; return the final reply type, the data of those before it, the error's text."""
        self.send_option(option, data)
        found: list[bytes] = []
        while True:
            kind, body = self.option_reply(option)
            if kind == ACK or kind & ERR:
                return kind, found, body.decode()
            found.append(body)

    def set_context(self, *queries: str, export: str = "", option: int = SET_META) -> tuple[int, dict[str, int]]:
        kind, found, _ = self.option(option, meta(export, queries))
        return kind, {body[4:].decode(): struct.unpack_from(">I", body)[0] for body in found}

    def go(self, export: str = "", infos: Sequence[int] = (3,), option: int = GO) -> int:
        """Choose an export; returns the final reply type and fills in what was told."""
        kind, found, _ = self.option(option, go(export, infos))
        for body in found:
            (what,) = struct.unpack_from(">H", body)
            if what == 0:
                self.size, self.flags = struct.unpack_from(">QH", body, 2)
            elif what == 3:
                self.sizes = struct.unpack_from(">III", body, 2)
        return kind

    def enter(self, mode: int = 1, contexts: Sequence[str] = (), export: str = "", infos: Sequence[int] = (3,)) -> Self:
        """Do the whole handshake as a good client."""
        self.hello()
        if mode:
            assert self.option(STRUCTURED if mode == 1 else EXTENDED)[0] == ACK
            self.mode = mode
        if contexts:
            assert self.set_context(*contexts, export=export)[0] == ACK
        assert self.go(export, infos) == ACK
        return self

    # ── transmission ─────────────────────────────────────────────────────────────────────────────────────────

    def header(self, command: int, offset: int, length: int, flags: int = 0, cookie: int | None = None) -> bytes:
        if cookie is None:
            self._cookie += 1
            cookie = self._cookie
        if self.mode == 2:
            return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
        return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)

    def request(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> Reply:
        """Send one request and return its reply."""
        self.send(self.header(command, offset, length, flags) + payload)
        reply = self.reply(length if command == READ else 0)
        assert reply.cookie == self._cookie
        return reply

    def write(self, offset: int, payload: bytes, flags: int = 0) -> Reply:
        return self.request(WRITE, offset, len(payload), flags | (PAYLOAD if self.mode == 2 else 0), payload)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.request(READ, offset, length, flags)
        assert not reply.error, reply.message
        return reply.chunks[0][1] if self.mode == 0 else reply.data(length, offset)

    def reply(self, length: int | dict[int, int] = 0) -> Reply:
        """Receive chunks until a reply is whole; those of other replies may come in between.

        ``length`` is what a simple reply to READ carries, by cookie where several are due.
        """
        while True:
            (magic,) = struct.unpack(">I", self.recv(4))
            if magic == 0x67446698:
                assert self.mode < 2
                error, cookie = struct.unpack(">IQ", self.recv(12))
                count = length[cookie] if isinstance(length, dict) else length
                return Reply(cookie, error, "", [(1, self.recv(count))] if count and not error else [])
            if magic == 0x668E33EF:
                assert self.mode == 1
                flags, kind, cookie, count = struct.unpack(">HHQI", self.recv(16))
            else:
                assert magic == 0x6E8A278C, hex(magic)
                assert self.mode == 2
                flags, kind, cookie, _, count = struct.unpack(">HHQQQ", self.recv(28))
            body = self.recv(count)
            reply = self._begun.setdefault(cookie, Reply(cookie))
            if kind & 0x8000:
                reply.error, size = struct.unpack_from(">IH", body)
                reply.message = body[6 : 6 + size].decode()
            elif kind:
                reply.chunks.append((kind, body))
            if flags & 1:
                return self._begun.pop(cookie)

    def drain(self) -> None:
        """Receive replies until something ends it."""
        while True:
            self.reply()

    def alive(self) -> bool:
        """Tell whether the connection still works: reads the first byte."""
        return not self.request(READ, 0, 1).error


def go(export: str = "", infos: Sequence[int] = ()) -> bytes:
    """Return the data of INFO and GO."""
    name = export.encode()
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta(export: str, queries: Sequence[str]) -> bytes:
    """Return the data of the context options."""
    name = export.encode()
    out = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return out + b"".join(struct.pack(">I", len(query.encode())) + query.encode() for query in queries)


@contextmanager
def serving(device: Device, *, writable: bool = False, **options: Any) -> Iterator[Server]:
    """Serve a device from a thread."""
    from vmdkit.nbd import Export, Options, Server

    settings = {"spin": 0, **options}
    with Server(Export(device, read_only=not writable), options=Options(**settings)) as server:
        yield server


def connect(server: Server, timeout: float = 10.0) -> Client:
    """Return a client that has not said anything yet."""
    return Client(server.connect(), timeout)
