# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Walk a tar without unpacking it: which members there are, and where their bytes lie.

Nothing is ever written to a path here, no link is followed, and only regular files are opened: as windows of the
archive. What an attacker could play with (users spec, A19) is a *problem* with a code, a text and an offset; ``lint``
prints them all. Of those that make two readers see two different archives, the walk ends at the first.

Bounds: members, extension headers in a row, and bytes of one are limited; nothing else is read than header blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from vmdkit.errors import CorruptError, FormatError, UnsupportedError, UsageError
from vmdkit.filters.slice import SliceDevice
from vmdkit.kernels import is_zero
from vmdkit.ova import tar
from vmdkit.ova.tar import BLOCK, TarHeader
from vmdkit.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device

MOST_MEMBERS: Final = 1024  # an appliance has a handful
_MOST_EXTENSIONS = 8  # extension headers before one member: a long name, a long link, pax
_LONGEST_EXTENSION = 64 * KIB  # bytes; a name has at most 4096
_LONGEST_NAME = 4096
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"
_SPARSE = b"GNU.sparse."
_PACKED: Final = {_GZIP: "gzip", _BZIP2: "bzip2", _XZ: "xz", _ZSTD: "zstd", b"PK\x03\x04": "zip"}


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    DEVICE = "device"
    OTHER = "other"


class Problem(NamedTuple):
    """Something in an archive that some reader may stumble over, or that an attacker would do; ``code`` for lint."""

    code: str
    text: str
    offset: int
    member: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its name without a leading ``./``, the window of its bytes, and how it is written."""

    name: str
    at: int
    size: int
    header: int  # where its first header block is, an extension's too
    kind: Kind = Kind.FILE
    dialect: str = "ustar"  # or v7, gnu, pax: the most that a reader has to know
    stored: str = ""  # the name as it is written
    mtime: int = 0


@dataclass(slots=True)
class Archive:
    """A tar that was walked. ``end`` is where its end-of-archive blocks begin, or where the walk stopped."""

    device: Device
    members: list[Member] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    end: int = 0
    _index: dict[str, list[Member]] | None = None  # the regular files by name, once the walk is over

    @property
    def name(self) -> str:
        """What messages call the archive."""
        return self.device.name

    def files(self) -> list[Member]:
        """Return the regular files, in their order."""
        return [member for member in self.members if member.kind is Kind.FILE]

    def find(self, name: str) -> Member:
        """Return the one regular file of that name.

        Raises UsageError where there is none, FormatError where two have it: which is meant, readers disagree about.
        """
        if self._index is None:
            self._index = {}
            for member in self.files():
                self._index.setdefault(member.name, []).append(member)
        found = self._index.get(name, [])
        if len(found) > 1:
            raise FormatError(
                f"{len(found)} members are called {name!r}; readers disagree which of them counts",
                path=self.name, offset=found[1].header,
            )  # fmt: skip
        if not found:
            have = ", ".join(member.name for member in self.files()[:20])
            raise UsageError(f"no member is called {name!r}; there are {have or 'none'}", path=self.name)
        return found[0]

    def open(self, member: Member, *, owned: bool = False) -> SliceDevice:
        """Return the bytes of a member as a device; with ``owned``, closing it closes the archive's.

        Raises FormatError for one that is cut off, UnsupportedError for what is no regular file.
        """
        if member.kind is not Kind.FILE:
            raise UnsupportedError(f"{member.name!r} is no regular file but a {member.kind.value}", path=self.name)
        missing = member.at + member.size - self.device.size
        if missing > 0:
            raise FormatError(
                f"the archive was cut off: {missing} of the {member.size} bytes of {member.name!r} are missing",
                path=self.name, offset=self.device.size,
            )  # fmt: skip
        label = f"{self.name}#{member.name}"
        return SliceDevice(self.device, member.at, member.size, name=label, writable=False, owned=owned)


def unsafe(name: str) -> str:
    """Return what makes a member's name one that must not become a path, empty where nothing does."""
    if not name or name == ".":
        return "it is empty"
    if name.startswith("/") or name[1:2] == ":":
        return "it is absolute"
    if ".." in name.replace("\\", "/").split("/"):
        return "it leads out of the directory"
    if "\\" in name:
        return "it has a backslash"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "it has control characters"
    if len(name.encode("utf-8", "surrogateescape")) > 255:
        return "it is longer than a file name can be"
    return "it leads into a directory" if "/" in name else ""


def looks_like_tar(device: Device) -> bool:
    """Tell whether the first block is a tar header; cheap."""
    if device.size < BLOCK:
        return False
    block = device.pread(BLOCK, 0)
    try:
        tar.check(block, path=device.name, offset=0)
    except CorruptError:
        return False
    return not is_zero(block)


