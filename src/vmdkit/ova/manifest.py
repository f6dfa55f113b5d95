# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The manifest: a digest of each file of the package (DSP0243 2.1.1, 5.2).

::

    SHA256(box.ovf)= 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

That is how ``openssl dgst`` prints it, and the only form VMware takes. ``SHA256 (box.ovf) = ...``, as BSD and
VirtualBox write it, is read too, and noted.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmdkit.errors import FormatError, UsageError
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST: Final = MIB  # bytes of text; a line has some hundred
ALGORITHMS: Final = {"SHA1": "sha1", "SHA256": "sha256", "SHA384": "sha384", "SHA512": "sha512", "MD5": "md5"}

_EXACT = re.compile(r"(SHA(?:1|256|384|512)|MD5)\((.+)\)= ([0-9a-f]+)")
_LOOSE = re.compile(r"\s*([A-Za-z0-9-]{2,16})\s*\((.+)\)\s*=\s*([0-9A-Fa-f]+)\s*")


@dataclass(frozen=True, slots=True)
class Line:
    """A line: the digest of a file. ``number`` counts from 1; ``exact``: it is written as VMware wants it."""

    number: int
    algorithm: str  # in capitals, without a dash: SHA256
    name: str
    digest: str  # in small letters
    exact: bool


@dataclass(slots=True)
class Manifest:
    """A manifest that was read. ``strange`` are numbers and texts of lines that are none."""

    path: str
    lines: list[Line] = field(default_factory=list)
    strange: list[tuple[int, str]] = field(default_factory=list)

    def of(self, name: str) -> list[Line]:
        """Return the lines about a file."""
        return [line for line in self.lines if line.name == name]


def parse(data: bytes | bytearray, path: str) -> Manifest:
    """Read a manifest, as far as it is one. Raises FormatError for one that is too large."""
    if len(data) > LARGEST:
        raise FormatError(f"it has {len(data)} bytes; a manifest has at most {LARGEST}", path=path)
    found = Manifest(path)
    for number, raw in enumerate(bytes(data).split(b"\n"), start=1):
        text = raw.decode("utf-8", "surrogateescape")
        if not text.strip():
            continue
        exact = _EXACT.fullmatch(text)
        match = exact or _LOOSE.fullmatch(text)
        if match is None:
            found.strange.append((number, text))
            continue
        algorithm = match[1].upper().replace("-", "")
        found.lines.append(Line(number, algorithm, match[2], match[3].lower(), exact is not None))
    return found


def line(algorithm: str, name: str, digest: str) -> str:
    """Return a line as VMware wants it, with its end."""
    return f"{algorithm}({name})= {digest}\n"


def render(algorithm: str, digests: Mapping[str, str]) -> bytes:
    """Return a manifest over digests by name, in their order."""
    return "".join(line(algorithm, name, digest) for name, digest in digests.items()).encode("utf-8", "surrogateescape")


def size(algorithm: str, names: list[str]) -> int:
    """Return how many bytes a manifest has, which depends on the names only."""
    digits = 2 * hasher(algorithm).digest_size
    return len(render(algorithm, dict.fromkeys(names, "0" * digits)))


def hasher(algorithm: str) -> hashlib._Hash:
    """Return a fresh digest for a name such as SHA256. Raises UsageError for an unknown one."""
    name = ALGORITHMS.get(algorithm.upper().replace("-", ""))
    if name is None:
        raise UsageError(f"no digest is called {algorithm!r}; manifests have SHA1, SHA256 or SHA512")
    return hashlib.new(name, usedforsecurity=False)
