# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The handshake of a client as a machine without input or output: it says how many bytes are due, and takes them.

::

    GREETING ─┬─ FLAGS ──▶ OPTIONS ──ask()──▶ HEADER ◀──▶ BODY          one option at a time
              │               ▲  ▲              │ final reply
              │               │  └──────────────┴──▶ TRANSMISSION (GO)   CLOSED (ABORT)
              │               └── secured() ── TLS ◀── (STARTTLS)
              └─ OLDSTYLE ──▶ TRANSMISSION ◀── EXPORT ◀── ask(EXPORT_NAME)

``STEPS[state]`` names what takes the bytes, ``ITEMS[option, reply]`` what takes a reply before the final one; a pair
that is not there was not to be sent, and raises RemoteProtocolError. Never more bytes are asked for than are due, so
that nothing which came before TLS can be taken for something that came through it (CVE-2021-3716, the other side).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from vmdkit.errors import LocalProtocolError, RemoteProtocolError, ReplyError
from vmdkit.nbd import protocol as p
from vmdkit.nbd.protocol import Error, HandshakeFlag, Info, Opt, Rep

if TYPE_CHECKING:
    from collections.abc import Callable

# Limits of what a server may say, each checked before it is kept (users spec, A15).
MOST_REPLIES: Final = 32768  # to one option; LIST names each export by one
MOST_DATA: Final = 16 << 20  # bytes of all replies to one option
MOST_CONTEXTS: Final = 1024  # that one option tells of
MAX_REPLY: Final = 64 << 10  # bytes of one reply: a name and a description of 4096 bytes each fit many times over
_MAX_SIZE: Final = 2**63 - 1  # bytes of an export; more is negative to most of the world (CVE-2023-5215)
_MAX_MINIMUM: Final = 64 << 10  # the protocol's largest minimum block size
_NO_LIMIT: Final = 0xFFFFFFFF  # as maximum block size

_ERRNO: Final = {
    Rep.ERR_UNSUP: Error.ENOTSUP,
    Rep.ERR_POLICY: Error.EPERM,
    Rep.ERR_INVALID: Error.EINVAL,
    Rep.ERR_PLATFORM: Error.ENOTSUP,
    Rep.ERR_TLS_REQD: Error.ENOTSUP,
    Rep.ERR_UNKNOWN: 2,  # ENOENT
    Rep.ERR_SHUTDOWN: Error.ESHUTDOWN,
    Rep.ERR_BLOCK_SIZE_REQD: Error.EINVAL,
    Rep.ERR_TOO_BIG: Error.EINVAL,
    Rep.ERR_EXT_HEADER_REQD: Error.EINVAL,
}
_MEANING: Final = {
    Rep.ERR_UNSUP: "it does not know this option",
    Rep.ERR_POLICY: "its policy forbids that",
    Rep.ERR_INVALID: "it calls the request invalid",
    Rep.ERR_PLATFORM: "its platform does not support that",
    Rep.ERR_TLS_REQD: "it speaks with TLS clients only; that is nbds:// in the place of nbd://",
    Rep.ERR_UNKNOWN: "it has no such export",
    Rep.ERR_SHUTDOWN: "it is shutting down",
    Rep.ERR_BLOCK_SIZE_REQD: "it wants its block sizes to be asked for",
    Rep.ERR_TOO_BIG: "that is too much for it",
    Rep.ERR_EXT_HEADER_REQD: "it wants extended headers",
}


class State(Enum):
    """Where a handshake stands."""

    GREETING = "greeting"
    FLAGS = "flags"
    OLDSTYLE = "oldstyle"
    OPTIONS = "options"
    HEADER = "header"
    BODY = "body"
    EXPORT = "export"
    TLS = "tls"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


@dataclass(slots=True)
class Facts:
    """What a server tells about an export; ``size`` is -1 and ``sizes`` None until it has."""

    size: int = -1
    flags: int = 0
    name: str | None = None
    description: str | None = None
    sizes: tuple[int, int, int] | None = None


