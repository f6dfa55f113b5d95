# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates for tests, made by cryptography."""

from __future__ import annotations

import datetime
import functools
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


class Pair(NamedTuple):
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


@functools.cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """Return one of some keys."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def pair(
    number: int = 0, *, issuer: str = "", days: tuple[int, int] = (-1, 365), password: bytes = b"", curve: bool = False
) -> Pair:
    """Return a key and a certificate; signed by itself unless ``issuer`` names another."""
    key = ec.generate_private_key(ec.SECP256R1()) if curve else rsa_key(number)
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Box Makers")])
    by = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]) if issuer else name
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(1000)
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .sign(rsa_key(99) if issuer else key, hashes.SHA256())
    )
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return Pair(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how),
        made.public_bytes(serialization.Encoding.PEM),
    )
