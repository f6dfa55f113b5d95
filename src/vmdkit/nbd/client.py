# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""An export of an NBD server as a Device.

::

    NbdDevice ── what a Device is asked for, in requests of the sizes that the server takes
       Pool ── which connection, and what happens when one is lost
         Connection ── threads that send, and one of them that reads
           Core ── what the bytes mean; no input or output

``connect`` takes any Address: a URI's, a socket, a program to be started. ``open_uri`` is what ``vmdkit.open`` calls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vmdkit import ranges
from vmdkit.device import ALLOCATION, HOLE_ZERO, BlockSize, Can, Device
from vmdkit.errors import RemoteProtocolError, ReplyError, UnsupportedError, UsageError, VmdkitError
from vmdkit.nbd.client_address import Address, address_of
from vmdkit.nbd.client_core import Request
from vmdkit.nbd.client_negotiate import Wishes
from vmdkit.nbd.client_pool import MOST_CONNECTIONS, ClientOptions, Job, Pool, open_dialogue
from vmdkit.nbd.protocol import Command, CommandFlag, Error, ExportFlag, Mode, Opt
from vmdkit.nbd.uri import NbdUri, number, parse_uri
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmdkit.nbd.client_connection import Connection
    from vmdkit.nbd.client_tls import ClientTls
    from vmdkit.options import OpenOptions

_MAXIMUM: Final = 32 * MIB  # bytes of one read or write; what every server takes
_UNTOLD: Final = (1, 4 * KIB, _MAXIMUM)  # block sizes where the server told none, as the protocol says
# Bytes of one request that moves none: nbdkit before 1.44.1 zeroed only the first 64 MiB of more (users spec, S8b).
_STEP: Final = 32 * MIB
_FIRST_STATUS: Final = 128 * MIB  # bytes asked about at first: some servers take long for a whole disk
_FEW: Final = 64  # extents in an answer; then the next question is about twice as much
_MOST_STATUS: Final = {Mode.STRUCTURED: 4 * 1024 * MIB - MIB, Mode.EXTENDED: 1 << 44}
_PARALLEL: Final = 8  # requests of up to a mebibyte at once: as fast as sixteen to a server on this machine
_LONGEST_TIME: Final = 86400.0  # seconds


