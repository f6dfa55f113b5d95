# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The certificate file: a signature over the manifest, and the certificate of who made it (DSP0243 2.1.1, 5.2).

::

    SHA256(box.mf)= 5a1b...        the signature in hexadecimal, RSA with PKCS #1 v1.5 padding as openssl dgst -sign
    -----BEGIN CERTIFICATE-----
    ...

The one module that needs the package ``cryptography`` (extra ``ova``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmdkit.errors import FormatError, UnsupportedError, UsageError
from vmdkit.ova.manifest import ALGORITHMS
from vmdkit.units import MIB

if TYPE_CHECKING:
    import datetime

    from cryptography.hazmat.primitives.hashes import HashAlgorithm
    from cryptography.x509 import Certificate

LARGEST: Final = MIB
_LINE = re.compile(rb"(SHA(?:1|256|384|512))\(([^\n]+)\)= ([0-9a-f]+)\r?\n")
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a certificate file says: a signature over the manifest ``name``, and PEM text of certificates."""

    algorithm: str
    name: str
    value: bytes
    pem: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a signature that was checked."""

    valid: bool
    subject: str
    issuer: str
    self_signed: bool
    begins: datetime.datetime
    ends: datetime.datetime

    def in_time(self, now: datetime.datetime) -> bool:
        """Tell whether the certificate is valid at a time."""
        return self.begins <= now <= self.ends


def parse(data: bytes | bytearray, path: str) -> Signature:
    """Read a certificate file. Raises FormatError for what is none."""
    data = bytes(data)
    match = _LINE.match(data.lstrip())
    if len(data) > LARGEST or match is None:
        raise FormatError("a line SHA256(name.mf)= signature is due first", path=path)
    at = data.find(_BEGIN)
    if at < 0 or len(match[3]) % 2:
        raise FormatError("a signature in hexadecimal and a certificate in PEM are due", path=path)
    name = match[2].decode("utf-8", "surrogateescape")
    return Signature(match[1].decode(), name, bytes.fromhex(match[3].decode()), data[at:])


def verify(signature: Signature, manifest: bytes, path: str) -> Verdict:
    """Check a signature over ``manifest``.

    Raises FormatError for a certificate that cannot be read or used, UnsupportedError without ``cryptography``.
    """
    crypto = _cryptography()
    try:
        certificate = crypto.load_pem_x509_certificate(signature.pem)
        key = certificate.public_key()
    except (ValueError, crypto.UnsupportedAlgorithm) as error:
        raise FormatError(f"the certificate cannot be read: {error}", path=path) from error
    if not isinstance(key, crypto.RSAPublicKey):
        raise FormatError(f"the key is no RSA key but {type(key).__name__}", path=path)
    try:
        key.verify(signature.value, manifest, crypto.PKCS1v15(), _hash(crypto, signature.algorithm))
        valid = True
    except crypto.InvalidSignature:
        valid = False
    return Verdict(
        valid,
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        certificate.subject == certificate.issuer,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


class Signer:
    """A key and its certificate, read and found to belong together.

    Raises UsageError for what cannot be used, UnsupportedError without ``cryptography``.
    """

    def __init__(self, key_pem: bytes, certificate_pem: bytes, *, password: bytes | None = None) -> None:
        self._crypto = _cryptography()
        self._key = self._load_key(key_pem, password)
        at = certificate_pem.find(_BEGIN)
        try:
            certificate: Certificate = self._crypto.load_pem_x509_certificate(certificate_pem)
        except (ValueError, self._crypto.UnsupportedAlgorithm) as error:
            raise UsageError(f"the certificate cannot be read: {error}") from error
        if certificate.public_key() != self._key.public_key():
            raise UsageError("the certificate is not that of the key")
        self._pem = certificate_pem[at:].replace(b"\r\n", b"\n").rstrip() + b"\n"

    def _load_key(self, pem: bytes, password: bytes | None) -> Any:
        try:
            key = self._crypto.load_pem_private_key(pem, password)
        except TypeError as error:
            text = "the key has a password, and none was given" if password is None else "the key has no password"
            raise UsageError(text) from error
        except (ValueError, self._crypto.UnsupportedAlgorithm) as error:
            raise UsageError(f"the key cannot be read: {error}") from error
        if not isinstance(key, self._crypto.RSAPrivateKey):
            raise UsageError(f"OVF signatures are made with RSA keys, not with {type(key).__name__}")
        return key

    def size(self, algorithm: str, name: str) -> int:
        """Return how many bytes ``sign`` returns."""
        digits: int = 2 * self._key.key_size // 8
        return len(f"{algorithm}({name})= \n".encode()) + digits + len(self._pem)

    def sign(self, algorithm: str, name: str, manifest: bytes) -> bytes:
        """Return the certificate file over a manifest of that name."""
        value = self._key.sign(manifest, self._crypto.PKCS1v15(), _hash(self._crypto, algorithm))
        return f"{algorithm}({name})= {value.hex()}\n".encode() + self._pem


def available() -> bool:
    """Tell whether signatures can be checked and made."""
    try:
        _cryptography()
    except UnsupportedError:
        return False
    return True


class _Crypto:
    """What we use of ``cryptography``, imported on use."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificate

        self.InvalidSignature = InvalidSignature
        self.UnsupportedAlgorithm = UnsupportedAlgorithm
        self.hashes = hashes
        self.PKCS1v15 = PKCS1v15
        self.RSAPrivateKey = RSAPrivateKey
        self.RSAPublicKey = RSAPublicKey
        self.load_pem_private_key = load_pem_private_key
        self.load_pem_x509_certificate = load_pem_x509_certificate


def _cryptography() -> _Crypto:
    try:
        return _Crypto()
    except ImportError as error:
        raise UnsupportedError(
            "signatures need the package cryptography; python3 -m pip install 'vmdkit[ova]' adds it"
        ) from error


def _hash(crypto: _Crypto, algorithm: str) -> HashAlgorithm:
    if algorithm not in ALGORITHMS or algorithm == "MD5":
        raise UsageError(f"{algorithm} is no digest that signatures are made over")
    made: HashAlgorithm = getattr(crypto.hashes, algorithm)()
    return made