@dataclass(slots=True)
class Answer:
    """All that was replied to one option; ``kind`` is the type of the final reply."""

    option: int
    kind: int = 0
    text: str = ""
    exports: list[tuple[str, str]] = field(default_factory=list)
    contexts: list[tuple[int, str]] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    @property
    def ok(self) -> bool:
        """Whether the server agreed."""
        return self.kind == Rep.ACK

    def refusal(self, peer: str, what: str) -> ReplyError:
        """Return the error that says what the server refused, and why."""
        reason = _MEANING.get(self.kind, f"error {self.kind - 2**31}")  # type: ignore[call-overload]
        text = f": {self.text}" if self.text else ""
        number = _ERRNO.get(self.kind, Error.EINVAL)  # type: ignore[call-overload]
        return ReplyError(f"the server refused {what}: {reason}{text}", int(number), path=peer)


class Handshake:
    """One handshake: receive ``wants()`` bytes, ``feed`` them, send what that returns; at OPTIONS ``ask``."""

    def __init__(self, peer: str, flags: int = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES) -> None:
        self.peer = peer
        self.state = State.GREETING
        self.secure = False
        self.flags = flags  # what both sides know, once the server has told
        self.oldstyle: Facts | None = None
        self.answer = Answer(0)
        self._due = 16  # two magic numbers
        self._reply = (0, 0)  # type and length
        self._replies = self._data = 0

    @property
    def fixed(self) -> bool:
        """Whether options can be refused: the server is one of this century."""
        return bool(self.flags & HandshakeFlag.FIXED_NEWSTYLE)

    def wants(self) -> int:
        """Return the exact number of bytes that are due; 0 where it is the client's turn."""
        return self._due

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take exactly what was wanted and return what is to be sent. Raises RemoteProtocolError."""
        return STEPS[self.state](self, bytes(data))

    def ask(self, option: int, data: bytes = b"") -> bytes:
        """Begin an option and return what is to be sent."""
        if self.state is not State.OPTIONS or (not self.fixed and option != Opt.EXPORT_NAME):
            raise LocalProtocolError(f"option {option} cannot be sent in state {self.state.value}", path=self.peer)
        if len(data) > MAX_REPLY:
            raise LocalProtocolError(f"{len(data)} bytes are too many for an option", path=self.peer)
        self.answer = Answer(option)
        self._replies = self._data = 0
        if option == Opt.EXPORT_NAME:
            padding = 0 if self.flags & HandshakeFlag.NO_ZEROES else len(p.PADDING)
            self._go(State.EXPORT, p.EXPORT_NAME_REPLY.size + padding)
        else:
            self._go(State.HEADER, p.OPTION_REPLY.size)
        return p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data

    def secured(self) -> None:
        """Go on after the TLS handshake."""
        self.secure = True
        self._go(State.OPTIONS, 0)

    def _go(self, state: State, due: int) -> None:
        self.state, self._due = state, due

    def broken(self, message: str) -> RemoteProtocolError:
        """Close, and return the error that says why."""
        self._go(State.CLOSED, 0)
        return RemoteProtocolError(f"the server broke the protocol: {message}", path=self.peer)

    # ── one step for each state ──────────────────────────────────────────────────────────────────────────────

    def _greeting(self, data: bytes) -> bytes:
        first, second = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")
        if first != p.INIT_MAGIC:
            raise self.broken(f"it began with {data[:8]!r}; an NBD server says b'NBDMAGIC'")
        if second == p.OPTION_MAGIC:
            self._go(State.FLAGS, 2)
        elif second == p.OLD_MAGIC:
            self._go(State.OLDSTYLE, p.OLD_GREETING.size + len(p.PADDING))
        else:
            raise self.broken(f"{second:#018x} follows NBDMAGIC; IHAVEOPT or the old handshake's number was expected")
        return b""

    def _oldstyle(self, data: bytes) -> bytes:
        size, _, flags = p.OLD_GREETING.unpack_from(data)
        self.flags = 0
        self.oldstyle = Facts()
        self._export_facts(self.oldstyle, size, flags)
        self._go(State.TRANSMISSION, 0)
        return b""

    def _flags(self, data: bytes) -> bytes:
        self.flags &= int.from_bytes(data, "big")
        self._go(State.OPTIONS, 0)
        return p.CLIENT_FLAGS.pack(self.flags)

    def _export(self, data: bytes) -> bytes:
        size, flags = p.EXPORT_NAME_REPLY.unpack_from(data)
        self._export_facts(self.answer.facts, size, flags)
        self.answer.kind = Rep.ACK
        self._go(State.TRANSMISSION, 0)
        return b""

    def _header(self, data: bytes) -> bytes:
        magic, option, kind, length = p.OPTION_REPLY.unpack(data)
        if magic != p.OPTION_REPLY_MAGIC:
            raise self.broken(f"a reply to option {self.answer.option} begins with {magic:#018x}, "
                               f"{p.OPTION_REPLY_MAGIC:#018x} was expected")  # fmt: skip
        if option != self.answer.option:
            raise self.broken(f"it replied to option {option}; the one that was sent is {self.answer.option}")
        if length > MAX_REPLY:
            raise self.broken(f"a reply to option {option} announces {length} bytes; {MAX_REPLY} are taken")
        self._replies += 1
        self._data += length
        if self._replies > MOST_REPLIES or self._data > MOST_DATA:
            raise self.broken(f"it replied to option {option} with more than {MOST_REPLIES} parts or "
                               f"{MOST_DATA} bytes and has not come to an end")  # fmt: skip
        self._reply = kind, length
        self._go(State.BODY, length)
        return self._body(b"") if not length else b""

    def _body(self, data: bytes) -> bytes:
        kind, _ = self._reply
        answer = self.answer
        if kind == Rep.ACK:
            if data:
                raise self.broken(f"an acknowledgement of option {answer.option} with {len(data)} bytes; none belong")
            self._final(kind, "")
        elif kind & 2**31:
            if len(data) > p.MAX_STRING:
                raise self.broken(f"an error text of {len(data)} bytes; {p.MAX_STRING} are allowed")
            self._final(kind, data.decode("utf-8", "replace"))
        else:
            handler = ITEMS.get((answer.option, kind))
            if handler is None:
                raise self.broken(f"it replied to option {answer.option} with type {kind}, which does not belong")
            handler(self, data)
            self._go(State.HEADER, p.OPTION_REPLY.size)
        return b""

    def _final(self, kind: int, text: str) -> None:
        answer = self.answer
        answer.kind, answer.text = kind, text
        state = State.OPTIONS
        if kind == Rep.ACK:
            if answer.option in (Opt.GO, Opt.INFO) and answer.facts.size < 0:
                raise self.broken("it acknowledged GO or INFO without a word about the export's size")
            state = {Opt.GO: State.TRANSMISSION, Opt.ABORT: State.CLOSED, Opt.STARTTLS: State.TLS}.get(
                answer.option, state  # type: ignore[call-overload]
            )  # fmt: skip
        self._go(state, 0)

    # ── replies before the final one ─────────────────────────────────────────────────────────────────────────

    def _server(self, data: bytes) -> None:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 or length > len(data) - 4:
            raise self.broken(f"an export of {len(data)} bytes, whose name alone has {length}")
        name, description = data[4 : 4 + length], data[4 + length :]
        self.answer.exports.append((self._string(name, "an export's name"), self._string(description, "a description")))

    def _context(self, data: bytes) -> None:
        if len(data) < 5:
            raise self.broken(f"a context of {len(data)} bytes; a number and a name were expected")
        if len(self.answer.contexts) >= MOST_CONTEXTS:
            raise self.broken(f"more than {MOST_CONTEXTS} contexts")
        name = self._string(data[4:], "a context's name")
        number = int.from_bytes(data[:4], "big")
        if self.answer.option == Opt.SET_META_CONTEXT and any(
            number == other or name == same for other, same in self.answer.contexts
        ):
            raise self.broken(f"it gave the context {name!r}, or its number {number}, twice")
        self.answer.contexts.append((number, name))

    def _info(self, data: bytes) -> None:
        if len(data) < 2:
            raise self.broken("an information of less than two bytes")
        facts, kind, body = self.answer.facts, int.from_bytes(data[:2], "big"), data[2:]
        if kind == Info.EXPORT:
            if len(data) != p.INFO_EXPORT_DATA.size:
                raise self.broken(f"the export's size and flags in {len(data)} bytes instead of 12")
            _, size, flags = p.INFO_EXPORT_DATA.unpack(data)
            if facts.size >= 0 and (facts.size, facts.flags) != (size, flags):
                raise self.broken(f"it told two sizes, {facts.size} and {size}, or two sets of flags")
            self._export_facts(facts, size, flags)
        elif kind == Info.NAME:
            facts.name = self._string(body, "the export's name")
        elif kind == Info.DESCRIPTION:
            facts.description = self._string(body, "the description")
        elif kind == Info.BLOCK_SIZE:
            if len(data) != p.INFO_BLOCK_SIZE_DATA.size:
                raise self.broken(f"the block sizes in {len(data)} bytes instead of 14")
            facts.sizes = self._block_sizes(*p.INFO_BLOCK_SIZE_DATA.unpack(data)[1:])

    def _export_facts(self, facts: Facts, size: int, flags: int) -> None:
        if size > _MAX_SIZE:
            raise self.broken(f"an export of {size} bytes; more than 2^63 - 1 cannot be")
        if flags and not flags & p.ExportFlag.HAS_FLAGS:
            raise self.broken(f"transmission flags {flags:#x} without the one that says there are flags")
        facts.size, facts.flags = size, flags

    def _block_sizes(self, minimum: int, preferred: int, maximum: int) -> tuple[int, int, int]:
        if minimum & (minimum - 1) or not 0 < minimum <= _MAX_MINIMUM:
            raise self.broken(f"a minimum block size of {minimum}; a power of 2 up to {_MAX_MINIMUM} was expected")
        if preferred & (preferred - 1) or preferred < minimum:
            raise self.broken(f"a preferred block size of {preferred}; a power of 2 from {minimum} on was expected")
        if maximum < minimum or (maximum != _NO_LIMIT and maximum % minimum):
            raise self.broken(f"a maximum block size of {maximum}; a multiple of the minimum, {minimum}, was expected")
        return minimum, preferred, maximum

    def _string(self, data: bytes, what: str) -> str:
        if len(data) > p.MAX_STRING:
            raise self.broken(f"{what} has {len(data)} bytes; {p.MAX_STRING} are allowed")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error


STEPS: Final[dict[State, Callable[[Handshake, bytes], bytes]]] = {
    State.GREETING: Handshake._greeting,
    State.FLAGS: Handshake._flags,
    State.OLDSTYLE: Handshake._oldstyle,
    State.EXPORT: Handshake._export,
    State.HEADER: Handshake._header,
    State.BODY: Handshake._body,
}

ITEMS: Final[dict[tuple[int, int], Callable[[Handshake, bytes], None]]] = {
    (Opt.LIST, Rep.SERVER): Handshake._server,
    (Opt.INFO, Rep.INFO): Handshake._info,
    (Opt.GO, Rep.INFO): Handshake._info,
    (Opt.LIST_META_CONTEXT, Rep.META_CONTEXT): Handshake._context,
    (Opt.SET_META_CONTEXT, Rep.META_CONTEXT): Handshake._context,
}