def read_archive(device: Device) -> Archive:
    """Walk the tar in ``device``.

    Raises FormatError where it is none. Damage behind the first header is in ``problems``.
    """
    if not looks_like_tar(device):
        head = bytes(device.pread(min(8, device.size), 0))
        packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")
        hint = f"it is packed with {packed}; an OVA is a plain tar: unpack it first" if packed else "no tar header"
        raise FormatError(f"this is no OVA: {hint}", path=device.name, offset=0)
    walk = _Walk(device)
    walk.run()
    _look_at_names(walk.archive)
    return walk.archive


def _look_at_names(archive: Archive) -> None:
    seen: dict[str, str] = {}  # lower case -> the first name like that
    names: set[str] = set()
    for member in archive.members:
        where = member.header, member.name
        if member.kind is not Kind.FILE:
            code = "tar-directory" if member.kind is Kind.DIRECTORY else "tar-type"
            what = "a link" if member.kind is Kind.LINK else f"a {member.kind.value}"
            archive.problems.append(Problem(code, f"it is {what}, no regular file", *where))
            continue
        reason = unsafe(member.name)
        if reason:
            archive.problems.append(Problem("tar-name-unsafe", f"the name must not be used: {reason}", *where))
        elif member.stored != member.name:
            archive.problems.append(Problem("tar-name-dot", f"its name is written {member.stored!r}", *where))
        before = seen.setdefault(member.name.lower(), member.name)
        if member.name in names:
            archive.problems.append(Problem("tar-name-twice", "an earlier member has the same name", *where))
        elif before != member.name:
            text = f"its name differs from {before!r} in case only"
            archive.problems.append(Problem("tar-name-case", text, *where))
        names.add(member.name)


class _WalkError(Exception):
    """The walk cannot go on; the problem has been noted."""


class _Walk:
    def __init__(self, device: Device) -> None:
        self.archive = Archive(device)
        self._device = device
        self._at = 0

    def run(self) -> None:
        """Note every member and every problem."""
        try:
            while self._member():
                pass
        except _WalkError:
            pass
        except CorruptError as error:
            self._note("tar-header", error.message, error.offset or self._at)
        self.archive.end = self._at

    def _note(self, code: str, text: str, offset: int, member: str = "") -> None:
        self.archive.problems.append(Problem(code, text, offset, member))

    def _stop(self, code: str, text: str, offset: int, member: str = "") -> _WalkError:
        self._note(code, text, offset, member)
        return _WalkError()

    def _block(self, at: int) -> bytearray:
        left = self._device.size - at
        if left < BLOCK:
            code = "tar-end" if not left else "tar-truncated"
            text = "the archive ends without its two empty blocks" if not left else f"{left} bytes are no whole block"
            raise self._stop(code, text, at)
        return self._device.pread(BLOCK, at)

    def _member(self) -> bool:
        """Take one member with the extension headers before it; False at the end of the archive."""
        first, said = self._at, _Said()
        while True:
            block = self._block(self._at)
            if is_zero(block):
                self._end(said)
                return False
            tar.check(block, path=self._device.name, offset=self._at)
            head = TarHeader.unpack(block)
            if head.type in (tar.GNU_NAME, tar.GNU_LINK, tar.PAX, tar.PAX_GLOBAL):
                self._extension(head, said)
                continue
            self._take(first, head, said)
            return True

    def _end(self, said: _Said) -> None:
        if said.count:
            self._note("tar-header", "an extension header stands before no member", self._at)
        behind = self._at + BLOCK
        if self._device.size - behind < BLOCK:
            self._note("tar-end", "the archive ends with one empty block, not with two", self._at)
        elif not is_zero(self._device.pread(BLOCK, behind)):
            self._note("tar-end", "behind the empty block that ends the archive something follows", behind)
        elif not _is_zero_to_end(self._device, behind + BLOCK):
            self._note("tar-trailing", "something follows the end of the archive", behind + BLOCK)

    def _size(self, head: TarHeader) -> int:
        try:
            return tar.number(head.size)
        except ValueError as error:
            raise self._stop("tar-header", f"the size is {error}", self._at + TarHeader.offset_of("size")) from None

    def _extension(self, head: TarHeader, said: _Said) -> None:
        """Read an extension header: what it says holds for the next member."""
        size, at = self._size(head), self._at
        said.count += 1
        if size > _LONGEST_EXTENSION or said.count > _MOST_EXTENSIONS:
            text = (
                f"{said.count} extension headers before one member, the last of {size} bytes: more than any name needs"
            )
            raise self._stop("tar-bomb", text, at)
        if size > self._device.size - at - BLOCK:
            raise self._stop("tar-truncated", "the archive ends inside an extension header", self._device.size)
        whole = min(size + tar.padding(size), self._device.size - at - BLOCK)
        blocks = bytes(self._device.pread(whole, at + BLOCK))
        data = blocks[:size]
        self._at += BLOCK + whole
        if head.type in (tar.GNU_NAME, tar.GNU_LINK):
            said.dialect = said.dialect or "gnu"
            name = data.partition(b"\0")[0]
            if name != blocks.partition(b"\0")[0]:  # some readers go by the length, others by the NUL
                raise self._stop("tar-ambiguous", "a long name that goes on behind its end", at + BLOCK)
            if head.type == tar.GNU_NAME:
                said.name = name
            return
        said.dialect = "pax"
        try:
            records = list(_pax_records(data))
        except ValueError as error:
            raise self._stop("tar-header", f"a pax header says {error}", at + BLOCK) from None
        if head.type == tar.PAX:
            said.take(records)
        elif any(key in _Said.MEANT or key.startswith(_SPARSE) for key, _ in records):
            raise self._stop("tar-ambiguous", "a pax header gives all members one name or size", at + BLOCK)

    def _take(self, first: int, head: TarHeader, said: _Said) -> None:
        archive, at = self.archive, self._at
        if len(archive.members) >= MOST_MEMBERS:
            raise self._stop("tar-bomb", f"more than {MOST_MEMBERS} members", at)
        size = self._size(head) if said.size is None else said.size
        kind = _kind(head)
        if kind in (Kind.LINK, Kind.DIRECTORY, Kind.DEVICE) and size:
            # Some readers skip these bytes, others read headers in them.
            raise self._stop("tar-ambiguous", f"a {kind.value} with {size} bytes of its own", at)
        if (
            head.prefix.partition(b"\0")[0] and head.magic != tar.USTAR_MAGIC
        ):  # GNU tar sees none, Python's tarfile does
            raise self._stop("tar-ambiguous", "a prefix of the name in a header that has no place for it", at)
        stored = _text(said.name if said.name is not None else _name(head))
        dialect = said.dialect or _dialect(head)
        name = stored.removeprefix("./")
        if head.type == tar.GNU_SPARSE or said.sparse:
            raise self._stop("tar-sparse", "the member is stored with its holes left out", at, name)
        if len(name) > _LONGEST_NAME:
            raise self._stop("tar-bomb", f"a name of {len(name)} characters", at)
        try:
            mtime = tar.number(head.mtime)
        except ValueError:
            mtime = 0
        member = Member(name, at + BLOCK, size, first, kind, dialect, stored, mtime)
        archive.members.append(member)
        self._at += BLOCK + size + tar.padding(size)
        if member.at + size > self._device.size:
            missing = member.at + size - self._device.size
            text = f"the archive ends inside it: {missing} of {size} bytes are missing"
            self._at = self._device.size
            raise self._stop("tar-truncated", text, self._device.size, name)
        if self._at > self._device.size:
            self._at = self._device.size


