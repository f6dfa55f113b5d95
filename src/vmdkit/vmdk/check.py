# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a disk: descriptor, every extent file, parents, locks (format spec 4.4; docs/check.md lists what is found).

::

    check ─┬─ check_text      the descriptor
           ├─ check_hosted    KDMV         ─┬─ check_header   header, directories
           ├─ check_cowd      COWD          ├─ check_grains   tables in bounded memory
           ├─ check_sesparse  seSparse      └─ check_merge    which of two copies to believe
           ├─ check_stream    compressed
           └─ check_chain     parents

Nothing is opened for writing, and what one file makes impossible to look at does not keep the others from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import DescriptorError, FormatError, GateError, UnsupportedError, VmdkitError
from vmdkit.vmdk import check_chain, check_text, descriptor, structs, subformats
from vmdkit.vmdk.check_cowd import CowdCheck
from vmdkit.vmdk.check_findings import Finder, Report, Severity
from vmdkit.vmdk.check_hosted import HostedCheck
from vmdkit.vmdk.check_sesparse import SeSparseCheck
from vmdkit.vmdk.check_stream import StreamCheck
from vmdkit.vmdk.cowd import CowdExtent
from vmdkit.vmdk.extent_file import RunKind
from vmdkit.vmdk.hosted import HostedExtent
from vmdkit.vmdk.image import FileKind, classify, left_behind
from vmdkit.vmdk.structs import CowdHeader, HostedHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.descriptor import Descriptor, ExtentLine
    from vmdkit.vmdk.extent_file import Doubt, ExtentFile

FileCheck = HostedCheck | CowdCheck | SeSparseCheck | StreamCheck


@dataclass(frozen=True, slots=True)
class How:
    """How to check. ``chain`` looks at every parent as at the disk itself, else only whether each fits."""

    chain: bool = False
    shallow: bool = False  # streams: do not read the grains
    threads: int = 2


def check_disk(storage: Device, gate: Gate, how: How | None = None, *, name: str = "") -> Report:
    """Check the disk whose descriptor is in ``storage``; raises only OSError of ``storage`` itself.

    ``name`` is what the report calls it. ``storage`` stays open.
    """
    how = how or How()
    report = Report(name or storage.name)
    text = _check_link(storage, gate, how, report)
    if text is not None:
        for link in check_chain.check_parents(storage, text, gate, report):
            if how.chain:
                _check_link(link, gate, how, report)
            else:
                report.files.append(link.name)
    return report


def check_file(storage: Device, how: How | None = None) -> FileCheck | None:
    """Check one file with grain tables; None where it is none. Its findings and what it counted are in the answer."""
    how = how or How()
    kind = classify(storage)
    if kind is FileKind.COWD:
        return CowdCheck(storage).run()
    if kind is FileKind.SESPARSE:
        return SeSparseCheck(storage).run()
    if kind is not FileKind.HOSTED:
        return None
    if storage.size >= HostedHeader.size_of():
        header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), 0))
        if header.flags & structs.FLAG_COMPRESSED:
            return StreamCheck(storage, threads=how.threads, shallow=how.shallow).run()
    return HostedCheck(storage).run()


def examine_hosted(storage: Device) -> Iterator[Doubt]:
    """Yield what ``info`` says of a hosted extent beyond what was seen on opening it."""
    for finding in HostedCheck(storage, with_leaks=False).run().findings:
        if finding.severity in (Severity.ERROR, Severity.REPAIRABLE) or finding.code == "gte-short":
            yield finding.doubt()


# ── one link ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_link(storage: Device, gate: Gate, how: How, report: Report) -> Descriptor | None:
    """Check a descriptor and its extents; return the descriptor where there is one."""
    finder = Finder(storage.name)
    report.files.append(storage.name)
    try:
        kind = classify(storage)
        text = _own_text(finder, storage, kind)
        if text is None:
            _without_text(finder, storage, kind, how, report)
            return None
        check_text.check_text(finder, text)
        if not check_text.is_refused(finder, text):
            _Extents(finder, storage, text, gate, how, report).check(kind)
        check_chain.check_sidecars(finder, text, gate)
        return text
    finally:
        report.findings[:0] = finder.findings


