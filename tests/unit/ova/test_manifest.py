# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, what is written."""

from __future__ import annotations

import pytest

from vmdkit.errors import FormatError, UsageError
from vmdkit.ova import manifest

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (f"SHA256(a b.ovf)= {HEX}", True),
        (f"SHA256 (a b.ovf) = {HEX}", False),
        (f"SHA256(a b.ovf) = {HEX}", False),
        (f"SHA256(a b.ovf)={HEX}", False),
        (f"SHA256(a b.ovf)= {HEX.upper()}", False),
        (f"sha-256(a b.ovf)= {HEX}", False),
        (f"SHA256(a b.ovf)= {HEX}\r", False),
        (f" SHA256(a b.ovf)= {HEX}", False),
    ],
)
def test_lines(text: str, *, exact: bool) -> None:
    found = manifest.parse(f"{text}\n\n".encode(), "x")
    (line,) = found.lines
    assert (line.algorithm, line.name, line.digest, line.exact, line.number) == ("SHA256", "a b.ovf", HEX, exact, 1)
    assert found.strange == []


@pytest.mark.parametrize("text", ["SHA256(a)= xyz", "SHA256 a", "()= ab", "SHA256()= ab", "\xff"])
def test_lines_that_are_none(text: str) -> None:
    found = manifest.parse(text.encode("latin-1"), "x")
    assert (found.lines, len(found.strange)) == ([], 1)


def test_names_with_parentheses_and_bytes() -> None:
    found = manifest.parse(b"SHA1(a(1).vmdk)= 00\nSHA1(\xff)= 01\n", "x")
    assert [line.name for line in found.lines] == ["a(1).vmdk", "\udcff"]
    assert [line.digest for line in found.of("a(1).vmdk")] == ["00"]


def test_what_is_written_is_read() -> None:
    data = manifest.render("SHA512", {"box.ovf": "0" * 128, "d.vmdk": "f" * 128})
    assert data == b"SHA512(box.ovf)= " + b"0" * 128 + b"\nSHA512(d.vmdk)= " + b"f" * 128 + b"\n"
    assert all(line.exact for line in manifest.parse(data, "x").lines)
    assert manifest.size("SHA512", ["box.ovf", "d.vmdk"]) == len(data)


def test_limits() -> None:
    with pytest.raises(FormatError, match="a manifest has at most"):
        manifest.parse(bytes(manifest.LARGEST + 1), "x")
    with pytest.raises(UsageError, match="no digest is called 'CRC32'"):
        manifest.hasher("CRC32")
    assert manifest.hasher("sha-256").name == "sha256"
