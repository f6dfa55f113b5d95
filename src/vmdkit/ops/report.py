# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a copy and its proof: what a user files, and what can be checked again years later (docs/proof.md).

JSON, with a seal: ``sha256`` is the digest of the canonical form of all the rest (keys sorted, no blanks, ASCII, whole
numbers only). It tells a damaged report, not a forged one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from vmdkit.device import ExtentFlags
from vmdkit.errors import FormatError, UsageError
from vmdkit.ops.tree import TreeDigest, join_spans, parse_digest
from vmdkit.ops.verify import is_vhd
from vmdkit.units import MIB, SECTOR, format_size
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device

    Report = dict[str, Any]

VERSION: Final = 1
LARGEST: Final = 4 * MIB  # bytes of a report
EQUAL, DIFFERENT, FAILED = "equal", "different", "not read"
_KIND, _SEAL = "vmdkit_report", "sha256"


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────


def describe(device: Device, name: str) -> Report:
    """Return what a report says of one side: what it is called, what it is, and where its bytes are."""
    held = {"data": 0, "zero": 0, "hole": 0}
    for extent in device.extents():
        kind = "hole" if extent.flags & ExtentFlags.HOLE else "zero" if extent.flags & ExtentFlags.ZERO else "data"
        held[kind] += extent.length
    found: Report = {"name": name, "format": "raw", "size": device.size, **held}
    if isinstance(device, VmdkDisk):
        text = device.descriptor
        found |= {
            "format": "vmdk",
            "subformat": text.create_type,
            "cid": f"{text.cid:08x}",
            "parent_cid": f"{text.parent_cid:08x}",
            "parents": [link.name for link in _parents(device)],
        }
    elif is_vhd(device):
        found["format"] = "vhd"
    elif device.fileno() is None:
        facts = getattr(device, "facts", None)
        found["format"] = facts().get("format", "other") if facts is not None else "other"
    files = dict(_files(device))
    if files:
        found["files"] = [{"name": path, **facts} for path, facts in files.items()]
    return found


def _parents(disk: VmdkDisk) -> Iterator[Device]:
    link = disk.parent
    while link is not None:
        yield link
        link = getattr(link, "parent", None)


def _files(device: Device) -> Iterator[tuple[str, Report]]:
    """Yield every file below, with its size and what it takes in its file system."""
    fd = device.fileno()
    if fd is not None:
        status = os.fstat(fd)
        yield device.name, {"size": status.st_size or device.size, "allocated": status.st_blocks * SECTOR}
    for part in device.parts():
        yield from _files(part)


def describe_file(path: str) -> Report:
    """Return what a report says of one file. Raises OSError."""
    status = os.stat(path)
    return {"name": path, "size": status.st_size, "allocated": status.st_blocks * SECTOR}


def surroundings(tools: dict[str, str]) -> Report:
    """Return the host, and the versions of the programs that took part; Python is one."""
    return {
        "host": {"name": platform.node(), "system": f"{platform.system()} {platform.release()}",
                 "machine": platform.machine()},
        "tools": {**tools, "python": platform.python_version()},
    }  # fmt: skip


def now() -> str:
    """Return the time as reports write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digests(source: TreeDigest, destination: TreeDigest | None) -> Report:
    """Return how a report says digests: those of both sides, and of the spans of the source that are not zero."""
    return {
        "source": str(source),
        "destination": None if destination is None else str(destination),
        "span": source.span,
        "spans": {str(index): digest.hex() for index, digest in source.spans.items()},
    }


def sealed(report: Report) -> Report:
    """Return the report with its kind and its seal."""
    whole = {_KIND: VERSION, **report}
    return {**whole, _SEAL: _seal(whole)}


def _seal(report: Report) -> str:
    rest = {key: value for key, value in report.items() if key != _SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def as_json(report: Report) -> str:
    """Return a sealed report as the text of a file."""
    return json.dumps(report, indent=1, ensure_ascii=True) + "\n"


# ── reading one ──────────────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str, path: str) -> Report:
    """Return a report whose seal is whole. Raises FormatError for anything else."""
    if len(text) > LARGEST:
        raise FormatError("too large for a report", path=path)
    try:
        report = json.loads(text)
        seal = _seal(report) if isinstance(report, dict) else ""
    except (ValueError, RecursionError) as error:
        raise FormatError(f"it is no JSON: {error}", path=path) from error
    if not isinstance(report, dict) or _KIND not in report:
        raise FormatError("it is no report of vmdkit", path=path)
    if report[_KIND] != VERSION:
        raise FormatError(f"a report of version {report[_KIND]!r}; {VERSION} is known", path=path)
    if report.get(_SEAL) != seal:
        raise FormatError("its seal is broken: it is not as it was written", path=path)
    return report


def text_at(report: Report, *keys: str) -> str:
    """Return the text at a place of a report, such as ``"source", "name"``. Raises FormatError."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise FormatError(f"the report has no text {'.'.join(keys)}")
    return value


