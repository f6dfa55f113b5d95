# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write the text of descriptors: whole new ones, and changes to old ones that keep every line they do not concern.

New text is written for the strictest reader: VMware's order of keys and comments, LF, no blanks around ``=`` but in
the disk database (format spec 1.2). Names that could end a quoted string or a line are refused: a disk whose name
has a quotation mark would otherwise smuggle lines into its descriptor (format spec 3.2).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError
from vmdkit.units import SECTOR
from vmdkit.vmdk.descriptor import NO_CID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmdkit.vmdk.descriptor import Descriptor

_UNQUOTED = ("version", "cid", "parentcid")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # what the gate takes for an address, and never opens
_EOL = re.compile(rb"(\r\n|\n|\r)")
_LENGTH = re.compile(rb"^(\s*[A-Za-z]+\s+)\d+")


@dataclass(frozen=True, slots=True)
class NewLine:
    """An extent line to be written; ``length`` in bytes. ``at`` (bytes) is written for types that demand it."""

    length: int
    type: str
    name: str
    at: int | None = None
    access: str = "RW"

    def __str__(self) -> str:
        at = "" if self.at is None else f" {self.at // SECTOR}"
        return f'{self.access} {self.length // SECTOR} {self.type} "{checked_name(self.name)}"{at}'


def checked_name(name: str) -> str:
    """Return ``name``; raises UsageError for one that no descriptor can hold and be read alike by everyone."""
    if '"' in name or "\\" in name or any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise UsageError(
            f"{name!r}: a name in a descriptor must not hold quotation marks, backslashes or control characters"
        )
    if _SCHEME.match(name):
        raise UsageError(f"{name!r}: readers of a descriptor would take this name for an address")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!r} is not UTF-8, which descriptors are written in") from error
    return name


def new_uuid() -> str:
    """Return a disk's identity as VMware writes it: sixteen bytes that begin 60 00 C2 9x (format spec 1.6)."""
    tail = random.randbytes(12).hex(" ")
    return f"60 00 C2 9{random.getrandbits(4):x} {tail[:11]}-{tail[12:]}"


def new_long_id(cid: int) -> str:
    """Return a random long content ID whose low 32 bits are the content ID (format spec 1.3)."""
    return f"{random.getrandbits(96):024x}{cid:08x}"


def render(
    create_type: str,
    lines: Sequence[NewLine],
    ddb: Mapping[str, str],
    *,
    cid: int,
    parent_cid: int = NO_CID,
    hint: str = "",
) -> bytes:
    """Return a whole descriptor, the disk database in alphabetical order as VMware has it (format spec 1.2)."""
    text = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid:08x}",
        f"parentCID={parent_cid:08x}",
        f'createType="{create_type}"',
    ]
    if hint:
        text.append(f'parentFileNameHint="{checked_name(hint)}"')
    text += ["", "# Extent description", *map(str, lines), "", "# The Disk Data Base ", "#DDB", ""]
    text += [f'ddb.{key} = "{ddb[key]}"' for key in sorted(ddb)]
    return ("\n".join(text) + "\n").encode("utf-8")


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Edit:
    """A descriptor's text being changed; lines that nothing is said about keep every byte and line end."""

    def __init__(self, text: Descriptor) -> None:
        parts = _EOL.split(text.raw)
        self._lines = [body + end for body, end in zip(parts[::2], [*parts[1::2], b""], strict=True)]
        self._eol = parts[1] if len(parts) > 1 else b"\n"
        self._encoding = text.encoding
        self._text = text

    def result(self) -> bytes:
        """Return the text as it is now."""
        return b"".join(self._lines)

    def put(self, key: str, value: str | None) -> None:
        """Set a header key (as canonically written); None removes it. A new one goes before the extents."""
        if value is not None and key.lower() not in _UNQUOTED:
            value = f'"{value}"'
        line = None if value is None else f"{key}={value}"
        if not self._replace(key, line) and line is not None:
            at = self._find("createType")
            self._insert(at + 1 if at >= 0 else self._first_extent(), line)

    def put_ddb(self, key: str, value: str | None) -> None:
        """Set a key of the disk database; None removes it. A new one goes to the end."""
        line = None if value is None else f'ddb.{key} = "{value}"'
        if not self._replace(f"ddb.{key}", line) and line is not None:
            self._insert(len(self._lines), line)

    def content(self, cid: int) -> None:
        """Set the content ID, and the long one where there is one; tracking of changed blocks would lie: it ends."""
        self.put("CID", f"{cid:08x}")
        if self._find("ddb.longContentID") >= 0:
            self.put_ddb("longContentID", new_long_id(cid))
        if self._find("changeTrackPath") >= 0:
            self.put("changeTrackPath", None)
            if self._text.header.get("version") == "3":
                self.put("version", "1")

    def extents(self, lengths: Sequence[int], added: Sequence[NewLine] = ()) -> None:
        """Give the first extent lines these lengths (bytes), drop the others, and add new ones behind them.

        ``lengths`` must not be empty: what is added has to have a place.
        """
        numbers = [line.line - 1 for line in self._text.extents]
        for at, length in zip(numbers, lengths, strict=False):
            self._lines[at] = _LENGTH.sub(rb"\g<1>%d" % (length // SECTOR), self._lines[at])
        for at in numbers[len(lengths) :]:
            self._lines[at] = b""
        last = numbers[len(lengths) - 1]
        new = b"".join(self._encode(str(line)) + self._eol for line in added)
        if new and not self._lines[last].endswith((b"\n", b"\r")):
            self._lines[last] += self._eol
        self._lines[last] += new

    def _find(self, key: str) -> int:
        pattern = re.compile(rb"^\s*" + re.escape(key.encode()) + rb"\s*=", re.IGNORECASE)
        return next((at for at, line in enumerate(self._lines) if pattern.match(line)), -1)

    def _replace(self, key: str, line: str | None) -> bool:
        at = self._find(key)
        if at < 0:
            return False
        body = self._lines[at].rstrip(b"\r\n")
        self._lines[at] = b"" if line is None else self._encode(line) + self._lines[at][len(body) :]
        return True

    def _insert(self, at: int, line: str) -> None:
        """Put a line before line ``at``: as part of the one above, so that all others keep their numbers."""
        new = self._encode(line) + self._eol
        if not at:
            self._lines[0] = new + self._lines[0]
            return
        if self._lines[at - 1] and not self._lines[at - 1].endswith((b"\n", b"\r")):
            self._lines[at - 1] += self._eol
        self._lines[at - 1] += new

    def _encode(self, line: str) -> bytes:
        try:
            return line.encode(self._encoding)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{line!r} cannot be written in {self._encoding}, the encoding of this descriptor", path=self._text.path
            ) from error

    def _first_extent(self) -> int:
        numbers = [line.line - 1 for line in self._text.extents]
        return min(numbers, default=len(self._lines))
