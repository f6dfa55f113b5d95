# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Put a disk together: descriptor, extents through the gate, parents.

This file knows no paths: it is given a Device that holds the descriptor (or a monolithic file), and opens what that
names through the Gate it is handed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from vmdkit.errors import ChainError, DescriptorError, FormatError, UnsupportedError
from vmdkit.vmdk import chain, descriptor, locks, structs, subformats
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.disk import VmdkDisk
from vmdkit.vmdk.extent_file import Doubt, ExtentFile
from vmdkit.vmdk.flat import FlatExtent, MissingTail, NoAccessExtent, ZeroExtent
from vmdkit.vmdk.hosted import HostedExtent, read_header
from vmdkit.vmdk.sesparse import SeSparseExtent
from vmdkit.vmdk.session import Session
from vmdkit.vmdk.stream import StreamExtent
from vmdkit.vmdk.writable import WritableDisk

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.chain import Identity
    from vmdkit.vmdk.descriptor import Descriptor, ExtentLine

_HEAD = 4096  # bytes looked at to tell what a file is
_EXTENT_AGAIN = re.compile(rb"(?:^|[\0\r\n])[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]", re.IGNORECASE)
_SINGLE_FILE = ("monolithicsparse", "streamoptimized")


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a VMDK.

    ``salvage`` reads a stream without its directory, by walking its grains. ``single_link`` leaves the parent out:
    what it holds reads as zero. ``redundant`` follows the second copy of the grain tables. ``ignore_cid`` accepts a
    parent that has changed or is of another size. ``ignore_journal`` reads a seSparse file whose journal waits.
    ``untrusted`` allows only single-file subformats without a parent. ``locks`` takes in the locks of a disk that is
    opened for writing, and is to be released by who made it if opening fails; without it nothing is locked.
    """

    salvage: bool = False
    single_link: bool = False
    redundant: bool = False
    ignore_cid: bool = False
    ignore_journal: bool = False
    untrusted: bool = False
    writable: bool = False
    locks: locks.LockSet | None = None


class FileKind(Enum):
    """What the first bytes of a file say it is."""

    HOSTED = "hosted sparse extent"
    COWD = "COWD extent"
    SESPARSE = "seSparse extent"
    TEXT = "descriptor"
    UNKNOWN = "unknown"


def classify(storage: Device) -> FileKind:
    """Tell what a file is by its first bytes."""
    head = storage.pread(min(_HEAD, storage.size), 0)
    magic = bytes(head[:4])
    if magic in (structs.HOSTED_MAGIC, structs.UNFINISHED_MAGIC):
        return FileKind.HOSTED
    if magic == structs.COWD_MAGIC:
        return FileKind.COWD
    if head[:8] == structs.SESPARSE_MAGIC.to_bytes(8, "little"):
        return FileKind.SESPARSE
    if descriptor.looks_like_descriptor(_whole_text(storage, head)):
        return FileKind.TEXT
    return FileKind.UNKNOWN


def _whole_text(storage: Device, head: bytearray) -> bytearray:
    """Return all of a small file: its first key may stand behind a long comment."""
    if 0 in head or len(head) == storage.size or storage.size > descriptor.LARGEST:
        return head
    return storage.pread(storage.size, 0)


def read_descriptor(storage: Device) -> Descriptor | None:
    """Return the descriptor in a file, embedded or the file itself; None where the file is only an extent."""
    kind = classify(storage)
    if kind is FileKind.TEXT:
        return _separate(storage)
    if kind is not FileKind.HOSTED:
        return None
    header = read_header(storage)
    if not header.descriptor_offset or not header.descriptor_size:
        return None
    at, length = header.descriptor_offset, min(header.descriptor_size, descriptor.LARGEST)
    if at + length > storage.size:
        raise DescriptorError(
            f"the embedded descriptor should be {length} bytes at {at:#x}; the file has {storage.size}",
            path=storage.name,
        )
    raw = storage.pread(length, at)
    if not raw.strip(b"\0 \t\r\n"):
        return None
    text = descriptor.parse(raw, storage.name, at=at)
    if left_behind(raw):
        text.doubts.append(_left_doubt(raw, text, at))
    elif raw[-1]:
        text.doubts.append(Doubt("the descriptor fills its area to the last byte; it may be cut off", text.path, at))
    return text


def _separate(storage: Device) -> Descriptor:
    """Return the descriptor that a file is.

    Raises DescriptorError where more follows it: then the file is a raw disk in which a guest wrote text, or damaged.
    """
    if storage.size > descriptor.LARGEST:
        raise DescriptorError(
            f"it begins like a descriptor and has {storage.size} bytes; a descriptor has at most {descriptor.LARGEST} "
            "bytes (--raw reads a disk of raw bytes)",
            path=storage.name,
        )
    raw = storage.pread(storage.size, 0)
    if _EXTENT_AGAIN.search(left_behind(raw)):
        raise DescriptorError("extents stand behind a NUL, which ends the text", path=storage.name)
    text = descriptor.parse(raw, storage.name)
    if left_behind(raw):
        text.doubts.append(_left_doubt(raw, text, 0))
    return text


def left_behind(raw: bytes | bytearray) -> bytes:
    """Return what follows the NUL that ends a descriptor, as far as it says something.

    qemu writes a content ID without leading zeros over a longer one, and the end of the longer text stays behind: the
    same bytes that end the text. They say nothing.
    """
    text, _, rest = bytes(raw).partition(b"\0")
    rest = rest.strip(b"\0")
    return b"" if text.endswith(rest) else rest


def _left_doubt(raw: bytes | bytearray, text: Descriptor, at: int) -> Doubt:
    return Doubt(f"{len(left_behind(raw))} bytes follow the end of the descriptor; they are not read", text.path, at)


def open_image(
    storage: Device, text: Descriptor, gate: Gate, options: Options, seen: tuple[Identity, ...] = ()
) -> VmdkDisk:
    """Return the disk that ``text``, found in ``storage``, describes. Takes over ``storage``, also on failure.

    Raises FormatError, UnsupportedError, ChainError, GateError or OSError.
    """
    files = _Files(storage, text, gate, options)
    try:
        if options.locks is not None:
            options.locks.take(storage, exclusive=options.writable)
            files.text = text = _as_it_is_now(storage, text)
        elif not seen and (holder := locks.writer(storage)) is not None:
            text.doubts.append(Doubt(f"it is being written by {holder}; what is read may be half-changed", text.path))
        here = chain.identify(storage)
        chain.check_depth(seen, here, text.path)
        _refuse(text, options)
        extents: list[ExtentFile] = []
        for index, line in enumerate(text.extents):
            extents += _open_line(index, line, files, options)
        parent = _open_parent(text, gate, options, (*seen, here))
        if options.writable:
            return _writable(storage, text, extents, parent, here, options)
        if all(extent.storage is not storage for extent in extents):
            storage.close()
        return VmdkDisk(text, extents, parent=parent, identity=here)
    except BaseException:
        files.close()
        raise


def _as_it_is_now(storage: Device, text: Descriptor) -> Descriptor:
    """Return the descriptor as it is now that nobody can change it any more: another writer may have, meanwhile."""
    now = read_descriptor(storage)
    return text if now is None or now.raw == text.raw else now


def _writable(
    storage: Device,
    text: Descriptor,
    extents: list[ExtentFile],
    parent: Device | None,
    here: Identity,
    options: Options,
) -> WritableDisk:
    """Return the disk opened for writing; parents that were opened are closed on failure."""
    session = Session(text, storage)
    try:
        if text.ddb.get("iofilters"):
            raise UnsupportedError(
                f"I/O filters ({text.ddb['iofilters'][:100]}) would not see what is written", path=text.path
            )
        for extent in extents:
            if isinstance(extent, MissingTail) or (extent.doubts and extent.is_plain):
                raise FormatError("its files are smaller than the disk; repair it before writing", path=extent.path)
            session.take(extent)
    except BaseException:
        if parent is not None:
            parent.close()
        raise
    release = options.locks.release if options.locks is not None else None
    return WritableDisk(text, extents, session, storage, parent=parent, identity=here, release=release)


class _Files:
    """The files of one link, each opened once however many lines name it."""

    def __init__(self, storage: Device, text: Descriptor, gate: Gate, options: Options) -> None:
        self.own = storage
        self.text = text
        self._gate = gate
        self._writable = options.writable
        self._locks = options.locks
        self._named: dict[tuple[str, bool], Device] = {}
        self._sparse: set[Identity] = set()

    def open(self, line: ExtentLine) -> Device:
        """Open the file of a line by its decoded name, then by the very bytes of the text."""
        if line.name is None:
            raise DescriptorError(f"a {line.type} extent needs a file name", path=self.text.path, line=line.line)
        name, writable = line.name, self._writable and line.access == "RW"
        known = self._named.get((name, writable))
        if known is None:
            known = self._named[name, writable] = self._open(line, name, writable=writable)
            if self._locks is not None:
                self._locks.take(known, exclusive=writable)
        return known

    def take_sparse(self, file: Device, line: ExtentLine) -> None:
        """Raise where a sparse file serves two lines: it would show the same bytes twice, and cost its tables twice."""
        if line.at:
            raise DescriptorError(
                f"an offset into a {line.type} extent has no meaning", path=self.text.path, line=line.line
            )
        here = chain.identify(file)
        if here in self._sparse:
            raise DescriptorError("two lines name the same sparse file", path=self.text.path, line=line.line)
        self._sparse.add(here)

    def _open(self, line: ExtentLine, name: str, *, writable: bool) -> Device:
        raw = self.text.raw_names.get(name, b"").decode("utf-8", "surrogateescape")
        for attempt in dict.fromkeys((name, raw or name)):
            try:
                return self._gate.open(attempt, self.text.path, writable=writable)
            except FileNotFoundError:
                continue
        raise DescriptorError(
            f"the extent file {name[:300]!r} is not there; a disk needs all its files side by side",
            path=self.text.path,
            line=line.line,
        )

    def close(self) -> None:
        """Close everything."""
        self.own.close()
        for device in self._named.values():
            device.close()


def _refuse(text: Descriptor, options: Options) -> None:
    """Raise where the descriptor as a whole says that the disk cannot be read."""
    if text.is_encrypted:
        raise UnsupportedError(subformats.ENCRYPTED_REFUSAL, path=text.path)
    row = subformats.SUBFORMATS.get(text.create_type.lower())
    if row is None:
        text.doubts.append(Doubt(f"createType {text.create_type[:40]!r} is unknown; read by its extents", text.path))
    elif row.refusal:
        raise UnsupportedError(f"{text.create_type}: {row.refusal}", path=text.path)
    if not text.extents:
        raise DescriptorError("there is no extent in it", path=text.path)
    if text.parent_cid == text.cid and text.cid != 0:
        text.doubts.append(Doubt("CID and parentCID are equal", text.path))
    if options.untrusted and (text.create_type.lower() not in _SINGLE_FILE or len(text.extents) != 1):
        raise UnsupportedError(
            f"{text.create_type[:40] or 'this'} is more than one file; of an untrusted image only monolithicSparse and "
            "streamOptimized are opened",
            path=text.path,
        )


def _open_line(index: int, line: ExtentLine, files: _Files, options: Options) -> list[ExtentFile]:
    """Open one line: the extent, and what makes up for a header that is smaller than its line."""
    path = files.text.path
    row = subformats.EXTENT_TYPES.get(line.type)
    if row is None:
        raise UnsupportedError(f"extent type {line.type[:40]!r} is unknown (descriptor line {line.line})", path=path)
    if row.refusal or (line.name or "").lower().startswith("vsan:"):
        raise UnsupportedError(f"{line.type}: {row.refusal or subformats.VSAN_REFUSAL}", path=path)
    if not line.length:
        return []
    if line.access == "NOACCESS":
        return [NoAccessExtent(line.length, line.type)]
    if row.driver == "zero":
        return [ZeroExtent(line.length)]
    # The first extent of an embedded descriptor is its own file, whatever name it had once (format spec 1.5).
    embedded = index == 0 and line.type == "SPARSE" and classify(files.own) is FileKind.HOSTED
    file = files.own if embedded else files.open(line)
    if row.driver == "flat":
        return [FlatExtent(line.length, file, start=line.at, kind=line.type)]
    files.take_sparse(file, line)
    return _sized(_open_sparse(file, line, options), line)


def _open_sparse(file: Device, line: ExtentLine, options: Options) -> ExtentFile:
    """Open a file with grain tables by what it is, whatever of the three types its line says."""
    kind = classify(file)
    if kind is FileKind.COWD:
        return CowdExtent(file, kind=line.type)
    if kind is FileKind.SESPARSE:
        return SeSparseExtent(file, kind=line.type, ignore_journal=options.ignore_journal)
    if kind is not FileKind.HOSTED:
        raise FormatError(
            f"this is no sparse extent (KDMV, COWD or seSparse), though the descriptor says {line.type}",
            path=file.name,
            offset=0,
        )
    header = read_header(file)
    if header.flags & structs.FLAG_COMPRESSED:
        return StreamExtent(file, header, kind=line.type, salvage=options.salvage, redundant=options.redundant)
    return HostedExtent(file, header, kind=line.type, redundant=options.redundant)


def _sized(extent: ExtentFile, line: ExtentLine) -> list[ExtentFile]:
    """Make the extent as long as its line: the lines are what the disk is."""
    held = extent.length
    if held == line.length:
        return [extent]
    text = f"its header has {held} bytes, its line in the descriptor {line.length}"
    extent.doubts.append(Doubt(text, extent.path))
    if held > line.length:
        extent.length = line.length
        return [extent]
    missing = MissingTail(line.length - held, extent.path)
    if held:
        return [extent, missing]
    missing.doubts += extent.doubts
    extent.close()
    return [missing]


def _lacks_parent_cid(text: Descriptor, options: Options) -> bool:
    """Tell whether a parent is named though no content ID says that there is one."""
    if not text.parent_hint:
        return False
    if "parentcid" in text.header:
        text.doubts.append(
            Doubt(f"parentFileNameHint {text.parent_hint[:100]!r} is not followed: parentCID says none", text.path)
        )
        return False
    if not options.ignore_cid and not options.single_link:
        raise ChainError(
            f"it names its parent {text.parent_hint[:100]!r}, but has no parentCID to know it by "
            "(--ignore-cid if you know better)",
            path=text.path,
        )
    return True


def _open_parent(text: Descriptor, gate: Gate, options: Options, seen: tuple[Identity, ...]) -> Device | None:
    if text.parent_cid == descriptor.NO_CID and not _lacks_parent_cid(text, options):
        return None
    if options.single_link:
        text.doubts.append(Doubt("the parent was left out: what it holds reads as zero", text.path))
        return None
    if options.untrusted:
        raise UnsupportedError("it has a parent, which is not opened for an untrusted image", path=text.path)
    file = chain.open_parent(text, gate)
    try:
        parent_text = read_descriptor(file)
        if parent_text is None:
            raise FormatError("a parent has to be a VMDK, and this is none", path=file.name)
    except BaseException:
        file.close()
        raise
    parent = open_image(file, parent_text, gate, replace(options, writable=False), seen)
    try:
        chain.check_parent(text, parent, parent_text.cid, writable=options.writable)
        if chain.is_half_committed(text, parent_text.cid):
            text.doubts.append(Doubt("a commit of it was interrupted; vmdkit commit goes on with that", text.path))
    except ChainError as error:
        if not options.ignore_cid:
            parent.close()
            raise
        text.doubts.append(Doubt(f"read all the same: {error.message}", text.path))
    except BaseException:
        parent.close()
        raise
    return parent