def _own_text(finder: Finder, storage: Device, kind: FileKind) -> Descriptor | None:
    """Return the descriptor in a file, as far as it can be understood."""
    at, size = 0, storage.size
    if kind is FileKind.HOSTED:
        if size < HostedHeader.size_of():
            return None
        header = HostedHeader.unpack(storage.pread(HostedHeader.size_of(), 0))
        at, size = header.descriptor_offset, min(header.descriptor_size, descriptor.LARGEST)
        if not at or not size or at + size > storage.size:
            return None
    elif kind is not FileKind.TEXT:
        return None
    elif size > descriptor.LARGEST:
        finder.error("descriptor-large", f"it begins like a descriptor and has {size} bytes; 1 MiB is the most")
        return None
    raw = storage.pread(size, at)
    if not raw.strip(b"\0 \t\r\n"):
        return None
    if kind is FileKind.HOSTED:
        _check_area(finder, raw, at)
    elif left_behind(raw):
        finder.error("descriptor-grammar", "the text goes on behind a NUL, which ends it", structure="descriptor")
    try:
        return descriptor.parse(raw, storage.name, at=at)
    except DescriptorError as error:
        check_text.parse_error(finder, error)
        return None


def _check_area(finder: Finder, raw: bytearray, at: int) -> None:
    rest = left_behind(raw)
    if rest:
        finder.note("descriptor-area", f"{len(rest)} bytes follow the end of the text; they are not read", offset=at)
    elif raw[-1]:
        finder.error(
            "descriptor-area", "the text fills its area to the last byte; it may be cut off",
            structure="HostedHeader", offset=HostedHeader.offset_of("descriptor_size"),
        )  # fmt: skip


def _without_text(finder: Finder, storage: Device, kind: FileKind, how: How, report: Report) -> None:
    """Check a file that has no descriptor, or none that can be understood."""
    if kind is FileKind.UNKNOWN:
        if storage.name.lower().endswith(".vmdk"):
            finder.error("not-vmdk", "neither a descriptor nor KDMV, COWD or seSparse is at its beginning", offset=0)
        else:
            finder.unsupported("this is no VMDK: neither a descriptor nor KDMV, COWD or seSparse is at its beginning")
        return
    found = check_file(storage, how)
    if found is not None:
        _take(report, found)
        if not finder.findings:
            finder.note(
                "no-descriptor", "this is an extent, and no descriptor beside it names it",
                remedy="vmdkit repair --rebuild-descriptor",
            )  # fmt: skip


def _take(report: Report, found: FileCheck) -> None:
    report.add(*found.findings)
    report.grains += found.grains
    report.leaked += found.leaked


HALF_RESIZED = "half-resized"  # what repairer.py has resize finish


