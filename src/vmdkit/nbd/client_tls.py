# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""TLS of a client: the server's certificate and name are checked, or a key shared beforehand proves who it is.

With a shared key it is TLS 1.2, where the cipher suites that both sides agree on are those of shared keys and no
others. In TLS 1.3 a server that does not know the key could show a certificate of its own making instead; and OpenSSL
refuses the key there, since ``ssl`` marks its contexts and the session made from a key has no mark.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.nbd.tls import openssl_behind, read_psk

if TYPE_CHECKING:
    from collections.abc import Callable

_PSK_CIPHERS: Final = "kECDHEPSK+AEAD:kDHEPSK+AEAD:kECDHEPSK:kDHEPSK"  # forward secret, the better ones first


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client speaks TLS. ``hostname`` is what a certificate must be for; None: what the address says."""

    context: ssl.SSLContext
    hostname: str | None = None
    psk: bool = False
    keep: object = None  # what must live as long as the context

    def server_name(self, address: str) -> str | None:
        """Return the name to be checked, ``address`` unless another was given."""
        return None if self.psk else self.hostname or address


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the protocol's text asks for 1.2 at least
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def with_certificates(directory: str | None, *, hostname: str | None = None, verify: bool = True) -> ClientTls:
    """Trust the CA in ``ca-cert.pem`` of a directory, without one those that the system trusts.

    ``client-cert.pem`` and ``client-key.pem`` there say who we are. ``verify`` False believes anybody.
    """
    context = _context()
    try:
        if directory is None:
            context.load_default_certs()
        else:
            _load(context, directory, verify)
    except ssl.SSLError as error:
        raise UsageError(f"these certificates cannot be used: {error.reason or error}", path=directory) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return ClientTls(context, hostname)


def _load(context: ssl.SSLContext, directory: str, verify: bool) -> None:
    authority, certificate, key = (
        os.path.join(directory, name) for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem")
    )
    if verify and not os.path.exists(authority):
        raise UsageError("not found; --tls-certificates names a directory that holds it", path=authority)
    if os.path.exists(authority):
        context.load_verify_locations(authority)
    if os.path.exists(certificate):
        context.load_cert_chain(certificate, key if os.path.exists(key) else None)


def with_psk(path: str, user: str | None = None) -> ClientTls:
    """Use the key of ``user`` in a file as psktool writes it; by default of the only one, or of who runs this."""
    keys = read_psk(path)
    name = user or (next(iter(keys)) if len(keys) == 1 else login_name())
    if name not in keys:
        raise UsageError(f"holds no key for {name!r}; it has keys for {', '.join(sorted(keys)[:5])}", path=path)
    context = _context()
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    # CERT_REQUIRED stays, with no CA loaded: no certificate would be believed in the place of the key.
    context.set_ciphers(_PSK_CIPHERS)
    return ClientTls(context, psk=True, keep=_set_psk(context, name, keys[name]))


def login_name() -> str:
    """Return the name of who runs this."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _set_psk(context: ssl.SSLContext, user: str, key: bytes) -> object:
    """Have ``context`` say who we are; returns what must be kept alive."""
    official = getattr(context, "set_psk_client_callback", None)
    if official is not None:
        callback: Callable[[str | None], tuple[str, bytes]] = lambda _hint: (user, key)  # noqa: E731
        official(callback)
        return callback
    return _set_psk_before_313(context, user.encode(), key)


def _set_psk_before_313(context: ssl.SSLContext, user: bytes, key: bytes) -> object:
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint
    )  # fmt: skip

    def answer(_: object, _hint: bytes | None, name: int, name_room: int, out: int, room: int) -> int:
        if len(user) + 1 > name_room or len(key) > room:
            return 0
        ctypes.memmove(name, user + b"\0", len(user) + 1)
        ctypes.memmove(out, key, len(key))
        return len(key)

    callback = prototype(answer)
    library, pointer = openssl_behind(context)
    if not hasattr(library, "SSL_CTX_set_psk_client_callback"):
        raise UnsupportedError("this Python has no TLS with pre-shared keys; use certificates or Python 3.13")
    library.SSL_CTX_set_psk_client_callback.argtypes = [ctypes.c_void_p, prototype]
    library.SSL_CTX_set_psk_client_callback.restype = None
    library.SSL_CTX_set_psk_client_callback(pointer, callback)
    return callback
