# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a client says in its handshake, and what comes of it. ``exchange`` sends one option and returns the answer.

::

    EXTENDED_HEADERS ─ no ─▶ STRUCTURED_REPLY ─ no ─▶ simple replies
          │ yes                    │ yes
          └──▶ LIST_META_CONTEXT, SET_META_CONTEXT ──▶ GO ─ unknown option ─▶ EXPORT_NAME
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmdkit.device import ALLOCATION
from vmdkit.errors import UnsupportedError
from vmdkit.nbd import protocol as p
from vmdkit.nbd.protocol import ExportFlag, Info, Mode, Opt, Rep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.nbd.client_handshake import Answer, Facts, Handshake

    Exchange = Callable[[int, bytes], Answer]

MOST_SELECTED: Final = 16  # contexts taken of those a server lists: each block status answers for all of them


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to ask for. ``contexts``: names, or None for all that the server lists; ``mode``: the most to agree on."""

    export: str = ""
    contexts: Sequence[str] | None = None
    mode: Mode = Mode.EXTENDED


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides know when the handshake is over.

    ``sizes`` are minimum, preferred and maximum as the server told them, None if it did not; ``contexts`` maps the
    numbers of this connection to names.
    """

    export: str
    size: int
    flags: ExportFlag
    mode: Mode = Mode.SIMPLE
    sizes: tuple[int, int, int] | None = None
    contexts: dict[int, str] = field(default_factory=dict)
    name: str | None = None
    description: str | None = None
    protocol: str = "newstyle-fixed"
    secure: bool = False

    def same_export(self, other: Agreement) -> bool:
        """Tell whether two connections speak of what must be the same to be used as one."""
        mine, theirs = (
            (each.size, each.flags, each.sizes, each.mode, set(each.contexts.values())) for each in (self, other)
        )
        return mine == theirs


def negotiate(handshake: Handshake, exchange: Exchange, wishes: Wishes) -> Agreement:
    """Come to an agreement, past TLS if that is wanted.

    Raises ReplyError where the server says no, UnsupportedError for what an old server cannot be asked,
    RemoteProtocolError where it breaks the rules.
    """
    if handshake.oldstyle is not None:
        if wishes.export:
            raise UnsupportedError(
                f"this server speaks the old handshake and cannot be asked for the export {wishes.export!r}",
                path=handshake.peer,
            )
        return agreement(handshake, handshake.oldstyle, "", Mode.SIMPLE, {})
    if not handshake.fixed:
        return agreement(handshake, export_name(exchange, wishes.export), wishes.export, Mode.SIMPLE, {})
    mode = reply_mode(exchange, wishes.mode)
    contexts: dict[int, str] = {}
    if mode is not Mode.SIMPLE:
        names = listed(exchange, wishes.export) if wishes.contexts is None else wishes.contexts
        contexts = select(exchange, handshake, wishes.export, names)
    return enter(handshake, exchange, wishes.export, mode, contexts)


def enter(handshake: Handshake, exchange: Exchange, export: str, mode: Mode, contexts: dict[int, str]) -> Agreement:
    """Choose the export and end the handshake, by GO or as before there was GO."""
    answer = exchange(Opt.GO, info_data(export))
    if answer.ok:
        return agreement(handshake, answer.facts, export, mode, contexts)
    if answer.kind != Rep.ERR_UNSUP or mode is Mode.EXTENDED:
        raise answer.refusal(handshake.peer, f"the export {export!r}")
    return agreement(handshake, export_name(exchange, export), export, mode, contexts)


def reply_mode(exchange: Exchange, most: Mode) -> Mode:
    """Agree on how replies look: the best that both sides know, up to ``most``."""
    if most is Mode.EXTENDED and exchange(Opt.EXTENDED_HEADERS, b"").ok:
        return Mode.EXTENDED
    if most is not Mode.SIMPLE and exchange(Opt.STRUCTURED_REPLY, b"").ok:
        return Mode.STRUCTURED
    return Mode.SIMPLE


def listed(exchange: Exchange, export: str) -> list[str]:
    """Return the contexts of an export, at most MOST_SELECTED; of a server that lists none, the usual one."""
    answer = exchange(Opt.LIST_META_CONTEXT, context_data(export, ()))
    names = list(dict.fromkeys(name for _, name in answer.contexts)) if answer.ok else []
    if ALLOCATION not in names[:MOST_SELECTED]:
        names.insert(0, ALLOCATION)
    return names[:MOST_SELECTED]


def select(exchange: Exchange, handshake: Handshake, export: str, names: Sequence[str]) -> dict[int, str]:
    """Choose contexts; returns those that the server has, none where it refuses."""
    if not names:
        return {}
    answer = exchange(Opt.SET_META_CONTEXT, context_data(export, names))
    if not answer.ok:
        return {}
    for _, name in answer.contexts:
        if name not in names:
            raise handshake.broken(f"it selected the context {name!r}, which was not asked for")
    return dict(answer.contexts)


def export_name(exchange: Exchange, export: str) -> Facts:
    """Choose an export as before there was GO. A server that has no such export closes the connection."""
    return exchange(Opt.EXPORT_NAME, export.encode()).facts


def agreement(
    handshake: Handshake, facts: Facts, export: str, mode: Mode, contexts: dict[int, str]
) -> Agreement:  # fmt: skip
    """Return what was agreed on. Raises RemoteProtocolError where it does not fit together."""
    if facts.sizes is not None and facts.size % facts.sizes[0]:
        raise handshake.broken(f"an export of {facts.size} bytes, which are no whole blocks of {facts.sizes[0]}")
    protocol = "oldstyle" if handshake.oldstyle else "newstyle-fixed" if handshake.fixed else "newstyle"
    return Agreement(
        export, facts.size, ExportFlag(facts.flags), mode, facts.sizes, contexts, facts.name, facts.description,
        protocol, handshake.secure,
    )  # fmt: skip


def info_data(export: str, wanted: Sequence[int] = (Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)) -> bytes:
    """Return the data of INFO and GO: the export, and what is wanted to be known."""
    return _named(export) + len(wanted).to_bytes(2, "big") + b"".join(kind.to_bytes(2, "big") for kind in wanted)


def context_data(export: str, queries: Sequence[str]) -> bytes:
    """Return the data of the options about contexts."""
    return _named(export) + p.COUNT.pack(len(queries)) + b"".join(_named(query) for query in queries)


def _named(text: str) -> bytes:
    data = text.encode()
    return p.COUNT.pack(len(data)) + data