def may_be_cut(storage: Device, header: object, length: int) -> bool:
    """Tell whether an extent larger than its line, ``length``, can have been left so by resizing (resize.py).

    It is marked unclean, or has nothing behind the line: what else lies there somebody may want back.
    """
    if not isinstance(header, (HostedHeader, CowdHeader)):
        return False
    if header.unclean_shutdown:
        return True
    try:
        extent: ExtentFile
        if isinstance(header, CowdHeader):
            extent = CowdExtent(storage, kind="VMFSSPARSE")
        else:
            extent = HostedExtent(storage, header, kind="SPARSE")
        behind = min(-(-length // extent.grain) * extent.grain, extent.length)
        return all(run.kind is RunKind.PARENT for run in extent.runs(behind, extent.length - behind))
    except VmdkitError:
        return False


class _Extents:
    """The extent lines of one descriptor."""

    def __init__(self, finder: Finder, storage: Device, text: Descriptor, gate: Gate, how: How, report: Report) -> None:
        self._finder = finder
        self._own = storage
        self._text = text
        self._gate = gate
        self._how = how
        self._report = report
        self._sparse: set[str] = set()
        self._flat: dict[str, Device] = {}

    def check(self, kind: FileKind) -> None:
        """Check every line."""
        try:
            for index, line in enumerate(self._text.extents):
                embedded = index == 0 and line.type == "SPARSE" and kind is FileKind.HOSTED
                self._check_line(line, embedded=embedded)
        finally:
            for device in self._flat.values():
                device.close()

    def _check_line(self, line: ExtentLine, *, embedded: bool) -> None:
        row = subformats.EXTENT_TYPES.get(line.type)
        if row is None:
            self._finder.unsupported(f"extent type {line.type!r} is unknown (line {line.line})", structure="descriptor")
        elif row.refusal or (line.name or "").lower().startswith("vsan:"):
            self._finder.unsupported(f"{line.type}: {row.refusal or subformats.VSAN_REFUSAL}", structure="descriptor")
        elif line.access == "NOACCESS" or row.driver == "zero":
            return
        elif line.name is None and not embedded:
            self._finder.error("extent-name", f"a {line.type} extent without a file name (line {line.line})")
        elif embedded:
            self._check_sparse(self._own, line)
        elif row.driver == "flat":
            device = self._flat.get(line.name or "") or self._open(line)
            if device is not None:
                self._flat[line.name or ""] = device
                self._check_flat(device, line)
        else:
            device = self._open(line)
            if device is not None:
                with device:
                    self._check_sparse(device, line)

    def _open(self, line: ExtentLine) -> Device | None:
        name = line.name or ""
        raw = self._text.raw_names.get(name, b"").decode("utf-8", "surrogateescape")
        for attempt in dict.fromkeys((name, raw or name)):
            try:
                device = self._gate.open(attempt, self._text.path)
            except FileNotFoundError:
                continue
            except GateError as error:
                self._finder.add(
                    Severity.UNCHECKED, "extent-refused", error.message, structure="descriptor",
                    remedy="--allow-path DIR, if you trust the image",
                )  # fmt: skip
                return None
            except OSError as error:
                self._finder.add(Severity.UNCHECKED, "extent-unreadable", f"{name!r}: {error.strerror}")
                return None
            self._report.files.append(device.name)
            return device
        self._finder.error(
            "extent-missing", f"the extent file {name!r} is not there", structure="descriptor",
            remedy="a disk needs all its files side by side",
        )  # fmt: skip
        return None

    def _check_flat(self, device: Device, line: ExtentLine) -> None:
        finder = Finder(device.name)
        due = line.at + line.length
        if device.size < due:
            finder.error(
                "extent-short", f"the file ends {due - device.size} bytes early: {due} are due, it has {device.size}",
                structure=f"{line.type} extent", offset=device.size,
            )  # fmt: skip
        elif device.size > max(one.at + one.length for one in self._text.extents if one.name == line.name):
            finder.note(
                "extent-long", f"the file has {device.size} bytes, of which the descriptor uses {due}",
                structure=f"{line.type} extent", offset=due,
            )  # fmt: skip
        self._report.add(*finder.findings)

    def _check_sparse(self, device: Device, line: ExtentLine) -> None:
        if device.name in self._sparse:
            self._finder.error("extent-shared", f"two lines name the sparse file {line.name!r}", structure="descriptor")
            return
        self._sparse.add(device.name)
        found = check_file(device, self._how)
        if found is None:
            self._finder.error(
                "header-magic", f"{line.name!r} is no sparse extent (KDMV, COWD or seSparse), though its line says "
                f"{line.type}", structure="descriptor",
            )  # fmt: skip
            return
        _take(self._report, found)
        held = found.header.capacity if found.header is not None else line.length
        if held > line.length and may_be_cut(device, found.header, line.length):
            finder = Finder(device.name)
            finder.add(
                Severity.REPAIRABLE, HALF_RESIZED,
                f"resizing was interrupted: its header has {held} bytes, its line in the descriptor {line.length}, up "
                "to which it is read", structure="header",
                remedy="the same vmdkit resize again, or vmdkit repair for the size that the descriptor says",
            )  # fmt: skip
            self._report.add(*finder.findings)
        elif held != line.length:
            finder = Finder(device.name)
            finder.error(
                "extent-capacity", f"its header has {held} bytes, its line in the descriptor {line.length}",
                structure="header",
            )  # fmt: skip
            self._report.add(*finder.findings)


def unreadable(path: str, error: VmdkitError) -> Report:
    """Return a report that says only why nothing could be looked at."""
    report = Report(path)
    finder = Finder(path)
    if isinstance(error, UnsupportedError):
        finder.unsupported(error.message)
    elif isinstance(error, FormatError):
        finder.error("not-vmdk", error.message, offset=error.offset)
    else:
        finder.add(Severity.UNCHECKED, "refused", error.message)
    report.add(*finder.findings)
    return report