def number_at(report: Report, *keys: str) -> int:
    """Return the whole number at a place of a report; 0 where there is none."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else 0


def source_digest(report: Report) -> TreeDigest:
    """Return the digest of the source with its spans, which must make it. Raises FormatError."""
    try:
        shape, digest = parse_digest(text_at(report, "digests", "source"))
        span = number_at(report, "digests", "span")
        level = max(0, (span // shape.block).bit_length() - 1)
        spans = {int(index): bytes.fromhex(text) for index, text in report["digests"]["spans"].items()}
        if shape.block << level != span or min(spans, default=0) < 0:
            raise UsageError(f"spans of {span} bytes")
        found = join_spans(shape, number_at(report, "source", "size"), level, spans)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise FormatError(f"the report's digests cannot be used: {error}") from error
    if found.digest != digest:
        raise FormatError("the report's spans do not make its digest")
    return found


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────


def as_text(report: Report) -> list[str]:
    """Return the lines of a report for people: less than a screen. They are the caller's to make safe."""
    lines = [f"verdict      {text_at(report, 'verdict').upper()}"]
    if report.get("difference"):
        lines.append(f"             {text_at(report, 'difference', 'message')}")
    for side in ("source", "destination"):
        if isinstance(report.get(side), dict):
            lines += _side(side, report[side])
    lines += _digests(report)
    lines.append(f"read by      {text_at(report, 'reading', 'reader')}")
    lines.append(f"             {text_at(report, 'reading', 'trust')}")
    size = number_at(report, "source", "size")
    for what, key in (("copied", "copy_ms"), ("proved", "verify_ms")):
        spent = number_at(report, "times", key)
        if spent:
            lines.append(f"{what:<12} in {spent / 1000:.1f} s, {format_size(size * 1000 // spent)}/s of the disk")
    lines.append(f"when         {text_at(report, 'times', 'started')} to {text_at(report, 'times', 'finished')}")
    lines.append(f"where        {', '.join(str(value) for value in _mapping(report, 'host').values())}")
    lines.append(
        f"by           {', '.join(f'{name} {version}' for name, version in _mapping(report, 'tools').items())}"
    )
    lines.append(f"seal         sha256 {report.get(_SEAL)}")
    return lines


def _mapping(report: Report, key: str) -> Report:
    value = report.get(key)
    return value if isinstance(value, dict) else {}


def _digests(report: Report) -> list[str]:
    source, destination = text_at(report, "digests", "source"), report["digests"].get("destination")
    if destination in (source, None):
        return [f"digest       {source}", "             of both" if destination else "             of the source"]
    longer = ", which is longer, and zero there" if text_at(report, "verdict") == EQUAL else ""
    return [
        f"digest       {source}",
        "             of the source,",
        f"             {destination}",
        f"             of the destination{longer}",
    ]


def _side(side: str, facts: Report) -> list[str]:
    kind = " ".join(str(facts[key]) for key in ("format", "subformat") if facts.get(key))
    size = number_at(facts, "size")
    cid = f", CID {facts['cid']}" if facts.get("cid") else ""
    zero = number_at(facts, "zero") + number_at(facts, "hole")
    data = f"{format_size(number_at(facts, 'data'))} data, {format_size(zero)} zeros"
    files = facts.get("files")
    if isinstance(files, list):
        held = sum(number_at(file, "allocated") for file in files if isinstance(file, dict))
        data += f"; {'1 file takes' if len(files) == 1 else f'{len(files)} files take'} {format_size(held)}"
    return [
        f"{side:<12} {facts.get('name')}",
        f"             {kind}, {format_size(size)} ({size} bytes){cid}",
        f"             {data}",
    ]
