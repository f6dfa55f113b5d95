# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How a handle reaches its server, and leaves it."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from vmdkit.errors import ConnectionLostError, RemoteProtocolError, ReplyError, VmdkitError
from vmdkit.nbd import client_negotiate as negotiation
from vmdkit.nbd import handle_names as n
from vmdkit.nbd.client_address import (
    ActivatedAddress,
    Address,
    CommandAddress,
    SocketAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from vmdkit.nbd.client_dialogue import Dialogue
from vmdkit.nbd.client_handshake import Facts, Handshake
from vmdkit.nbd.handle_names import Trouble
from vmdkit.nbd.handle_state import (
    CLOSED,
    DEAD,
    NEGOTIATING,
    NEW,
    READY,
    START,
    Settings,
    call,
)  # fmt: skip
from vmdkit.nbd.protocol import Mode
from vmdkit.nbd.uri import NbdUri, Transport, parse_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmdkit.nbd.client_connection import Connection
    from vmdkit.nbd.client_tls import ClientTls

_SLOWEST: Final = 16384.0  # bytes a second, as ClientOptions
_TRANSPORTS: Final = {
    Transport.TCP: n.ALLOW_TRANSPORT_TCP,
    Transport.UNIX: n.ALLOW_TRANSPORT_UNIX,
    Transport.VSOCK: n.ALLOW_TRANSPORT_VSOCK,
}
_NO_SOCKET: Final = (
    'cannot parse socket parameter from NBD URI (did you mean to use "nbd+unix:///?socket=..."?)'
)  # fmt: skip


class Connecting(Settings, ABC):
    """What a handle does up to the moment at which requests can be made."""

    def __init__(self) -> None:
        super().__init__()
        self._address: Address | None = None
        self._dialogue: Dialogue | None = None
        self._connection: Connection | None = None
        self._facts: Facts | None = None
        self._mode = Mode.SIMPLE
        self._contexts: dict[int, str] = {}
        self._protocol = ""
        self._secure = False

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # noqa: S110  # nobody is there to be told
            pass

    # ── connecting ───────────────────────────────────────────────────────────────────────────────────────────

    @call(*NEW)
    def connect_uri(self, uri: str) -> None:
        """Connect to an address."""
        scheme = uri.partition(":")[0]
        if re.fullmatch(r"nbds?(\+(unix|vsock))?", scheme, re.IGNORECASE) is None:
            raise Trouble(f"unknown NBD URI scheme: {scheme}", errno.EINVAL)
        if "+unix" in scheme and "socket=" not in uri:
            raise Trouble(_NO_SOCKET, errno.EINVAL)
        try:
            parsed = parse_uri(uri)
        except VmdkitError as error:
            raise Trouble(error.message, errno.EINVAL) from error
        self._check_allowed(parsed, scheme)
        said = parsed.parameters
        self._export_name = parsed.export
        if parsed.tls:
            self._tls = n.TLS_REQUIRE
        self._tls_username = said.get("tls-username", parsed.user) or self._tls_username
        self._tls_certificates = said.get("tls-certificates", self._tls_certificates)
        self._tls_psk = said.get("tls-psk-file", self._tls_psk)
        self._tls_hostname = said.get("tls-hostname", self._tls_hostname)
        if parsed.transport is Transport.UNIX:
            self._start(UnixAddress(parsed.path, uri))
        elif parsed.transport is Transport.VSOCK:
            self._start(VsockAddress(int(parsed.host), parsed.port, uri))
        else:
            self._start(TcpAddress(parsed.host, parsed.port, uri))

    def _check_allowed(self, parsed: NbdUri, scheme: str) -> None:
        if not self._allow_transports & _TRANSPORTS[parsed.transport]:
            raise Trouble(f"URI transport {scheme} is not permitted", errno.EPERM)
        if self._allow_tls == (n.TLS_DISABLE if parsed.tls else n.TLS_REQUIRE):
            raise Trouble(f"URI TLS setting {scheme} is not permitted", errno.EPERM)
        for key in ("tls-certificates", "tls-psk-file"):
            if key in parsed.parameters and not self._allow_files:
                raise Trouble(
                    f"local file access ({key}) is not allowed, call nbd_set_uri_allow_local_file to enable this",
                    errno.EPERM,
                )

    @call(*NEW)
    def connect_tcp(self, hostname: str, port: str) -> None:
        """Connect to a TCP port, a number or a name."""
        self._start(TcpAddress(hostname, port, f"{hostname}:{port}"))

    @call(*NEW)
    def connect_unix(self, unixsocket: str) -> None:
        """Connect to a Unix socket."""
        self._start(UnixAddress(unixsocket, unixsocket))

    @call(*NEW)
    def connect_vsock(self, cid: int, port: int) -> None:
        """Connect to a virtual machine, or from inside one to its host."""
        self._start(VsockAddress(cid, port, f"vsock {cid}:{port}"))

    @call(*NEW)
    def connect_socket(self, sock: int) -> None:
        """Take over a connected socket."""
        try:
            self._start(SocketAddress(sock))
        except OSError as error:
            raise Trouble("fcntl: set O_NONBLOCK", error.errno or 0) from error

    @call(*NEW)
    def connect_command(self, argv: Sequence[str]) -> None:
        """Start a program that speaks NBD on its standard input and output."""
        if not argv:
            raise Trouble("missing command name in argv list", errno.EINVAL)
        self._start(CommandAddress(argv))

    @call(*NEW)
    def connect_systemd_socket_activation(self, argv: Sequence[str]) -> None:
        """Start a program that takes its listening socket as from systemd."""
        if not argv:
            raise Trouble("missing command name in argv list", errno.EINVAL)
        self._start(ActivatedAddress(argv))

    def _start(self, address: Address) -> None:
        with self._lock:
            handshake = Handshake(address.name, self._handshake_flags)
            tick = min(max(self._timeout / 8, 0.01), 1.0)
            try:
                self._dialogue = Dialogue(address, handshake, patience=self._timeout, tick=tick)
            except OSError as error:
                address.close()
                self.state = START if isinstance(address, TcpAddress) else DEAD
                raise self._unreachable(address, error) from error
            except VmdkitError as error:
                address.close()
                self.state = DEAD
                raise handshake_trouble(error) from error
            self._address = address
            try:
                self._begin(self._dialogue, address)
            except (VmdkitError, Trouble) as error:
                self._fail()
                raise error if isinstance(error, Trouble) else handshake_trouble(error)  # noqa: B904

    def _unreachable(self, address: Address, error: OSError) -> Trouble:
        if not isinstance(address, TcpAddress):
            if isinstance(address, (CommandAddress, ActivatedAddress)):  # libnbd hears of it by the child's end
                return Trouble("recv: server disconnected unexpectedly")
            return Trouble("connect", error.errno or 0)
        if isinstance(error.__cause__, socket.gaierror):
            reason = error.__cause__.strerror
            return Trouble(f'getaddrinfo: hostname "{address.host}" port "{address.port}": {reason}')
        place = f"{address.host}:{address.port}"
        return Trouble(f"connect: {place}: could not connect to remote host", error.errno or errno.ETIMEDOUT)

    def _begin(self, dialogue: Dialogue, address: Address) -> None:
        """Do what comes before the export is chosen; in opt mode stop there."""
        handshake = dialogue.handshake
        secure = self._tls != n.TLS_DISABLE and dialogue.starttls(self._tls_settings(), address.host)
        if self._tls == n.TLS_REQUIRE and not secure:
            raise Trouble("handshake: server refused TLS, but handle TLS setting is 'require' (2)", errno.ENOTSUP)
        self._secure = handshake.secure
        self._handshake_flags = int(handshake.flags)
        self._protocol = "oldstyle" if handshake.oldstyle else "newstyle-fixed" if handshake.fixed else "newstyle"
        if handshake.oldstyle is not None:
            self._enter(handshake.oldstyle)
            return
        if not handshake.fixed:
            self._enter(negotiation.export_name(dialogue.exchange, self._export_name))
            return
        self._mode = negotiation.reply_mode(
            dialogue.exchange, Mode.EXTENDED if self._structured else Mode.SIMPLE
        )  # fmt: skip
        if self._opt_mode:
            self.state = NEGOTIATING
        else:
            self._go("handshake")

    @abstractmethod
    def _go(self, call_name: str) -> None:
        """Choose the export, in handle_options."""

    @abstractmethod
    def _enter(self, facts: Facts) -> None:
        """Begin with requests, in handle_options."""

    def _tls_settings(self) -> ClientTls:
        from vmdkit.nbd import client_tls

        if self._tls_psk is not None:
            return client_tls.with_psk(self._tls_psk, self._tls_username)
        return client_tls.with_certificates(
            self._tls_certificates, hostname=self._tls_hostname, verify=self._tls_verify
        )  # fmt: skip

    def _fail(self) -> None:
        self.state = DEAD
        if self._dialogue is not None:
            self._dialogue.close()
            self._dialogue = None

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    @call(READY)
    def shutdown(self, flags: int = 0) -> None:
        """Say goodbye to the server and wait until it has closed."""
        if flags & ~n.SHUTDOWN_MASK:
            raise Trouble(f"flags: invalid value for flag: {flags:#x}", errno.EINVAL)
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self.state = self._connection, CLOSED
        if connection is not None:
            connection.close()

    @call()
    def kill_subprocess(self, signum: int) -> None:
        """Send a signal to the program that was started; 0 is SIGTERM."""
        process = getattr(self._address, "process", None)
        if process is None:
            raise Trouble("no subprocess exists", errno.ESRCH)
        try:
            os.kill(process.pid, signum or signal.SIGTERM)
        except OSError as error:
            raise Trouble("kill", error.errno or 0) from error

    def close(self) -> None:
        """Give back everything; happens by itself when the handle goes."""
        if self._dialogue is not None:
            self._dialogue.close()
            self._dialogue = None
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        finally:
            address, self._address = self._address, None
            if self.state in (READY, NEGOTIATING):
                self.state = CLOSED
            if address is not None:
                address.close()


def handshake_trouble(error: VmdkitError) -> Trouble:
    """Return what is said where a handshake ends."""
    if isinstance(error, ConnectionLostError) and error.closed:
        cause = error.__cause__
        if isinstance(cause, OSError):
            return Trouble("recv", cause.errno or 0)
        return Trouble("recv: server disconnected unexpectedly")
    number = error.errno if isinstance(error, (ReplyError, RemoteProtocolError)) else 0
    return Trouble(f"handshake: {error.message}", number)
