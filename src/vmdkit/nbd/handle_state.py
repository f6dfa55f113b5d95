# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The states of a handle, which calls each permits, and the settings that decide how it connects."""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from vmdkit.errors import RemoteProtocolError, VmdkitError
from vmdkit.nbd import handle_names as n
from vmdkit.nbd.handle_names import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
Result = TypeVar("Result")

START, NEGOTIATING, READY, CLOSED, DEAD = "START", "NEGOTIATING", "READY", "CLOSED", "DEAD"
CONNECTING = "CONNECTING"  # never seen from outside: a call comes back when that is over
TEXTS: Final = {
    START: "Handle after being initially created",
    NEGOTIATING: "Connection is ready to negotiate an NBD option",
    READY: "Connection is ready to process NBD commands",
    CLOSED: "Connection is closed",
    DEAD: "Connection is in an unrecoverable error state, can only be closed",
}
_WORDS: Final = {
    START: "newly created",
    CONNECTING: "connecting",
    NEGOTIATING: "negotiating",
    READY: "connected with the server",
    CLOSED: "shut down",
    DEAD: "dead",
}
ANY: Final = ()
NEW: Final = (START,)
BEFORE: Final = (START, NEGOTIATING)
KNOWN: Final = (NEGOTIATING, READY, CLOSED)
ONCE: Final = (CONNECTING, NEGOTIATING, READY, CLOSED, DEAD)
_LONGEST: Final = 4096  # bytes of a name


def call(
    *permitted: str,
) -> Callable[
    [Callable[Concatenate[Any, P], Result]], Callable[Concatenate[Any, P], Result]
]:  # fmt: skip
    """Make a method a call that is permitted in some states only, and raises nothing but ``nbd.Error``."""

    def wrap(method: Callable[Concatenate[Any, P], Result]) -> Callable[Concatenate[Any, P], Result]:
        name = method.__name__

        @functools.wraps(method)
        def checked(self: Settings, /, *words: P.args, **named: P.kwargs) -> Result:
            try:
                if permitted and self.state not in permitted:
                    raise refusal(self.state, permitted)
                return method(self, *words, **named)
            except Trouble as trouble:
                raise trouble.error(name) from trouble.__cause__
            except (VmdkitError, OSError) as error:
                if isinstance(error, RemoteProtocolError):
                    self.state = DEAD
                raise Trouble(str(error)).error(name) from error

        return checked

    return wrap


def refusal(state: str, permitted: tuple[str, ...]) -> Trouble:
    """Return what is said of a call at the wrong time."""
    words = [_WORDS[each] for each in permitted]
    number = 107 if state == START else 22  # ENOTCONN, EINVAL
    return Trouble(f"invalid state: {state}: the handle must be {', or '.join(words)}", number)


