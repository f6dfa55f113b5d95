# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The text descriptor of a VMDK: the only reader of that text.

Rules (format spec 1.2 to 1.6; models, anti-patterns 1 and 2):

* Read for the loosest writer: any encoding, CRLF, any order of keys, any case, blanks around ``=``.
* Never guess about data: a line that begins like an extent and is none is an error; so is a line that is neither
  comment, nor extent, nor ``key = value``. Nothing that could shift the disk is skipped.
* Unknown keys are kept.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field

from vmdkit.errors import DescriptorError
from vmdkit.units import MIB, SECTOR
from vmdkit.vmdk.extent_file import Doubt

LARGEST = MIB  # bytes of text; qemu and 7-Zip read no more either (format spec 1.2)
NO_CID = 0xFFFFFFFF
_MOST_DOUBTS = 100  # about one text; a hostile one can give rise to a hundred thousand
_MOST_EXTENTS = 32768  # lines: a 64 TiB disk in 2 GiB pieces
_LARGEST = 1 << 62  # bytes of a disk; no file is larger

_EXTENT = re.compile(
    r'(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+(\d{1,20})(?:\s+(.*))?)?)?\s*',
    re.IGNORECASE | re.ASCII,
)
_LIKE_EXTENT = re.compile(r"(RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
# No pattern may need more than one pass: the text comes from strangers. So none has two neighbours that match blanks.
_PAIR = re.compile(r"([A-Za-z0-9_.\-]+)\s*=\s*(.*)")
_ENCODING = re.compile(rb'(?:^|[\r\n])[ \t]*encoding[ \t]*=[ \t]*"?([A-Za-z0-9_.\-]{1,40})', re.IGNORECASE)
_SIGNS = re.compile(
    rb"(?:^|[\r\n])[ \t]*(?:#[ \t]*disk[ \t]*descriptor[ \t]*file|(?:createType|parentCID)[ \t]*=)", re.IGNORECASE
)
# Encodings in which ASCII means itself; others (utf-16, utf-7, punycode, idna ...) hide text, or take hours to read it.
_ENCODINGS = re.compile(
    r"utf-8|ascii|latin-1|iso8859-\d+|cp(125\d|437|737|775|85[0258]|86\d|874|932|949|950)|koi8-[rtu]|mac-[a-z]+|"
    r"gb2312|gbk|gb18030|big5|big5hkscs|shift_jis(x0213|_2004)?|euc_(jp|jis_2004|jisx0213|kr)|johab|tis-620|hp-roman8"
)
_TEXT_MARK = b"\xef\xbb\xbf"  # what Windows editors put before UTF-8


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One extent of the disk, in the order of the text. ``length`` and ``at`` are bytes; ``line`` counts from 1."""

    access: str
    length: int
    type: str
    name: str | None
    at: int
    line: int
    has_offset: bool = False


@dataclass(slots=True)
class Descriptor:
    """What the text says. Keys are lower case; ``ddb`` keys lack their prefix.

    ``raw`` is the text as it stands in its file, ``at`` (bytes) where.
    """

    path: str
    header: dict[str, str] = field(default_factory=dict)
    ddb: dict[str, str] = field(default_factory=dict)
    extents: list[ExtentLine] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    encoding: str = "utf-8"
    raw_names: dict[str, bytes] = field(default_factory=dict)
    repeated: int = 0  # keys that stand twice, with another value
    raw: bytes = b""
    at: int = 0

    @property
    def create_type(self) -> str:
        """The subformat as written; empty where the key is missing."""
        return self.header.get("createtype", "")

    @property
    def size(self) -> int:
        """Bytes of the disk: the sum of all lines, whatever their access or type."""
        return sum(line.length for line in self.extents)

    @property
    def cid(self) -> int:
        """The content ID; raises DescriptorError where it is no hexadecimal number."""
        return self._content_id("cid", 0)

    @property
    def parent_cid(self) -> int:
        """The content ID the parent had; NO_CID where there is no parent."""
        return self._content_id("parentcid", NO_CID)

    @property
    def parent_hint(self) -> str:
        """Where the parent's descriptor was when the child was made; empty without a parent."""
        return self.header.get("parentfilenamehint", "")

    @property
    def change_track_path(self) -> str:
        """Name of the changed-block file; empty where tracking is off."""
        return self.header.get("changetrackpath", "")

    @property
    def is_encrypted(self) -> bool:
        """Whether the data need a key (format spec 1.3)."""
        filters = self.ddb.get("iofilters", "").lower()
        return any(key in self.header for key in ("encryptionkeys", "keyid")) or "vmwarevmcrypt" in filters

    def _content_id(self, key: str, default: int) -> int:
        text = self.header.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
            raise DescriptorError(f"{key} is {text[:40]!r}; eight hexadecimal digits expected", path=self.path)
        return int(text, 16)


def looks_like_descriptor(head: bytes | bytearray) -> bool:
    """Tell whether ``head``, the beginning of a file, is descriptor text, whatever its first key."""
    text = bytes(head).split(b"\0", 1)[0]
    return _SIGNS.search(text) is not None


def parse(data: bytes | bytearray, path: str, *, at: int = 0) -> Descriptor:
    """Parse descriptor text, found at ``at`` of its file, up to its first NUL; raises DescriptorError with the line."""
    text = bytes(data).split(b"\0", 1)[0].removeprefix(_TEXT_MARK)
    if len(text) > LARGEST:
        raise DescriptorError(f"the descriptor has more than {LARGEST} bytes", path=path)
    result = Descriptor(path, raw=bytes(data).split(b"\0", 1)[0], at=at)
    result.encoding = _choose_encoding(text, result)
    for number, raw in enumerate(re.split(rb"\r\n|\n|\r", text), start=1):
        line = raw.decode(result.encoding, "surrogateescape" if result.encoding == "utf-8" else "replace").strip()
        if line and not line.startswith("#"):
            _take_line(result, line, raw, number)
    if result.repeated > _MOST_DOUBTS:
        result.doubts.append(Doubt(f"{result.repeated - _MOST_DOUBTS} more keys stand twice", path))
    end = 0
    for extent in result.extents:
        end += extent.length
        if end > _LARGEST:
            raise DescriptorError("more extents, or larger ones, than any disk has", path=path, line=extent.line)
    return result


def _choose_encoding(text: bytes, result: Descriptor) -> str:
    """Return the codec for the text: as it says, else UTF-8, else windows-1252, which any bytes fit."""
    match = _ENCODING.search(text)
    named = match[1].decode("ascii") if match else "utf-8"
    for codec in dict.fromkeys((named.lower(), "utf-8")):
        try:
            codec = _codec(codec)
            text.decode(codec)
        except LookupError:
            result.doubts.append(Doubt(f"the encoding {named!r} is unknown here; read as UTF-8", result.path))
        except UnicodeError:
            result.doubts.append(Doubt(f"the text is not {codec}, though it should be", result.path))
        else:
            return codec.lower()
    return "windows-1252"


def _codec(named: str) -> str:
    """Return Python's name of an encoding; raises LookupError for what is unknown or not to be followed."""
    windows = re.sub(r"^windows-(31j)?", lambda match: "cp932" if match[1] else "cp", named.lower())
    for name in (named, windows):
        try:
            if _ENCODINGS.fullmatch(codecs.lookup(name).name):
                return name
        except LookupError:
            continue
    raise LookupError(named)


def _take_line(result: Descriptor, line: str, raw: bytes, number: int) -> None:
    match = _EXTENT.fullmatch(line)
    if match is not None:
        _take_extent(result, match, raw, number)
        return
    if _LIKE_EXTENT.match(line) and "=" not in line.split('"')[0]:
        raise DescriptorError(f"{line[:100]!r} is no extent that can be understood", path=result.path, line=number)
    match = _PAIR.fullmatch(line)
    if match is None:
        raise DescriptorError(
            f"{line[:100]!r} is neither a comment, an extent nor key = value", path=result.path, line=number
        )
    key, value = match[1].lower(), match[2]
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    table = result.header
    if key.startswith("ddb."):
        table, key = result.ddb, key.removeprefix("ddb.")
    if key in table:
        if table[key] == value:
            return
        result.repeated += 1
        if result.repeated <= _MOST_DOUBTS:
            result.doubts.append(Doubt(f"{match[1]} stands twice (line {number}); the first is used", result.path))
        return
    table[key] = value


def _take_extent(result: Descriptor, match: re.Match[str], raw: bytes, number: int) -> None:
    access, sectors, kind, name, offset, _ = match.groups()
    length, at = int(sectors) * SECTOR, int(offset or 0) * SECTOR
    if length + at > _LARGEST or len(result.extents) >= _MOST_EXTENTS:
        raise DescriptorError("more extents, or larger ones, than any disk has", path=result.path, line=number)
    if name is not None:
        quoted = raw.split(b'"')
        if len(quoted) > 2:
            result.raw_names[name] = quoted[1]
    result.extents.append(
        ExtentLine(access.upper(), length, kind.upper(), name, at, number, has_offset=offset is not None)
    )
