# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The blocking driver of a client's handshake: it connects, sends, receives what is due, and keeps the time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmdkit.errors import ConnectionLostError, RemoteProtocolError, VmdkitError
from vmdkit.nbd.client_handshake import Answer, Handshake, State
from vmdkit.nbd.client_stream import PlainStream, Stream, TlsStream
from vmdkit.nbd.protocol import Opt

if TYPE_CHECKING:
    from vmdkit.nbd.client_address import Address
    from vmdkit.nbd.client_tls import ClientTls


class Dialogue:
    """A handshake under way: the blocking driver of ``Handshake``, with one limit of time for all of it."""

    def __init__(
        self, address: Address, handshake: Handshake, *, patience: float, tick: float, watch: list[Stream] | None = None
    ) -> None:
        """Connect and hear the greeting. Raises OSError, RemoteProtocolError, ConnectionLostError."""
        self.handshake = handshake
        self._patience = patience
        self._tick = tick
        self.renew()
        self.stream: Stream = PlainStream(address.connect(patience), tick)
        if watch is not None:
            watch.append(self.stream)
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Give the server its time anew: for who sends options by hand."""
        self._limit = time.monotonic() + self._patience

    def exchange(self, option: int, data: bytes) -> Answer:
        """Send one option and return the answer."""
        self._send(self.handshake.ask(option, data))
        self._take()
        return self.handshake.answer

    def starttls(self, tls: ClientTls, hostname: str) -> bool:
        """Turn to TLS; False where the server refuses. Raises ConnectionLostError where the TLS handshake fails."""
        if not self.handshake.fixed or not self.exchange(Opt.STARTTLS, b"").ok:
            return False
        sock = self._plain().sock
        try:
            self.stream = TlsStream(sock, tls.context, tls.server_name(hostname), self._tick, self._limit)
        except OSError as error:
            reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
            raise ConnectionLostError(f"the TLS handshake failed: {reason}", path=self.handshake.peer) from error
        self.handshake.secured()
        return True

    def abort(self) -> None:
        """Leave in good order: ABORT, its answer, the end."""
        try:
            if self.handshake.state is State.OPTIONS and self.handshake.fixed:
                self.renew()
                self.exchange(Opt.ABORT, b"")
        except (OSError, VmdkitError):
            pass  # a server may close at once
        finally:
            self.close()

    def close(self) -> None:
        """Close."""
        self.stream.close()

    def _plain(self) -> PlainStream:
        if not isinstance(self.stream, PlainStream):
            raise RemoteProtocolError("it agreed to TLS within TLS", path=self.handshake.peer)
        return self.stream

    def _take(self) -> None:
        """Receive until it is the client's turn."""
        while due := self.handshake.wants():
            out = self.handshake.feed(self._receive(due))
            if out:
                self._send(out)

    def _send(self, data: bytes) -> None:
        try:
            self.stream.send((data,), max(self._limit - time.monotonic(), 0.0))
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, count: int) -> bytearray:
        buf = bytearray(count)
        view = memoryview(buf)
        while view:
            try:
                got = self.stream.recv_into(view, exact=True)
            except TimeoutError:
                got = -1
            except OSError as error:
                raise self._lost(error) from error
            if not got:
                raise self._lost(None)
            view = view[max(got, 0) :]
            if view and time.monotonic() > self._limit:
                raise self._late()
        return buf

    def _late(self) -> ConnectionLostError:
        return ConnectionLostError(
            f"the handshake was not over after {self._patience:g} seconds", path=self.handshake.peer
        )  # fmt: skip

    def _lost(self, error: OSError | None) -> ConnectionLostError:
        why = f": {error.strerror or error}" if error is not None else ""
        return ConnectionLostError(
            f"the server closed the connection during the handshake (state {self.handshake.state.value}){why}",
            path=self.handshake.peer, closed=True,
        )  # fmt: skip
