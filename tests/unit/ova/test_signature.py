# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Certificate files: signing, checking, and what lint says of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import images
from certificates import Pair, pair
from ovas import Ovf, Part, manifest, pack
from vmdkit.errors import FormatError, UnsupportedError, UsageError
from vmdkit.ova import signature
from vmdkit.ova.facts import facts
from vmdkit.ova.lint import lint
from vmdkit.ova.package import Package
from vmdkit.ova.signature import Signer
from vmdkit.ova.targets import parse_targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = b"SHA256(box.ovf)= 00\n"


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
def test_what_is_signed_is_valid(algorithm: str) -> None:
    signer = Signer(*pair())
    data = signer.sign(algorithm, "box.mf", TEXT)
    assert len(data) == signer.size(algorithm, "box.mf")
    found = signature.parse(data, "box.cert")
    assert (found.algorithm, found.name) == (algorithm, "box.mf")
    verdict = signature.verify(found, TEXT, "box.cert")
    assert verdict.valid
    assert verdict.self_signed
    assert verdict.subject == "CN=Box Makers"
    assert not signature.verify(found, TEXT + b"x", "box.cert").valid


def test_another_key() -> None:
    mine = signature.parse(Signer(*pair()).sign("SHA256", "box.mf", TEXT), "x")
    theirs = signature.Signature(mine.algorithm, mine.name, mine.value, pair(1).certificate)
    assert not signature.verify(theirs, TEXT, "x").valid


@pytest.mark.parametrize(
    ("make", "password", "text"),
    [
        (lambda: Pair(pair().key, pair(1).certificate), None, "not that of the key"),
        (lambda: Pair(b"?", pair().certificate), None, "the key cannot be read"),
        (lambda: Pair(pair().key, b"?"), None, "the certificate cannot be read"),
        (lambda: pair(password=b"secret"), None, "the key has a password, and none was given"),
        (lambda: pair(password=b"secret"), b"wrong", "the key cannot be read"),
        (pair, b"secret", "the key has no password"),
        (lambda: pair(curve=True), None, "made with RSA keys, not with E"),
    ],
)
def test_keys_that_cannot_sign(make: Callable[[], Pair], password: bytes | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Signer(*make(), password=password)


def test_a_key_with_a_password() -> None:
    assert Signer(*pair(password=b"secret"), password=b"secret").sign("SHA256", "m", TEXT)


@pytest.mark.parametrize(
    "make",
    [
        lambda pem: b"",
        lambda pem: b"x",
        lambda pem: b"SHA256(box.mf)= zz\n",
        lambda pem: b"SHA256(box.mf)= ab\n",
        lambda pem: b"SHA256(box.mf)= abc\n" + pem,
        lambda pem: pem,
        lambda pem: b"MD5(box.mf)= ab\n" + pem,
        lambda pem: b"SHA256(box.mf)= ab\n" + pem + bytes(2 << 20),
    ],
)
def test_files_that_are_none(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(FormatError, match="due"):
        signature.parse(make(pair().certificate), "box.cert")


@pytest.mark.parametrize("curve", [False, True])
def test_certificates_that_cannot_be_used(*, curve: bool) -> None:
    pem = pair(curve=True).certificate if curve else b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"
    found = signature.parse(b"SHA256(box.mf)= abcd\n" + pem, "box.cert")
    with pytest.raises(FormatError, match=r"the certificate cannot be read|no RSA key"):
        signature.verify(found, TEXT, "box.cert")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert not signature.available()
    with pytest.raises(UnsupportedError, match=r"pip install 'vmdkit\[ova\]'"):
        Signer(*pair())


# ── lint and info ────────────────────────────────────────────────────────────────────────────────────────────────


def signed(directory: Path, made: Pair, *, change: bytes = b"", name: str = "box.mf") -> Path:
    image = images.stream_optimized(directory, "64k:A 64k:-")
    data = image.path.read_bytes()
    text = Ovf([Part("disk.vmdk", data, image.size)]).text()
    listed = manifest({"box.ovf": text, "disk.vmdk": data})
    proof = Signer(*made).sign("SHA256", name, listed + change)
    return pack(
        directory / "box.ova", [("box.ovf", text), ("box.mf", listed), ("box.cert", proof), ("disk.vmdk", data)]
    )


def rules(path: Path) -> set[str]:
    return lint(str(path), parse_targets(["esxi8"])).rules()


def test_lint_of_signatures(tmp_path: Path) -> None:
    cases = {
        "good": (pair(issuer="An Authority"), b"", "box.mf", set()),
        "self": (pair(), b"", "box.mf", {"cert-self"}),
        "other": (pair(issuer="An Authority"), b"x", "box.mf", {"cert-signature"}),
        "late": (pair(issuer="An Authority", days=(-9, -1)), b"", "box.mf", {"cert-time"}),
        "early": (pair(issuer="An Authority", days=(1, 9)), b"", "box.mf", {"cert-time"}),
        "name": (pair(issuer="An Authority"), b"", "b.mf", {"cert-format"}),
    }
    for name, (made, change, about, expected) in cases.items():
        home = tmp_path / name
        home.mkdir()
        assert rules(signed(home, made, change=change, name=about)) == expected, name


def test_lint_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = signed(tmp_path, pair())
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert rules(path) == {"cert-unchecked"}


def test_a_certificate_about_nothing(tmp_path: Path) -> None:
    path = signed(tmp_path, pair())
    with Package(str(path)) as package:
        members = [(name, package.read(name, 1 << 20)) for name in package.names if name != "box.mf"]
    assert "cert-format" in rules(pack(tmp_path / "other.ova", members))


@pytest.mark.parametrize(("change", "state"), [(b"", "valid"), (b"x", "wrong")])
def test_info(tmp_path: Path, change: bytes, state: str) -> None:
    with Package(str(signed(tmp_path, pair(), change=change))) as package:
        found = facts(package)
    assert found["signature"]["state"] == state
    assert found["signature"]["subject"] == "CN=Box Makers"
    assert found["manifest"] == {"name": "box.mf", "digests": "SHA256", "files": 2}