@dataclass(slots=True)
class _Said:
    """What extension headers say about the next member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    dialect: str = ""
    count: int = 0

    MEANT = (b"path", b"size", b"linkpath")

    def take(self, records: list[tuple[bytes, bytes]]) -> None:
        """Take in the records of a pax header."""
        for key, value in records:
            if key == b"path":
                self.name = value
            elif key == b"size":
                self.size = int(value)
            elif key.startswith(_SPARSE):
                self.sparse = True


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the ``length key=value`` lines of a pax header; ValueError for anything else."""
    at = 0
    while at < len(data) and data[at]:
        digits, blank, _ = data[at : at + 8].partition(b" ")
        if not blank or not digits.isdigit():
            raise ValueError("no length where one is due")
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise ValueError("a line that is not as long as it says")
        if key == b"size" and (not value.isdigit() or len(value) > 19):
            raise ValueError("a size that is no number")
        yield key, value
        at = end


def _kind(head: TarHeader) -> Kind:
    if head.type in tar.FILE_TYPES:
        # Before directories had a type of their own, a slash at the end was theirs (v7).
        return Kind.DIRECTORY if head.name.rstrip(b"\0").endswith(b"/") else Kind.FILE
    if head.type == tar.DIRECTORY:
        return Kind.DIRECTORY
    if head.type in tar.LINKS:
        return Kind.LINK
    return Kind.DEVICE if head.type in tar.DEVICES else Kind.OTHER


def _dialect(head: TarHeader) -> str:
    if head.magic[:5] != b"ustar":
        return "v7"
    return "gnu" if head.magic == tar.GNU_MAGIC or tar.is_binary(head.size) else "ustar"


def _name(head: TarHeader) -> bytes:
    name = head.name.partition(b"\0")[0]
    prefix = head.prefix.partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _is_zero_to_end(device: Device, at: int) -> bool:
    """Tell whether nothing but padding follows: tar programs fill up a record, the largest usual one has a MiB."""
    rest = device.size - at
    return rest <= 0 or (rest <= MIB and is_zero(device.pread(rest, at)))
