# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""TLS for a server: certificates in the layout of libnbd and qemu, or keys shared beforehand (PSK).

PSK in the standard library came with Python 3.13. Before that the callback is set on the OpenSSL context that the
``ssl`` module made, through the very library it loaded: the object of CPython 3.11 and 3.12 begins with that
pointer, and both are closed to such changes. What does not fit that picture is refused with a sentence.
"""

from __future__ import annotations

import ctypes
import hmac
import logging
import os
import ssl
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.nbd.negotiation import TlsMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

_PSK_CIPHERS: Final = "kECDHEPSK:kDHEPSK"  # forward secret; with TLS 1.3 every exchange is
_LONGEST_KEY: Final = 512  # bytes, OpenSSL's PSK_MAX_PSK_LEN
_SHORTEST_KEY: Final = 16  # bytes; psktool makes 32


@dataclass(frozen=True, slots=True)
class Tls:
    """Whether and how a server speaks TLS; the default is not at all."""

    mode: TlsMode = TlsMode.OFF
    context: ssl.SSLContext | None = None
    keep: object = None  # what must live as long as the context

    @property
    def required(self) -> bool:
        """Whether clients must use it."""
        return self.mode is TlsMode.REQUIRE


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the protocol's text asks for 1.2 at least
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # nobody resumes a disk
    return context


def with_certificates(directory: str, *, verify_peer: bool = False, mode: TlsMode = TlsMode.REQUIRE) -> Tls:
    """Use ``server-cert.pem`` and ``server-key.pem`` of ``directory``.

    With ``verify_peer`` clients need a certificate signed by its ``ca-cert.pem``.
    """
    context = _context()
    certificate, key = (os.path.join(directory, name) for name in ("server-cert.pem", "server-key.pem"))
    for path in (certificate, key):
        if not os.path.exists(path):
            raise UsageError("not found; --tls-certificates names a directory that holds it", path=path)
    try:
        context.load_cert_chain(certificate, key)
        if verify_peer:
            context.load_verify_locations(os.path.join(directory, "ca-cert.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise UsageError(f"these certificates cannot be used: {error.reason or error}", path=directory) from error
    return Tls(mode, context)


def with_psk(path: str, *, mode: TlsMode = TlsMode.REQUIRE) -> Tls:
    """Use the keys in ``path``: lines ``user:key``, the key in hexadecimal, as psktool writes them."""
    keys = read_psk(path)
    context = _context()
    context.set_ciphers(_PSK_CIPHERS)
    return Tls(mode, context, _set_psk(context, keys))


def read_psk(path: str) -> Mapping[str, bytes]:
    """Return user and key of each line; messages name lines, never what stands in them."""
    keys: dict[str, bytes] = {}
    with open(path, encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & 0o004:
            _log.warning("%s: everybody on this machine can read these keys; chmod 600 would change that", path)
        for number, line in enumerate(file, 1):
            user, colon, text = line.strip().partition(":")
            if not line.strip() or line.startswith("#"):
                continue
            try:
                key = bytes.fromhex(text)
            except ValueError:
                key = b""
            if not (user and colon and _SHORTEST_KEY <= len(key) <= _LONGEST_KEY):
                raise UsageError(
                    f"line {number} is not user:key with {_SHORTEST_KEY} to {_LONGEST_KEY} bytes in hexadecimal; "
                    "psktool -u USER makes such a file",
                    path=path,
                ) from None
            keys[user] = key
    if not keys:
        raise UsageError("holds no keys; psktool -u USER makes such a file", path=path)
    return keys


def _find(keys: Mapping[str, bytes], identity: bytes) -> bytes:
    """Return the key of a user, empty for a stranger; takes as long for one as for the other."""
    found = b""
    for user, key in keys.items():
        if hmac.compare_digest(user.encode(), identity):
            found = key
    return found


def _set_psk(context: ssl.SSLContext, keys: Mapping[str, bytes]) -> object:
    """Have ``context`` ask ``keys``; returns what must be kept alive."""
    official = getattr(context, "set_psk_server_callback", None)
    if official is not None:
        callback: Callable[[str | None], bytes] = lambda identity: _find(keys, (identity or "").encode())  # noqa: E731
        official(callback)
        return callback
    return _set_psk_before_313(context, keys)


def _set_psk_before_313(context: ssl.SSLContext, keys: Mapping[str, bytes]) -> object:
    prototype = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint)

    def answer(_: object, identity: bytes | None, out: int, room: int) -> int:
        key = _find(keys, identity or b"")
        if len(key) > room:
            return 0
        ctypes.memmove(out, key, len(key))
        return len(key)

    callback = prototype(answer)
    library, pointer = openssl_behind(context)
    library.SSL_CTX_set_psk_server_callback.argtypes = [ctypes.c_void_p, prototype]
    library.SSL_CTX_set_psk_server_callback.restype = None
    library.SSL_CTX_set_psk_server_callback(pointer, callback)
    return callback


def openssl_behind(context: ssl.SSLContext) -> tuple[Any, ctypes.c_void_p]:
    """Return OpenSSL as ``ssl`` loaded it and its own pointer behind ``context``."""
    import _ssl

    refusal = UnsupportedError(
        "this Python has no TLS with pre-shared keys; use certificates (--tls-certificates) or Python 3.13"
    )
    path = getattr(_ssl, "__file__", None)
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13) or path is None:
        raise refusal
    library = ctypes.CDLL(path)  # the module itself: its symbols include those of the library it is linked with
    if not hasattr(library, "SSL_CTX_set_psk_server_callback"):
        raise refusal
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    library.SSL_CTX_get_options.argtypes = [ctypes.c_void_p]
    library.SSL_CTX_get_options.restype = ctypes.c_uint64
    if not pointer.value or library.SSL_CTX_get_options(pointer) & 0xFFFFFFFF != context.options & 0xFFFFFFFF:
        raise refusal
    return library, pointer
