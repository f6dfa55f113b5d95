# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Carry out single requests: all commands, all kinds of bytes. The fast path has taken what is simple.

Where the work is done: in the loop if it is short (warm pages, small changes, inflating a grain), in the pool if it
may wait (cold pages, flush, long zeroing, long maps, remote devices). What comes from the pool is a whole reply or
the last chunk of one, so replies never mix inside a chunk. A read that meets trouble in the loop is repeated in the
pool, which waits where it must and is the one place that reports errors of reading.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmdkit.errors import VmdkitError
from vmdkit.kernels import ZEROS
from vmdkit.nbd.fastpath import NOWAIT_REFUSED, SMALL
from vmdkit.nbd.protocol import COUNT, MAX_EXTENTS, OFFSET, Command, CommandFlag, Error, Mode
from vmdkit.nbd.regions import ASK, DATA, MOST_STATUS, UNKNOWN, ZERO, take_status
from vmdkit.nbd.transmission import describe, failure, hole, read_head, refuse_range, status, success
from vmdkit.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.nbd.buffers import Buffers
    from vmdkit.nbd.pool import Pool
    from vmdkit.nbd.regions import Regions, Span
    from vmdkit.nbd.sender import Outbox, Sender
    from vmdkit.nbd.session import Session
    from vmdkit.nbd.transmission import Request

    Finish = Callable[[Any, BaseException | None], None]

_PIECE: Final = 128 * KIB  # bytes read at once into the outbox
_HEAD: Final = 40  # bytes of the longest header of a chunk of data
_INLINE_CHANGE: Final = 256 * KIB  # bytes zeroed or trimmed in the loop
_SLOW: Final = 0.0005  # seconds; a device whose reads take longer on average is asked from the pool
_NEAR: Final = 32 * MIB  # bytes in which the end of a run is looked for before the pool is asked
_AHEAD: Final = 256 * GIB  # bytes behind a long question in which the end of its last run is looked for
_HELPERS: Final = 2  # reads of compressed bytes given to the pool while the loop does the next: one under way, one due
MOST_IN_FLIGHT: Final = 32 * MIB  # bytes of one client in pool jobs
MOST_JOBS: Final = 64  # pool jobs of one client
MOST_TOTAL: Final = 256 * MIB  # bytes in buffers of all clients of a loop, beyond the first job of each


class Owner(Protocol):
    """The connection that commands belong to."""

    def finished(self, deliver: Callable[[], None]) -> None:
        """Run ``deliver`` after a pool job has ended, guard its errors, and go on with what was held."""


