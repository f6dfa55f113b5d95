# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The handshake of a server as a machine without input or output: bytes go in, bytes come out.

::

    FLAGS ──client flags──> OPTIONS ──EXPORT_NAME, GO──> TRANSMISSION
                             │   ^
                    STARTTLS v   │ restarted() after the TLS handshake
                             TLS
    any state ──ABORT, broken framing, too much of anything──> CLOSED

``STATES[state, option]`` names the handler; a pair that is not there is answered by ``_unknown``. Limits are
checked on the header of an option, before a byte of its data is kept. Whatever was agreed before STARTTLS is
forgotten, and plaintext that arrived behind it closes the connection (CVE-2021-3716).
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING

from vmdkit.nbd import protocol as p
from vmdkit.nbd.protocol import HandshakeFlag, Info, Mode, Opt, Rep
from vmdkit.nbd.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmdkit.nbd.export import Export, Exports

_log = logging.getLogger(__name__)
_OUR_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES


class TlsMode(Enum):
    """Whether clients may or must use TLS."""

    OFF = "off"
    ON = "on"  # the client's choice: only where somebody asked for that on purpose
    REQUIRE = "require"


class State(Enum):
    """Where a handshake stands."""

    FLAGS = "flags"
    OPTIONS = "options"
    TLS = "tls"  # STARTTLS was acknowledged: what follows is a TLS handshake
    TRANSMISSION = "transmission"
    CLOSED = "closed"


class _BadOption(Exception):  # noqa: N818  # never leaves this module
    """The data of an option is malformed; the text goes to the client."""