class Settings:
    """What is said before connecting, and can be asked for at any time."""

    _counter = 0

    def __init__(self) -> None:
        Settings._counter += 1
        self.state = START
        self._lock = threading.RLock()  # connecting and options: one call at a time, as in libnbd
        self._handle_name = f"nbd{Settings._counter}"
        self._private_data = 0
        self._debug = False
        self._export_name = ""
        self._wanted_contexts: list[str] = []
        self._full_info = False
        self._structured = True
        self._block_size = True
        self._initialize = True
        self._opt_mode = False
        self._strict = n.STRICT_MASK
        self._handshake_flags = n.HANDSHAKE_FLAG_MASK
        self._tls = n.TLS_DISABLE
        self._tls_certificates: str | None = None
        self._tls_psk: str | None = None
        self._tls_username: str | None = None
        self._tls_hostname: str | None = None
        self._tls_verify = True
        self._allow_transports = n.ALLOW_TRANSPORT_MASK
        self._allow_tls = n.TLS_ALLOW
        self._allow_files = False
        self._timeout = 300.0

    # ── the handle itself ────────────────────────────────────────────────────────────────────────────────────

    @call()
    def connection_state(self) -> str:
        """Return the state and what it means."""
        return f"{self.state}: {TEXTS[self.state]}"

    @call()
    def get_handle_name(self) -> str:
        """Return the name of the handle."""
        return self._handle_name

    @call()
    def set_handle_name(self, handle_name: str) -> None:
        """Give the handle a name."""
        self._handle_name = handle_name

    @call()
    def get_private_data(self) -> int:
        """Return the number that the program has put there."""
        return self._private_data

    @call()
    def set_private_data(self, private_data: int) -> int:
        """Keep a number for the program; returns the one before."""
        before, self._private_data = self._private_data, private_data
        return before

    @call()
    def get_debug(self) -> bool:
        """Return what set_debug was told."""
        return self._debug

    @call()
    def set_debug(self, debug: bool) -> None:
        """Do nothing; there is nothing to be seen. ``vmdkit.filters.log`` traces requests of a Device."""
        self._debug = bool(debug)

    @call()
    def set_debug_callback(self, debug: Callable[..., Any]) -> None:
        """Do nothing."""

    @call()
    def clear_debug_callback(self) -> None:
        """Do nothing."""

    @call()
    def get_package_name(self) -> str:
        """Return whose library this is."""
        return n.package_name

    @call()
    def get_version(self) -> str:
        """Return its version."""
        return str(sys.modules["vmdkit"].__version__)  # the package that every module of it has imported

    @call()
    def supports_tls(self) -> bool:
        """Say yes."""
        return True

    @call()
    def supports_uri(self) -> bool:
        """Say yes."""
        return True

    @call()
    def supports_vsock(self) -> bool:
        """Say yes."""
        return True

    @call()
    def set_timeout(self, seconds: float) -> None:
        """Limit the time for any answer of the server; libnbd has no such call, and waits for ever."""
        if seconds <= 0:
            raise Trouble(f"seconds: invalid value for parameter: {seconds}", 22)
        self._timeout = float(seconds)

    # ── what to ask for ──────────────────────────────────────────────────────────────────────────────────────

    @call(*BEFORE)
    def set_export_name(self, export_name: str) -> None:
        """Choose the export."""
        if len(export_name.encode()) > _LONGEST:
            raise Trouble("export name too long for NBD protocol", 36)
        self._export_name = export_name

    @call()
    def get_export_name(self) -> str:
        """Return the name that was chosen."""
        return self._export_name

    @call(*BEFORE)
    def add_meta_context(self, name: str) -> None:
        """Ask for one more context."""
        if len(name.encode()) > _LONGEST:
            raise Trouble("meta context name too long for NBD protocol", 36)
        self._wanted_contexts.append(name)

    @call(*BEFORE)
    def clear_meta_contexts(self) -> None:
        """Ask for no context."""
        self._wanted_contexts.clear()

    @call()
    def get_nr_meta_contexts(self) -> int:
        """Return how many contexts are asked for."""
        return len(self._wanted_contexts)

    @call()
    def get_meta_context(self, i: int) -> str:
        """Return the context that was asked for as number ``i``."""
        if not 0 <= i < len(self._wanted_contexts):
            raise Trouble("meta context request out of range", 22)
        return self._wanted_contexts[i]

    @call(*BEFORE)
    def set_full_info(self, request: bool) -> None:
        """Ask for the canonical name and the description too."""
        self._full_info = bool(request)

    @call()
    def get_full_info(self) -> bool:
        """Return whether they are asked for."""
        return self._full_info

    @call(*NEW)
    def set_request_structured_replies(self, request: bool) -> None:
        """Ask for structured replies, or for simple ones only."""
        self._structured = bool(request)

    @call()
    def get_request_structured_replies(self) -> bool:
        """Return whether they are asked for."""
        return self._structured

    @call(*BEFORE)
    def set_request_block_size(self, request: bool) -> None:
        """Ask for the block sizes."""
        self._block_size = bool(request)

    @call()
    def get_request_block_size(self) -> bool:
        """Return whether they are asked for."""
        return self._block_size

    @call()
    def set_pread_initialize(self, request: bool) -> None:
        """Do nothing: buffers begin as zeros here."""
        self._initialize = bool(request)

    @call()
    def get_pread_initialize(self) -> bool:
        """Return what set_pread_initialize was told."""
        return self._initialize

    @call(*NEW)
    def set_opt_mode(self, enable: bool) -> None:
        """Stop before the export is chosen, for the opt calls."""
        self._opt_mode = bool(enable)

    @call()
    def get_opt_mode(self) -> bool:
        """Return whether to stop there."""
        return self._opt_mode

    @call()
    def set_strict_mode(self, flags: int) -> None:
        """Choose what is refused before it is sent."""
        self._strict = _flags("flags", flags, n.STRICT_MASK)

    @call()
    def get_strict_mode(self) -> int:
        """Return what is refused."""
        return self._strict

    @call(*NEW)
    def set_handshake_flags(self, flags: int) -> None:
        """Choose what to tell the server of the handshakes we know."""
        self._handshake_flags = _flags("flags", flags, n.HANDSHAKE_FLAG_MASK)

    @call()
    def get_handshake_flags(self) -> int:
        """Return it."""
        return self._handshake_flags

    # ── TLS and addresses ────────────────────────────────────────────────────────────────────────────────────

    @call(*NEW)
    def set_tls(self, tls: int) -> None:
        """Choose: no TLS, TLS if the server has it (which nobody should), TLS or nothing."""
        if tls not in (n.TLS_DISABLE, n.TLS_ALLOW, n.TLS_REQUIRE):
            raise Trouble(f"tls: invalid value for parameter: {tls}", 22)
        self._tls = tls

    @call()
    def get_tls(self) -> int:
        """Return the choice."""
        return self._tls

    @call(*NEW)
    def set_tls_certificates(self, dir: str) -> None:  # noqa: A002  # libnbd's name
        """Name the directory of ca-cert.pem, client-cert.pem and client-key.pem."""
        self._tls_certificates = dir

    @call(*NEW)
    def set_tls_psk_file(self, filename: str) -> None:
        """Name the file of shared keys."""
        self._tls_psk = filename

    @call(*NEW)
    def set_tls_username(self, username: str) -> None:
        """Say whose key to use."""
        self._tls_username = username

    @call(*NEW)
    def set_tls_hostname(self, hostname: str) -> None:
        """Say what the server's certificate must be for."""
        self._tls_hostname = hostname

    @call()
    def get_tls_username(self) -> str:
        """Return whose key is used; the login name where nothing was said."""
        from vmdkit.nbd.client_tls import login_name

        return self._tls_username or login_name()

    @call(*NEW)
    def set_tls_verify_peer(self, verify: bool) -> None:
        """Check the server's certificate, or believe anybody."""
        self._tls_verify = bool(verify)

    @call()
    def get_tls_verify_peer(self) -> bool:
        """Return whether it is checked."""
        return self._tls_verify

    @call(*NEW)
    def set_uri_allow_transports(self, mask: int) -> None:
        """Choose the transports that connect_uri takes."""
        self._allow_transports = _flags("mask", mask, n.ALLOW_TRANSPORT_MASK)

    @call(*NEW)
    def set_uri_allow_tls(self, tls: int) -> None:
        """Choose whether connect_uri takes nbd://, nbds:// or both."""
        if tls not in (n.TLS_DISABLE, n.TLS_ALLOW, n.TLS_REQUIRE):
            raise Trouble(f"tls: invalid value for parameter: {tls}", 22)
        self._allow_tls = tls

    @call(*NEW)
    def set_uri_allow_local_file(self, allow: bool) -> None:
        """Choose whether an address may name files of keys."""
        self._allow_files = bool(allow)


def _flags(name: str, value: int, mask: int) -> int:
    if value & ~mask:
        raise Trouble(f"{name}: invalid value for flag: {value:#x}", 22)
    return value