class NbdDevice(Device):
    """An export. Many threads may use it; each request goes to the connection with the least to do."""

    def __init__(self, pool: Pool, *, writable: bool = False) -> None:
        agreed = pool.agreement
        flags = agreed.flags
        if writable and ExportFlag.READ_ONLY in flags:
            raise UsageError("the server lets nobody write to this export", path=pool.address.name)
        minimum, preferred, maximum = agreed.sizes or _UNTOLD
        minimum_steps = _MAXIMUM - _MAXIMUM % minimum
        super().__init__(
            agreed.size,
            name=pool.address.name,
            can=_can(flags, writable) | (Can.EXTENTS if ALLOCATION in agreed.contexts.values() else Can.NONE),
            block_size=BlockSize(minimum, max(preferred, minimum), min(maximum, minimum_steps)),
            contexts=tuple(dict.fromkeys([ALLOCATION, *agreed.contexts.values()])),
        )
        self._pool = pool
        self._flags = flags
        self._most = self.block_size.maximum

    @property
    def parallel(self) -> int:
        """Enough to keep the connections busy while answers are on their way."""
        return _PARALLEL

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if len(view) <= self._most:
            self._pool.run(Job(Command.READ, offset, len(view), 0, view))
            return
        self._pool.run_all(
            [Job(Command.READ, offset + at, len(piece), 0, piece) for at, piece in self._pieces(view)]
        )  # fmt: skip

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self._write(view, offset, 0)

    def _pwrite_fua(self, view: memoryview, offset: int) -> None:
        if ExportFlag.SEND_FUA in self._flags:
            self._write(view, offset, CommandFlag.FUA)
        else:
            super()._pwrite_fua(view, offset)

    def _write(self, view: memoryview, offset: int, flags: int) -> None:
        self._pool.run_all(
            [
                Job(Command.WRITE, offset + at, len(piece), flags, None, piece)
                for at, piece in self._pieces(view)
            ]
        )  # fmt: skip

    def _pieces(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        for at in range(0, len(view), self._most):
            yield at, view[at : at + self._most]

    # ── what moves no bytes ──────────────────────────────────────────────────────────────────────────────────

    def _zero(self, count: int, offset: int, *, no_hole: bool, fast: bool) -> None:
        if ExportFlag.SEND_WRITE_ZEROES not in self._flags:
            super()._zero(count, offset, no_hole=no_hole, fast=fast)
            return
        flags = (CommandFlag.NO_HOLE if no_hole else 0) | (CommandFlag.FAST_ZERO if fast else 0)
        try:
            self._steps(Command.WRITE_ZEROES, count, offset, flags)
        except ReplyError as error:
            if fast and error.errno == Error.ENOTSUP:
                raise UnsupportedError("zeroing is not faster than writing here", path=self.name) from error
            raise

    def _trim(self, count: int, offset: int) -> None:
        if ExportFlag.SEND_TRIM in self._flags:
            self._steps(Command.TRIM, count, offset, 0)

    def _cache(self, count: int, offset: int) -> None:
        if ExportFlag.SEND_CACHE in self._flags:
            self._steps(Command.CACHE, count, offset, 0)
        else:
            super()._cache(count, offset)

    def _steps(self, command: int, count: int, offset: int, flags: int) -> None:
        step = _STEP - _STEP % self.block_size.minimum
        self._pool.run_all(
            [Job(command, at, min(step, offset + count - at), flags) for at in range(offset, offset + count, step)]
        )

    def _flush(self) -> None:
        """Flush; a server that does not offer it has nothing volatile, as kernels and qemu take it too."""
        if ExportFlag.SEND_FLUSH in self._flags:
            self._pool.flush()

    # ── extents ──────────────────────────────────────────────────────────────────────────────────────────────

    def _extents(self, count: int, offset: int, context: str) -> Iterator[tuple[int, int, int]]:
        """Ask piece by piece, for more at once where the server has little to say."""
        if context not in self._pool.agreement.contexts.values():
            yield offset, count, 0  # base:allocation of a server that tells nothing: data
            return
        minimum = self.block_size.minimum
        most = _MOST_STATUS[self._pool.agreement.mode]
        mask = HOLE_ZERO if context == ALLOCATION else -1
        first, (at, whole) = offset, ranges.align(offset, count, minimum)
        ask, end = _FIRST_STATUS, at + whole
        while at < end:
            lengths, flags = self._status(at, min(ask, end - at), context)
            for length, flag in zip(lengths, flags, strict=True):
                at += length
                if at > first:
                    yield first, at - first, flag & mask
                    first = at
                if at >= end:
                    return
            ask = min(ask * 2, most) if len(lengths) < _FEW else _FIRST_STATUS
            if at % minimum:  # a question has to begin on a block
                raise self._unaligned(at, minimum)

    def _status(self, offset: int, count: int, context: str) -> tuple[Sequence[int], Sequence[int]]:
        connection, request = self._pool.ask(lambda each: _status_request(each, offset, count, context))
        number = next(key for key, name in connection.agreement.contexts.items() if name == context)
        return request.extents[number]

    def _unaligned(self, offset: int, minimum: int) -> Exception:
        return RemoteProtocolError(
            f"the server broke the protocol: an extent that ends at {offset:#x}, in the middle of a block of {minimum}",
            path=self.name,
        )

    # ── what there is to know ────────────────────────────────────────────────────────────────────────────────

    def facts(self) -> dict[str, Any]:
        """Return what the server told, ready for JSON."""
        agreed = self._pool.agreement
        told = agreed.sizes
        return {
            "file": self.name,
            "format": "nbd",
            "protocol": agreed.protocol,
            "tls": agreed.secure,
            "replies": agreed.mode.name.lower(),
            "export": agreed.export,
            "canonical_name": agreed.name,
            "description": agreed.description,
            "size": agreed.size,
            "block_size_minimum": told[0] if told else None,
            "block_size_preferred": told[1] if told else None,
            "block_size_maximum": told[2] if told else None,
            **{key: flag in agreed.flags for key, flag in FLAGS.items()},
            "contexts": list(agreed.contexts.values()),
        }

    def _close(self) -> None:
        self._pool.close()


# what nbdinfo calls them -> flag
FLAGS: Final = {
    "is_read_only": ExportFlag.READ_ONLY,
    "is_rotational": ExportFlag.ROTATIONAL,
    "can_cache": ExportFlag.SEND_CACHE,
    "can_df": ExportFlag.SEND_DF,
    "can_fast_zero": ExportFlag.SEND_FAST_ZERO,
    "can_flush": ExportFlag.SEND_FLUSH,
    "can_fua": ExportFlag.SEND_FUA,
    "can_multi_conn": ExportFlag.CAN_MULTI_CONN,
    "can_trim": ExportFlag.SEND_TRIM,
    "can_zero": ExportFlag.SEND_WRITE_ZEROES,
}
_CAN: Final = {
    ExportFlag.SEND_FLUSH: Can.FLUSH,
    ExportFlag.SEND_FUA: Can.FUA,
    ExportFlag.SEND_WRITE_ZEROES: Can.ZERO,
    ExportFlag.SEND_FAST_ZERO: Can.FAST_ZERO,
    ExportFlag.SEND_TRIM: Can.TRIM,
    ExportFlag.SEND_CACHE: Can.CACHE,
    ExportFlag.CAN_MULTI_CONN: Can.MULTI_CONN,
}


def _can(flags: ExportFlag, writable: bool) -> Can:
    can = Can.WRITE if writable else Can.NONE
    for flag, offered in _CAN.items():
        if flag in flags:
            can |= offered
    return can


def _status_request(
    connection: Connection, offset: int, count: int, context: str
) -> tuple[Request, memoryview | None]:  # fmt: skip
    """Ask about one context where the server can be told which, else about all."""
    agreed = connection.agreement
    number = next(key for key, name in agreed.contexts.items() if name == context)
    request = Request(Command.BLOCK_STATUS, offset, count)
    if len(agreed.contexts) == 1 or ExportFlag.BLOCK_STATUS_PAYLOAD not in agreed.flags:
        request.wanted = frozenset(agreed.contexts)
        return request, None
    request.wanted = frozenset((number,))
    payload = memoryview(count.to_bytes(8, "big") + number.to_bytes(4, "big"))
    request.flags, request.length = CommandFlag.PAYLOAD_LEN, len(payload)
    return request, payload


def connect(
    address: Address | str,
    *,
    writable: bool = False,
    options: ClientOptions = ClientOptions(),  # noqa: B008  # immutable
    export: str = "",
    contexts: Sequence[str] | None = None,
) -> NbdDevice:
    """Return an export as a Device; ``address`` may be a URI, which then says the export and more.

    ``contexts`` are to be asked for; None takes what the server lists. Raises OSError where it cannot be reached,
    ConnectionLostError, ReplyError where the server refuses, RemoteProtocolError where it breaks the protocol.
    """
    if isinstance(address, str):
        uri = parse_uri(address)
        address, export, options = address_of(uri), uri.export, options_of(uri, options)
    if len(export.encode()) > 4096:
        raise UsageError("a name of an export has at most 4096 bytes", path=address.name)
    pool = None
    try:
        pool = Pool(address, Wishes(export, contexts), options)
        return NbdDevice(pool, writable=writable)
    except BaseException:
        if pool is None:
            address.close()
        else:
            pool.close()
        raise


def open_uri(location: str, wishes: OpenOptions) -> NbdDevice:
    """Open a URI for ``vmdkit.open``. Raises as ``connect``."""
    if wishes.untrusted:
        raise UsageError("of what is not trusted only files are opened (--untrusted), no servers", path=location)
    uri = parse_uri(location)
    options = options_of(uri, ClientOptions(), wishes.tls_certificates, wishes.tls_psk)
    return connect(address_of(uri), writable=wishes.writable, options=options, export=uri.export)


def list_exports(location: str, certificates: str | None = None, psk: str | None = None) -> list[dict[str, Any]]:
    """Return what the server at a URI exports: name, description, and ``facts`` of each, or the error in their place.

    Raises as ``connect``; ReplyError where the server does not list.
    """
    uri = parse_uri(location)
    options = options_of(uri, ClientOptions(), certificates, psk)
    address = address_of(uri)
    dialogue = open_dialogue(address, options)
    try:
        if not dialogue.handshake.fixed:
            raise UnsupportedError("this server is too old to list its exports", path=location)
        answer = dialogue.exchange(Opt.LIST, b"")
        if not answer.ok:
            raise answer.refusal(location, "to list its exports")
    finally:
        dialogue.abort()
    found = []
    for name, description in answer.exports:
        known: dict[str, Any] = {"export": name, "description": description or None}
        try:
            with connect(address, options=options, export=name) as device:
                known |= {key: value for key, value in device.facts().items() if value is not None and key != "file"}
        except (VmdkitError, OSError) as error:
            known["error"] = str(error)
        found.append(known)
    return found


def options_of(
    uri: NbdUri, given: ClientOptions, certificates: str | None = None, psk: str | None = None
) -> ClientOptions:  # fmt: skip
    """Return the options that a URI asks for, over those that were given.

    Raises UsageError where keys were given for a URI without TLS: they would not be used, and nobody would know.
    """
    if not uri.tls and (certificates or psk or given.tls is not None):
        raise UsageError("certificates or keys were given, but nbd:// is without TLS; write nbds://", path=uri.text)
    return replace(
        given,
        tls=tls_of(uri, certificates, psk) if uri.tls and given.tls is None else given.tls,
        connections=int(number(uri, "connections", 1, MOST_CONNECTIONS, whole=True) or given.connections),
        timeout=number(uri, "timeout", 0.001, _LONGEST_TIME) or given.timeout,
        reconnect=number(uri, "reconnect", 0, _LONGEST_TIME) or given.reconnect,
    )


def tls_of(uri: NbdUri, certificates: str | None = None, psk: str | None = None) -> ClientTls:
    """Return how to speak TLS as a URI says, over what was given; by default with the CAs that the system trusts."""
    from vmdkit.nbd import client_tls  # on use: importing ssl takes as long as all the rest

    said = uri.parameters
    if "tls-certificates" in said or "tls-psk-file" in said:
        certificates, psk = said.get("tls-certificates"), said.get("tls-psk-file")
    if certificates and psk:
        raise UsageError("certificates or shared keys, not both", path=uri.text)
    kind = said.get("tls-type", "psk" if psk else "x509")
    if (kind == "psk") is not bool(psk):
        raise UsageError(f"tls-type={kind} needs tls-{'psk-file=FILE' if kind == 'psk' else 'certificates=DIR'}",
                         path=uri.text)  # fmt: skip
    if psk:
        return client_tls.with_psk(psk, said.get("tls-username", uri.user))
    return client_tls.with_certificates(certificates, hostname=said.get("tls-hostname"))
