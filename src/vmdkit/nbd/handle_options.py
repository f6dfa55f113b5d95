# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How a handle chooses its export: at once, or option by option."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from vmdkit.errors import VmdkitError
from vmdkit.nbd import client_negotiate as negotiation
from vmdkit.nbd.client_connection import Connection
from vmdkit.nbd.client_handshake import Answer, Facts, State
from vmdkit.nbd.handle_connect import Connecting, handshake_trouble
from vmdkit.nbd.handle_names import Trouble
from vmdkit.nbd.handle_state import CLOSED, NEGOTIATING, READY, call
from vmdkit.nbd.protocol import Info, Mode, Opt, Rep

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOWEST: Final = 16384.0  # bytes a second, as ClientOptions


class Choosing(Connecting):
    """The option phase."""

    @call(NEGOTIATING)
    def opt_go(self) -> None:
        """Choose the export and begin with requests."""
        with self._lock:
            self._option()
            self._go("opt_go")

    @call(NEGOTIATING)
    def opt_info(self) -> None:
        """Ask about the export without choosing it."""
        with self._lock:
            exchange = self._option()
            self._select(exchange)
            answer = exchange(Opt.INFO, self._info_data())
            if not answer.ok:
                self._forget()
                raise _refused("opt_info", answer)
            self._know(answer.facts)

    @call(NEGOTIATING)
    def opt_list(self, list: Callable[[str, str], Any]) -> int:  # noqa: A002  # libnbd's name
        """Call ``list(name, description)`` for each export that the server tells of; returns how many."""
        with self._lock:
            answer = self._option()(Opt.LIST, b"")
            if not answer.ok:
                raise _refused("list", answer)
            for name, description in answer.exports:
                list(name, description)
            return len(answer.exports)

    @call(NEGOTIATING)
    def opt_list_meta_context(self, context: Callable[[str], Any]) -> int:
        """Call ``context(name)`` for each context of the export; returns how many."""
        with self._lock:
            if self._mode is Mode.SIMPLE:
                raise Trouble("server lacks structured replies", errno.ENOTSUP)
            data = negotiation.context_data(self._export_name, self._wanted_contexts)
            answer = self._option()(Opt.LIST_META_CONTEXT, data)
            if not answer.ok:
                raise _refused("list meta context", answer)
            for _, name in answer.contexts:
                context(name)
            return len(answer.contexts)

    @call(NEGOTIATING)
    def opt_abort(self) -> None:
        """Leave without choosing an export."""
        with self._lock:
            if self._dialogue is not None:
                self._dialogue.abort()
                self._dialogue = None
            self.state = CLOSED

    def _option(self) -> Callable[[int, bytes], Answer]:
        """Return what sends an option; a broken handshake ends the handle."""
        dialogue = self._dialogue
        if dialogue is None:
            raise Trouble("there is no connection", errno.ENOTCONN)

        def exchange(option: int, data: bytes) -> Answer:
            dialogue.renew()
            try:
                return dialogue.exchange(option, data)
            except VmdkitError as error:
                self._fail()
                raise handshake_trouble(error) from error

        return exchange

    def _info_data(self) -> bytes:
        wanted = [Info.NAME, Info.DESCRIPTION] if self._full_info else []
        return negotiation.info_data(self._export_name, [*wanted, *([Info.BLOCK_SIZE] if self._block_size else [])])

    def _select(self, exchange: Callable[[int, bytes], Answer]) -> None:
        """Select the contexts that were asked for; a query may stand for several."""
        self._contexts = {}
        if self._wanted_contexts and self._mode is not Mode.SIMPLE:
            data = negotiation.context_data(self._export_name, self._wanted_contexts)
            answer = exchange(Opt.SET_META_CONTEXT, data)
            self._contexts = dict(answer.contexts) if answer.ok else {}

    def _go(self, call_name: str) -> None:
        exchange = self._option()
        self._select(exchange)
        answer = exchange(Opt.GO, self._info_data())
        if answer.ok:
            self._enter(answer.facts)
        elif answer.kind == Rep.ERR_UNSUP and self._mode is not Mode.EXTENDED:
            self._enter(exchange(Opt.EXPORT_NAME, self._export_name.encode()).facts)
        else:
            self._forget()
            if call_name == "handshake" and answer.kind == Rep.ERR_UNKNOWN:
                raise Trouble(f"handshake: server has no export named '{self._export_name}'", errno.ENOENT)
            raise _refused(call_name, answer)

    def _know(self, facts: Facts) -> None:
        """Keep what was told of an export. Raises RemoteProtocolError where it does not fit together."""
        if self._dialogue is not None:
            negotiation.agreement(self._dialogue.handshake, facts, self._export_name, self._mode, self._contexts)
        self._facts = facts

    def _forget(self) -> None:
        self._facts, self._contexts = None, {}

    def _enter(self, facts: Facts) -> None:
        dialogue = self._dialogue
        if dialogue is None or dialogue.handshake.state is not State.TRANSMISSION:
            raise Trouble("there is no connection", errno.ENOTCONN)
        self._know(facts)
        agreed = negotiation.agreement(dialogue.handshake, facts, self._export_name, self._mode, self._contexts)
        name = dialogue.handshake.peer
        self._connection = Connection(dialogue.stream, agreed, name, patience=self._timeout, slowest=_SLOWEST)
        self._dialogue = None
        self.state = READY


def _refused(call_name: str, answer: Answer) -> Trouble:
    """Return what is said where the server refuses an option."""
    error = answer.refusal("", "this export")
    if call_name == "handshake":
        if answer.kind == Rep.ERR_TLS_REQD:
            return Trouble("handshake: server requires TLS encryption first", error.errno)
        return Trouble(f"handshake: {error.message}", error.errno)
    return Trouble(f"server replied with error to {call_name} request", error.errno)
