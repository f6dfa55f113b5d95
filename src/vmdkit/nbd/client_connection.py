# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""One connection to a server, past its handshake, used by many threads at once.

Whoever waits for a reply reads for all::

    thread 1   send ──▶ nobody reads, so I do ──▶ reply of 2: wake it ──▶ my reply ──▶ let 3 read ──▶ done
    thread 2   send ──▶ sleep ··································▶ done
    thread 3   send ──▶ sleep ···························································▶ I read now ──▶ …

So a thread that is alone on its connection never waits for another to be woken, and bytes go from the socket straight
into the buffer of who asked for them, whoever receives them. A request has ``patience`` seconds, and more for more
bytes. Whatever goes wrong ends the connection, and no call comes back before nobody can put bytes into its buffer.
"""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING, Final, TypeVar

from vmdkit.errors import ConnectionLostError, RemoteProtocolError, VmdkitError
from vmdkit.nbd.client_core import LARGE, Core, Request
from vmdkit.nbd.protocol import Command

if TYPE_CHECKING:
    from vmdkit.nbd.client_negotiate import Agreement
    from vmdkit.nbd.client_stream import Stream

_GOODBYE: Final = 2.0  # seconds that a server gets to close its side
_SoMuch = TypeVar("_SoMuch", bound=BaseException)


class Connection:
    """See the module's text."""

    def __init__(self, stream: Stream, agreement: Agreement, peer: str, *, patience: float, slowest: float) -> None:
        """``patience`` in seconds for any reply; ``slowest``: bytes a second that a server must at least move."""
        self.agreement = agreement
        self.peer = peer
        self.load = 0  # requests under way
        self.dead: Exception | None = None  # what ended it
        self._stream = stream
        self._core = Core(peer, agreement)
        self._patience = patience
        self._slowest = slowest
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._reader: Request | None = None  # whose thread reads
        self._asleep: list[Request] = []
        self._closed = False

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, request: Request, payload: memoryview | None = None) -> None:
        """Send a request and wait for its reply."""
        self.submit(request, payload)
        self.wait(request)

    def submit(self, request: Request, payload: memoryview | None = None) -> None:
        """Send a request, for whose reply ``wait`` must be called. Raises what ended the connection."""
        with self._lock:
            if self.dead is not None:
                raise copied(self.dead)
            header = self._core.begin(request)
            self.load += 1
            if request.view is not None and request.count >= LARGE:
                self._core.large += 1
        try:
            with self._sending:
                self._stream.send((header,) if payload is None else (header, payload), self._patience_for(request))
        except TimeoutError:
            self._end(
                self._lost(f"the server has not taken {request} within {self._patience_for(request):.3g} seconds")
            )
        except ConnectionError:
            pass  # it may have said why before it closed: wait() reads that, or finds the end
        except OSError as error:
            self._end(self._broke(error))
        except BaseException:
            self._end(self._lost("a request was interrupted"))
            raise

    def wait(self, request: Request) -> None:
        """Return when the reply to a request has come. Raises ReplyError, or what ended the connection."""
        if not request.done:
            limit = time.monotonic() + self._patience_for(request)
            try:
                while not request.done:
                    wake = self._lead_or_sleep(request)
                    if wake is None:
                        self._read(request, limit)
                    elif not wake.acquire(timeout=max(limit - time.monotonic(), 0.0)) and not request.done:
                        self._end(self._late(request))
            except BaseException:  # a signal, most likely
                if self._reader is request:
                    self._pass_on()
                self._end(self._lost("a request was interrupted"))
                raise
        if request.error is not None:
            raise request.error if request.error is not self.dead else copied(request.error)

    def _patience_for(self, request: Request) -> float:
        moved = request.count if request.command in (Command.READ, Command.WRITE) else 0
        return self._patience + moved / self._slowest

    # ── who reads ────────────────────────────────────────────────────────────────────────────────────────────

    def _lead_or_sleep(self, request: Request) -> allocate_lock | None:  # type: ignore[valid-type]
        """Become the reader and return None; where there is one, return what it will release."""
        with self._lock:
            if self.dead is not None and not request.done:  # nobody reads any more
                request.done, request.error = True, self.dead
            if self._reader is None and not request.done:
                self._reader = request
                return None
            wake = allocate_lock()
            if not request.done:
                wake.acquire()
                request.wake = wake
                self._asleep.append(request)
            return wake

    def _read(self, own: Request, limit: float) -> None:
        """Receive for everybody until our own reply is whole; then let another thread read."""
        core, stream = self._core, self._stream
        try:
            while not own.done:
                try:
                    count = stream.recv_into(core.wants(), exact=core.exact())
                except TimeoutError:
                    count = -1
                if count > 0:
                    finished = core.filled(count)
                    if finished:
                        self._finish(finished)
                elif not count:
                    raise self._ended()
                if not own.done and time.monotonic() > limit:
                    raise self._late(own)
        except OSError as error:
            self._die(self._broke(error))
        except VmdkitError as error:
            self._die(error)
        except BaseException:
            self._die(self._lost("a request was interrupted"))
            raise
        finally:
            self._pass_on()

    def _finish(self, finished: list[Request]) -> None:
        with self._lock:
            for request in finished:
                request.done = True
                self.load -= 1
                if request.view is not None and request.count >= LARGE:
                    self._core.large -= 1
                self._wake(request)

    def _wake(self, request: Request) -> None:
        if request.wake is not None:
            self._asleep.remove(request)
            request.wake.release()
            request.wake = None

    def _pass_on(self) -> None:
        with self._lock:
            self._reader = None
            if self._asleep:
                self._wake(self._asleep[0])

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    def _die(self, error: Exception) -> None:
        """Fail every request under way, and all to come. Only who reads may do this."""
        self._stream.shutdown()
        with self._lock:
            if self.dead is None:
                self.dead = error
            for request in list(self._core.pending.values()):
                request.done = True
                request.error = self.dead
                self._wake(request)
            self._core.pending.clear()
            self.load = 0

    def _end(self, error: Exception) -> None:
        """End the connection, whoever reads; afterwards no request is under way."""
        nobody = Request(-1, 0, 0)
        with self._lock:
            if self.dead is None:
                self.dead = error
        self._stream.shutdown()
        while True:
            with self._lock:
                if self._reader is None:
                    self._reader = nobody
                    break
            time.sleep(0.001)  # whoever reads comes back at once: the stream has ended
        self._die(error)
        self._pass_on()

    def _late(self, request: Request) -> ConnectionLostError:
        return self._lost(f"no reply to {request} within {self._patience_for(request):.3g} seconds")

    def _ended(self) -> ConnectionLostError:
        where = "" if self._core.idle() else " in the middle of a reply"
        return ConnectionLostError(f"the server closed the connection{where}", path=self.peer, closed=True)

    def _broke(self, error: OSError) -> ConnectionLostError:
        closed = isinstance(error, ConnectionError)
        return ConnectionLostError(f"the connection broke: {error.strerror or error}", path=self.peer, closed=closed)

    def _lost(self, message: str) -> ConnectionLostError:
        return ConnectionLostError(message, path=self.peer)

    def close(self) -> None:
        """Say DISC, wait a little until the server has closed too, and close.

        Raises RemoteProtocolError where it says something instead: nothing was asked that it could answer.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            polite = self.dead is None and not self._core.pending
            if polite:
                self.dead = self._lost("the connection is closed")
        try:
            if polite:
                self._part()
            else:
                self._end(self._lost("the connection is closed"))
        except OSError:
            pass  # gone already
        finally:
            with self._sending:
                self._stream.close()

    def _part(self) -> None:
        with self._sending:
            self._stream.send((self._core.goodbye(),), _GOODBYE)
            self._stream.finish()
        limit = time.monotonic() + _GOODBYE
        scratch = memoryview(bytearray(16))
        while time.monotonic() < limit:
            try:
                count = self._stream.recv_into(scratch, exact=False)
            except TimeoutError:
                continue
            if count:
                raise RemoteProtocolError(
                    f"the server broke the protocol: {bytes(scratch[:count])!r} after the end; silence was expected",
                    path=self.peer,
                )
            return


def copied(error: _SoMuch) -> _SoMuch:
    """Return an error like ``error``: each thread raises, and notes things on, one of its own."""
    new = type(error).__new__(type(error), *error.args)
    new.__dict__.update(error.__dict__)
    new.__cause__ = error.__cause__
    new.__dict__.pop("__notes__", None)
    return new