class Negotiation:
    """One handshake. Feed it what the client sends; send what it returns; look at ``state`` and ``session``."""

    def __init__(self, exports: Exports, tls: TlsMode = TlsMode.OFF) -> None:
        self._exports = exports
        self._tls = tls
        self._secure = False
        self._inbox = bytearray()
        self._client_flags = 0
        self._options = 0
        self._forget()
        self.state = State.FLAGS
        self.session: Session | None = None
        self.reason = ""  # why the state is CLOSED, for the log

    def _forget(self) -> None:
        """Drop everything options agreed on."""
        self._mode = Mode.SIMPLE
        self._contexts: dict[int, str] = {}
        self._contexts_of: Export | None = None

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, _OUR_FLAGS)

    def leftover(self) -> bytes:
        """Take what the client sent beyond the handshake: its first requests."""
        rest, self._inbox = bytes(self._inbox), bytearray()
        return rest

    def restarted(self) -> None:
        """Go on after the TLS handshake, with nothing kept from before it."""
        self._secure = True
        self._forget()
        self.state = State.OPTIONS

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take bytes from the client, return bytes for it. Whatever comes, this does not raise."""
        self._inbox += data
        out = bytearray()
        while self.state in (State.FLAGS, State.OPTIONS):
            step = self._take_flags() if self.state is State.FLAGS else self._take_option()
            if step is None:
                break
            out += step
        return bytes(out)

    def _close(self, reason: str) -> bytes:
        self.state, self.reason = State.CLOSED, reason
        return b""

    def _take_flags(self) -> bytes | None:
        if len(self._inbox) < p.CLIENT_FLAGS.size:
            return None
        (flags,) = p.CLIENT_FLAGS.unpack_from(self._inbox)
        del self._inbox[: p.CLIENT_FLAGS.size]
        if flags & ~int(_OUR_FLAGS):
            return self._close(f"unknown client flags {flags:#x}")
        self._client_flags = flags
        self.state = State.OPTIONS
        return b""

    def _take_option(self) -> bytes | None:
        if len(self._inbox) < p.OPTION.size:
            return None
        magic, option, length = p.OPTION.unpack_from(self._inbox)
        if magic != p.OPTION_MAGIC:
            return self._close(f"an option begins with {magic:#018x} instead of IHAVEOPT")
        if length > p.MAX_OPTION:
            self._close(f"option {option} announces {length} bytes")
            return _reply(option, Rep.ERR_TOO_BIG, f"option data is limited to {p.MAX_OPTION} bytes".encode())
        end = p.OPTION.size + length
        if len(self._inbox) < end:
            return None
        data = bytes(self._inbox[p.OPTION.size : end])
        del self._inbox[:end]
        self._options += 1
        if self._options > p.MAX_OPTIONS:
            self._close(f"more than {p.MAX_OPTIONS} options")
            return _reply(option, Rep.ERR_TOO_BIG, b"too many options")
        if self._tls is TlsMode.REQUIRE and not self._secure and option not in (Opt.STARTTLS, Opt.ABORT):
            return self._refuse_plain(option)
        handler = STATES.get((self.state, option), Negotiation._unknown)
        try:
            return handler(self, option, data)
        except _BadOption as error:
            return _reply(option, Rep.ERR_INVALID, str(error).encode())

    def _refuse_plain(self, option: int) -> bytes:
        if option == Opt.EXPORT_NAME:  # has no way to say no
            return self._close("EXPORT_NAME without TLS, which is required here")
        return _reply(option, Rep.ERR_TLS_REQD, b"this server speaks with TLS clients only")

    # ── handlers: (option, data) -> bytes ────────────────────────────────────────────────────────────────────

    def _unknown(self, option: int, data: bytes) -> bytes:
        return _reply(option, Rep.ERR_UNSUP, f"option {option} is not known here".encode())

    def _export_name(self, option: int, data: bytes) -> bytes:
        if self._mode is Mode.EXTENDED:  # the protocol wants GO then
            return self._close("EXPORT_NAME after EXTENDED_HEADERS")
        if len(data) > p.MAX_STRING:
            return self._close("an export name longer than 4096 bytes")
        export = self._exports.get(data.decode("utf-8", "replace"))
        if export is None:
            return self._close("no such export")
        session = self._enter(export, sizes_asked=False)
        reply = p.EXPORT_NAME_REPLY.pack(export.device.size, session.flags)
        return reply if self._client_flags & HandshakeFlag.NO_ZEROES else reply + p.PADDING

    def _abort(self, option: int, data: bytes) -> bytes:
        self._close("the client said ABORT")
        return _reply(option, Rep.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            raise _BadOption("LIST has no data")
        out = bytearray()
        for export in self._exports:
            name = export.name.encode()
            out += _reply(option, Rep.SERVER, p.COUNT.pack(len(name)) + name + export.description.encode())
        return bytes(out) + _reply(option, Rep.ACK)

    def _starttls(self, option: int, data: bytes) -> bytes:
        if data:
            raise _BadOption("STARTTLS has no data")
        if self._secure:
            raise _BadOption("TLS is in use already")
        if self._tls is TlsMode.OFF:
            return _reply(option, Rep.ERR_POLICY, b"TLS is off on this server")
        if self._inbox:
            return self._close("bytes behind STARTTLS that TLS does not protect")
        self.state = State.TLS
        return _reply(option, Rep.ACK)

    def _structured(self, option: int, data: bytes) -> bytes:
        if data:
            raise _BadOption("STRUCTURED_REPLY has no data")
        if self._mode is Mode.EXTENDED:
            return _reply(option, Rep.ERR_EXT_HEADER_REQD, b"extended headers are agreed on already")
        if self._mode is Mode.STRUCTURED:
            raise _BadOption("structured replies are agreed on already")
        self._mode = Mode.STRUCTURED
        return _reply(option, Rep.ACK)

    def _extended(self, option: int, data: bytes) -> bytes:
        if data:
            raise _BadOption("EXTENDED_HEADERS has no data")
        if self._mode is Mode.EXTENDED:
            raise _BadOption("extended headers are agreed on already")
        self._mode = Mode.EXTENDED
        return _reply(option, Rep.ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        cursor = _Cursor(data)
        name = cursor.string(cursor.u32())
        kinds = [cursor.u16() for _ in range(cursor.u16())]
        cursor.end()
        export = self._exports.get(name)
        if export is None:
            return _reply(option, Rep.ERR_UNKNOWN, f"no export is called {name[:200]!r}".encode())
        asked = Info.BLOCK_SIZE in kinds
        session = self._session(export, sizes_asked=asked)
        facts = [p.INFO_EXPORT_DATA.pack(Info.EXPORT, export.device.size, session.flags)]
        if Info.NAME in kinds:
            facts.append(Info.NAME.to_bytes(2, "big") + export.name.encode())
        if Info.DESCRIPTION in kinds and export.description:
            facts.append(Info.DESCRIPTION.to_bytes(2, "big") + export.description.encode())
        sizes = export.block_size()
        facts.append(p.INFO_BLOCK_SIZE_DATA.pack(Info.BLOCK_SIZE, session.minimum, sizes.preferred, sizes.maximum))
        if option == Opt.GO:
            self._enter(export, sizes_asked=asked)
        return b"".join(_reply(option, Rep.INFO, fact) for fact in facts) + _reply(option, Rep.ACK)

    def _meta_context(self, option: int, data: bytes) -> bytes:
        selecting = option == Opt.SET_META_CONTEXT
        if selecting:  # even a request that fails replaces what was selected before
            self._contexts, self._contexts_of = {}, None
        if self._mode is Mode.SIMPLE:
            raise _BadOption("contexts need structured replies, to be asked for first")
        cursor = _Cursor(data)
        name = cursor.string(cursor.u32())
        count = cursor.u32()
        if count > p.MAX_QUERIES:
            return _reply(option, Rep.ERR_TOO_BIG, f"at most {p.MAX_QUERIES} queries at once".encode())
        queries = [cursor.string(cursor.u32()) for _ in range(count)]
        cursor.end()
        export = self._exports.get(name)
        if export is None:
            return _reply(option, Rep.ERR_UNKNOWN, f"no export is called {name[:200]!r}".encode())
        found = dict(_matching(export.device.contexts, queries, selecting))
        if selecting:
            self._contexts, self._contexts_of = found, export
        replies = (
            _reply(option, Rep.META_CONTEXT, p.COUNT.pack(number if selecting else 0) + context.encode())
            for number, context in found.items()
        )
        return b"".join(replies) + _reply(option, Rep.ACK)

    # ── the end of it ────────────────────────────────────────────────────────────────────────────────────────

    def _session(self, export: Export, *, sizes_asked: bool) -> Session:
        sizes = export.block_size()
        contexts = dict(self._contexts) if self._contexts_of is export else {}
        return Session(
            export,
            mode=self._mode,
            minimum=sizes.minimum if sizes_asked else 1,
            maximum=sizes.maximum,
            flags=export.flags(self._mode, filters=bool(contexts)),
            contexts=contexts,
        )

    def _enter(self, export: Export, *, sizes_asked: bool) -> Session:
        self.session = self._session(export, sizes_asked=sizes_asked)
        self.state = State.TRANSMISSION
        return self.session


STATES: dict[tuple[State, int], Callable[[Negotiation, int, bytes], bytes]] = {
    (State.OPTIONS, Opt.EXPORT_NAME): Negotiation._export_name,
    (State.OPTIONS, Opt.ABORT): Negotiation._abort,
    (State.OPTIONS, Opt.LIST): Negotiation._list,
    (State.OPTIONS, Opt.STARTTLS): Negotiation._starttls,
    (State.OPTIONS, Opt.INFO): Negotiation._info,
    (State.OPTIONS, Opt.GO): Negotiation._info,
    (State.OPTIONS, Opt.STRUCTURED_REPLY): Negotiation._structured,
    (State.OPTIONS, Opt.LIST_META_CONTEXT): Negotiation._meta_context,
    (State.OPTIONS, Opt.SET_META_CONTEXT): Negotiation._meta_context,
    (State.OPTIONS, Opt.EXTENDED_HEADERS): Negotiation._extended,
}


class _Cursor:
    """Take apart the data of an option; every short read is the client's fault."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise _BadOption("the option's data ends too early")
        self._at += count
        return piece

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self, length: int) -> str:
        if length > p.MAX_STRING:
            raise _BadOption(f"a string of {length} bytes; the protocol allows {p.MAX_STRING}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise _BadOption("a string that is not UTF-8") from error

    def end(self) -> None:
        if self._at != len(self._data):
            raise _BadOption(f"{len(self._data) - self._at} bytes too many in the option's data")


def _matching(offered: tuple[str, ...], queries: list[str], selecting: bool) -> Iterator[tuple[int, str]]:
    """Yield the number and name of each context that is asked for.

    LIST without queries means all, and ``base:`` means all that begin so; SET takes whole names only.
    """
    for number, context in enumerate(offered, 1):
        namespace = context.split(":", 1)[0] + ":"
        if context in queries or (not selecting and (not queries or namespace in queries)):
            yield number, context


def _reply(option: int, kind: Rep, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data
