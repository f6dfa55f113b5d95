# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write descriptors as raw text, in the form VMware writes and in every form seen elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

NO_PARENT: Final = 0xFFFFFFFF

DDB: Final = (
    ("adapterType", "lsilogic"),
    ("geometry.cylinders", "2"),
    ("geometry.heads", "64"),
    ("geometry.sectors", "32"),
    ("longContentID", "0123456789abcdef01234567{cid:08x}"),
    ("toolsVersion", "2147483647"),
    ("uuid", "60 00 C2 9a 11 22 33 44-55 66 77 88 99 aa bb cc"),
    ("virtualHWVersion", "14"),
)
DDB_SMALL: Final = (("adapterType", "lsilogic"), ("virtualHWVersion", "14"))  # fits into one sector


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the same facts are written down. The default is VMware's own form."""

    encoding: str | None = "UTF-8"  # what the text says
    codec: str | None = None  # what its bytes are in, where that differs
    newline: str = "\n"
    title: str | None = "# Disk DescriptorFile"
    version_first: bool = True  # else encoding= comes first
    blanks: bool = False  # `version = 1`
    comments: bool = True  # the section comments
    lower: bool = False  # keywords in lower case
    lower_values: bool = False  # the value of createType as well
    foreign: str | None = None  # a comment VMware does not write
    indent: str = ""  # before every line
    final_newline: bool = True


STYLES: Final = {
    "vmware": Style(),
    "crlf": Style(newline="\r\n"),
    "crlf-no-comments": Style(newline="\r\n", comments=False),
    "encoding-first": Style(version_first=False),
    "no-encoding": Style(encoding=None),
    "blanks": Style(blanks=True),
    "no-comments": Style(comments=False),
    "lower": Style(lower=True),
    "lower-values": Style(lower=True, lower_values=True),
    "foreign-comment": Style(foreign="# created by a stream converter"),
    "title-blank": Style(title="# Disk Descriptor File"),
    "title-tight": Style(title="#Disk DescriptorFile"),
    "title-tight-blank": Style(title="#Disk Descriptor File"),
    "title-converter": Style(title="# Description file created by VMDK stream converter"),
    "indented": Style(indent="   "),
    "no-final-newline": Style(final_newline=False),
    "windows-1252": Style(encoding="windows-1252"),
    "GBK": Style(encoding="GBK"),
    "Big5": Style(encoding="Big5"),
    "Shift_JIS": Style(encoding="Shift_JIS"),
}

# Names that need their encoding; those in Big5 and Shift_JIS have a second byte that is an ASCII backslash.
NAMES: Final = {
    "UTF-8": "диск 磁盘",
    "windows-1252": "dïsk é",
    "GBK": "磁盘",
    "Big5": "功碟",
    "Shift_JIS": "表ディスク",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The facts of a descriptor."""

    create_type: str
    lines: tuple[str, ...]  # extent lines, complete
    cid: int
    parent_cid: int = NO_PARENT
    hint: str | None = None
    version: str = "1"
    ctk: str | None = None
    extra: tuple[str, ...] = ()  # raw lines after the header keys
    ddb: tuple[tuple[str, str], ...] = DDB

    def render(self, style: Style) -> bytes:
        """Return the bytes of the descriptor."""
        rows = self._header(style)
        if style.foreign:
            rows.append(style.foreign)
        rows += [*self.extra, "", *self._section(style, "# Extent description"), *self.lines, ""]
        if self.ctk is not None:
            rows += [*self._section(style, "# Change Tracking File"), f'changeTrackPath="{self.ctk}"', ""]
        if self.ddb:
            rows += [*self._section(style, "# The Disk Data Base ", "#DDB", "")]
            rows += [f'ddb.{key} = "{value.format(cid=self.cid)}"' for key, value in self.ddb]
        if style.lower:
            rows = [_lower(row, values=style.lower_values) for row in rows]
        text = style.newline.join(style.indent + row if row else row for row in rows)
        return (text + style.newline * style.final_newline).encode(style.codec or style.encoding or "UTF-8")

    def _header(self, style: Style) -> list[str]:
        keys = [("version", self.version)]
        if style.encoding is not None:
            keys.insert(1 if style.version_first else 0, ("encoding", f'"{style.encoding}"'))
        keys += [("CID", f"{self.cid:08x}"), ("parentCID", f"{self.parent_cid:08x}")]
        keys += [("isNativeSnapshot", '"no"'), ("createType", f'"{self.create_type}"')]
        if self.hint is not None:
            keys.append(("parentFileNameHint", f'"{self.hint}"'))
        between = " = " if style.blanks else "="
        return [*([style.title] if style.title else []), *(f"{key}{between}{value}" for key, value in keys)]

    def _section(self, style: Style, *rows: str) -> tuple[str, ...]:
        return rows if style.comments else ()

    def but(self, **changes: str | int | tuple[str, ...] | tuple[tuple[str, str], ...] | None) -> Text:
        """Return a copy with other facts."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _lower(row: str, *, values: bool) -> str:
    if values and row.startswith("createType"):
        return row.lower()
    return re.sub(r'[^"]+(?=(?:[^"]*"[^"]*")*[^"]*$)', lambda match: match.group().lower(), row)