class Commands:
    """The requests of one client. Errors of the device become replies; errors of the socket are raised."""

    def __init__(
        self, session: Session, regions: Regions, sender: Sender, outbox: Outbox, pool: Pool, buffers: Buffers,
        owner: Owner,
    ) -> None:  # fmt: skip
        self._session = session
        self._device = session.export.device
        self._regions = regions
        self._sender = sender
        self._outbox = outbox
        self._pool = pool
        self._buffers = buffers
        self._owner = owner
        self._rest: tuple[Request, int] | None = None  # a read that waits for the socket, and where it stands
        self._ask_seconds = 0.0  # moving average
        self.jobs = 0
        self.more_wait = False  # further requests are in the inbox: a second processor could do this one
        self.gone = False  # the client left; nobody wants results
        self._in_flight = 0

    @property
    def held(self) -> bool:
        """Whether no further request may be taken now; the socket or the end of an own job changes that."""
        if self._sender.blocked or self._rest is not None:
            return True
        return bool(self.jobs) and (
            self._pool.ready  # to be sent now; the pool would rest until the last request of the inbox is done
            or self._in_flight >= MOST_IN_FLIGHT
            or self.jobs >= MOST_JOBS
            or self._buffers.taken >= MOST_TOTAL
        )

    @property
    def idle(self) -> bool:
        """Whether every request taken has its reply in the sender's hands."""
        return not self.jobs and self._rest is None

    def execute(self, request: Request, data: bytes) -> None:
        """Carry out a request that was found good; ``data`` is what came with it, for BLOCK_STATUS only."""
        _HANDLERS[request.command](self, request, data)

    def send(self, replies: memoryview, piece: tuple[int, int, int] | None) -> None:
        """Send finished replies, whose memory may be used again at once, and the piece of a file behind them."""
        if replies:
            self._sender.send(replies, more=piece is not None)
        if piece is not None:
            self._sender.send_file(*piece)

    def advance(self) -> None:
        """Go on with a read that waited for the socket."""
        if self._rest is not None and not self._sender.blocked:
            (request, offset), self._rest = self._rest, None
            self._read_from(request, offset)
            self._outbox.flush()

    def fail(self, request: Request, error: BaseException) -> None:
        """Reply that the device failed."""
        self._outbox.put(failure(self._session, request, *describe(error)))

    # ── the pool ─────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(
        self, work: Callable[[], Any], finish: Finish, cost: int = 0, cleanup: Callable[[], None] | None = None
    ) -> None:
        """Run ``work`` in the pool and ``finish(result, error)`` in the loop; ``cleanup`` if the client left."""
        self.jobs += 1
        self._in_flight += cost
        self._pool.submit(work, partial(self._ended, finish, cost, cleanup))

    def _ended(
        self, finish: Finish, cost: int, cleanup: Callable[[], None] | None, result: Any, error: BaseException | None
    ) -> None:
        self.jobs -= 1
        self._in_flight -= cost
        if not self.gone:
            self._owner.finished(partial(finish, result, error))
        elif cleanup is not None:
            cleanup()

    def _reply_after(self, request: Request, work: Callable[[], Any]) -> None:
        """Run ``work`` in the pool; reply with success or its error."""

        def finish(_: Any, error: BaseException | None) -> None:
            if error is None:
                self._outbox.put(success(self._session, request))
            else:
                self.fail(request, error)
            self._outbox.flush()

        self._submit(work, finish)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, request: Request, data: bytes) -> None:
        if not request.length:
            self._outbox.put(success(self._session, request))
        elif self._session.mode is Mode.SIMPLE or request.flags & CommandFlag.DF:
            self._read_whole(request)
        else:
            self._read_from(request, request.offset)

    def _runs(self, request: Request, offset: int) -> list[tuple[int, int, int, int, int]] | None:
        """Return the runs from ``offset`` to the end of a read; None where the device fails to say."""
        try:
            return list(self._regions.walk(offset, request.offset + request.length - offset))
        except (OSError, VmdkitError):
            return None

    def _read_from(self, request: Request, offset: int) -> None:
        """Answer a read from ``offset`` on by a chunk for each run; what may wait is left to the pool."""
        end = request.offset + request.length
        for at, length, what, fd, delta in self._runs(request, offset) or ((offset, end - offset, UNKNOWN, -1, 0),):
            while length:
                whole = what == ZERO or (what == DATA and self._sender.direct)
                step = length if whole else min(length, _PIECE)
                if not self._chunk(request, at, step, what, fd, delta, done=at + step == end):
                    self._read_in_pool(request, at, end - at)
                    return
                at, length = at + step, length - step
                if self._sender.blocked and at < end:
                    self._rest = request, at
                    return

    def _chunk(self, request: Request, at: int, count: int, what: int, fd: int, delta: int, *, done: bool) -> bool:
        """Send one chunk; False, with nothing sent, where that would have to wait."""
        outbox = self._outbox
        if what == ZERO:
            outbox.put(hole(self._session, request, at, count, done=done))
            return True
        if what == DATA and count >= SMALL and self._sender.direct:
            if not self._warm(fd, at + delta, count):
                return False
            outbox.put(read_head(self._session, request, at, count, done=done))
            outbox.flush(more=True)
            self._sender.send_file(fd, at + delta, count)
            return True
        head = read_head(self._session, request, at, count, done=done)
        start = outbox.room(len(head) + count)
        data = start + len(head)
        if not self._fill(outbox.view[data : data + count], at, what, fd, delta):
            return False
        outbox.view[start:data] = head
        outbox.fill = data + count
        return True

    def _fill(self, view: memoryview, at: int, what: int, fd: int, delta: int) -> bool:
        """Read one run into ``view``; False where that would have to wait, or failed."""
        try:
            if what == DATA:
                return os.preadv(fd, (view,), at + delta, self._regions.nowait) == len(view)
            if what == ZERO:
                view[:] = ZEROS[: len(view)]
                return True
            if (what == UNKNOWN and self._ask_seconds > _SLOW) or (
                what == ASK and self.more_wait and self.jobs < _HELPERS
            ):
                return False
            begun = time.perf_counter()
            self._device.pread_into(view, at)
            self._ask_seconds += (time.perf_counter() - begun - self._ask_seconds) / 8
        except OSError as error:
            self._learn(error)
            return False
        except VmdkitError:
            return False
        return True

    def _warm(self, fd: int, at: int, count: int) -> bool:
        """Tell whether the end of a piece of a file is in the page cache; sendfile would wait for the disk."""
        nowait = self._regions.nowait
        try:
            return not nowait or os.preadv(fd, (self._regions.probe,), at + count - 1, nowait) == 1
        except OSError as error:
            return self._learn(error)

    def _learn(self, error: OSError) -> bool:
        """Tell whether an error means that the file system knows no reading without waiting; remember it."""
        if self._regions.nowait and error.errno in NOWAIT_REFUSED:
            self._regions.nowait = 0
            return True
        return False

    def _read_whole(self, request: Request) -> None:
        """Answer a read by one piece of data: all a simple reply can be, and what the DF flag asks for."""
        offset, count = request.offset, request.length
        runs = self._runs(request, offset)
        if runs is not None and count >= SMALL and self._sender.direct:
            if all(what == ZERO or (what == DATA and self._warm(fd, at + d, n)) for at, n, what, fd, d in runs):
                self._send_whole(request, runs)
                return
        elif runs is not None and count <= _PIECE:
            head = read_head(self._session, request, offset, count, done=True)
            start = self._outbox.room(len(head) + count)
            data = start + len(head)
            base = data - offset
            if all(self._fill(self._outbox.view[base + at : base + at + n], at, *place) for at, n, *place in runs):
                self._outbox.view[start:data] = head
                self._outbox.fill = data + count
                return
        self._read_in_pool(request, offset, count)

    def _send_whole(self, request: Request, runs: list[tuple[int, int, int, int, int]]) -> None:
        self._outbox.put(read_head(self._session, request, request.offset, request.length, done=True))
        self._outbox.flush(more=True)
        zeros = memoryview(ZEROS)
        for at, length, what, fd, delta in runs:
            if what == DATA:
                self._sender.send_file(fd, at + delta, length)
                continue
            while length:
                step = min(length, len(zeros))
                self._sender.send_owned(zeros[:step])
                length -= step

    def _read_in_pool(self, request: Request, offset: int, count: int) -> None:
        """Read the rest of a request in the pool and reply with it, or with the error."""
        buffer = self._buffers.take(count)
        view = memoryview(buffer)[:count]
        give_back = partial(self._buffers.give, buffer)

        def finish(_: Any, error: BaseException | None) -> None:
            if error is not None:
                give_back()
                self.fail(request, error)
                self._outbox.flush()
                return
            try:
                self._outbox.put(read_head(self._session, request, offset, count, done=True))
                self._outbox.flush(more=True)
            except OSError:
                give_back()
                raise
            self._sender.send_owned(view, give_back)

        self._submit(partial(self._device.pread_into, view, offset), finish, count, give_back)

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, data: memoryview, offset: int) -> Exception | None:
        """Write a piece of a request's payload; returns the device's error."""
        try:
            self._device.pwrite(data, offset)
        except Exception as error:  # a driver's bug must not end the client either
            return error
        self._regions.wrote(offset, len(data))
        return None

    def written(self, request: Request, error: Exception | None) -> None:
        """Reply to a write whose payload is complete."""
        if error is not None:
            self.fail(request, error)
        elif request.flags & CommandFlag.FUA:
            self._reply_after(request, self._device.flush)
        else:
            self._outbox.put(success(self._session, request))

    def _flush(self, request: Request, data: bytes) -> None:
        if self._session.export.writable:
            self._reply_after(request, self._device.flush)
        else:
            self._outbox.put(success(self._session, request))

    def _cache(self, request: Request, data: bytes) -> None:
        self._reply_after(request, partial(self._device.cache, request.length, request.offset))

    def _trim(self, request: Request, data: bytes) -> None:
        fua = bool(request.flags & CommandFlag.FUA)
        self._change(request, partial(self._device.trim, request.length, request.offset, fua=fua), fua)

    def _zero(self, request: Request, data: bytes) -> None:
        flags = request.flags
        fua = bool(flags & CommandFlag.FUA)
        work = partial(
            self._device.zero, request.length, request.offset,
            no_hole=bool(flags & CommandFlag.NO_HOLE), fast=bool(flags & CommandFlag.FAST_ZERO), fua=fua,
        )  # fmt: skip
        self._change(request, work, fua)

    def _change(self, request: Request, work: Callable[[], None], fua: bool) -> None:
        self._regions.changed(request.offset, request.length)

        def finish(_: Any, error: BaseException | None) -> None:
            self._regions.changed(request.offset, request.length)
            if error is None:
                self._outbox.put(success(self._session, request))
            else:
                self.fail(request, error)
            self._outbox.flush()

        if fua or request.length > _INLINE_CHANGE:
            self._regions.hold()

            def ended(result: Any, error: BaseException | None) -> None:
                self._regions.release()
                finish(result, error)

            self._submit(work, ended, cleanup=self._regions.release)
            return
        try:
            work()
        except Exception as error:  # as for write
            finish(None, error)
        else:
            finish(None, None)

    # ── block status ─────────────────────────────────────────────────────────────────────────────────────────

    def _status(self, request: Request, data: bytes) -> None:
        contexts = dict(self._session.contexts)
        if data:  # the range, and the contexts the client wants this time
            wrong, count, contexts = self._filter(request, data)
            if wrong is not None:
                self._outbox.put(failure(self._session, request, *wrong))
                return
            request = request._replace(length=count)
        most = 1 if request.flags & CommandFlag.REQ_ONE else MAX_EXTENTS // len(contexts)
        if request.length <= MOST_STATUS:
            try:
                reply = self._status_reply(request, contexts, most, self._regions.status)
            except Exception as error:  # as for write
                self.fail(request, error)
            else:
                self._outbox.put(reply)
            return
        at, length = request.offset, request.length
        if all(self._regions.span(name, at, length) for name in contexts.values()):
            self._outbox.put(self._status_reply(request, contexts, most, lambda *of: self._regions.span(*of[:3])))
        elif most == 1 and (reply := self._first_runs(request, contexts)):
            self._outbox.put(reply)
        else:
            self._status_in_pool(request, contexts, most)

    def _status_in_pool(self, request: Request, contexts: dict[int, str], most: int) -> None:
        """Answer a long question in the pool, and remember the long run at the end of the answer."""
        spans: dict[str, Span] = {}

        def ask(name: str, at: int, count: int, most: int) -> list[tuple[int, int]]:
            runs, spans[name] = take_status(self._device, name, at, count, most, _AHEAD)
            return runs

        def finish(reply: bytes, error: BaseException | None) -> None:
            if error is not None:
                self.fail(request, error)
            else:
                self._regions.met(spans)
                self._outbox.put(reply)
            self._outbox.flush()

        self._submit(partial(self._status_reply, request, contexts, most, ask), finish, MIB)

    def _first_runs(self, request: Request, contexts: dict[int, str]) -> bytes:
        """Return the reply to a long question for one run, if it ends near its beginning; else nothing.

        qemu asks for the rest of the disk each time, and takes one run (nbd spec, interop fact 6).
        """
        last = next(reversed(contexts))
        out = b""
        for number, name in contexts.items():
            try:
                runs = self._regions.status(name, request.offset, min(_NEAR, request.length), 2)
            except (OSError, VmdkitError):  # the long way meets and reports it
                return b""
            if len(runs) < 2:
                return b""
            out += status(self._session, request, number, runs[:1], done=number == last)
        return out

    def _status_reply(
        self, request: Request, contexts: dict[int, str], most: int,
        ask: Callable[[str, int, int, int], list[tuple[int, int]]],
    ) -> bytes:  # fmt: skip
        at, count, last = request.offset, request.length, next(reversed(contexts))
        return b"".join(
            status(self._session, request, number, ask(name, at, count, most), done=number == last)
            for number, name in contexts.items()
        )

    def _filter(self, request: Request, data: bytes) -> tuple[tuple[int, str] | None, int, dict[int, str]]:
        """Take apart the payload of BLOCK_STATUS: length of the range, then numbers of contexts."""
        count = OFFSET.unpack_from(data)[0]
        numbers = [number for (number,) in COUNT.iter_unpack(data[OFFSET.size :])]
        known = self._session.contexts
        if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= known.keys():
            return (Error.EINVAL, "BLOCK_STATUS names no contexts, one twice, or one that was not selected"), 0, {}
        if not count:
            return (Error.EINVAL, "BLOCK_STATUS of no bytes"), 0, {}
        wrong = refuse_range(self._session, Command.BLOCK_STATUS, request.offset, count)
        return wrong, count, {number: known[number] for number in numbers}


_HANDLERS: dict[int, Callable[[Commands, Request, bytes], None]] = {
    Command.READ: Commands._read,
    Command.FLUSH: Commands._flush,
    Command.TRIM: Commands._trim,
    Command.CACHE: Commands._cache,
    Command.WRITE_ZEROES: Commands._zero,
    Command.BLOCK_STATUS: Commands._status,
}
