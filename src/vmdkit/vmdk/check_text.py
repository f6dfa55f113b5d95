# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check a descriptor: its grammar, its facts, and what other programs make of its form (format spec 1.2 to 1.6)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from vmdkit.errors import DescriptorError
from vmdkit.vmdk import subformats

if TYPE_CHECKING:
    from vmdkit.vmdk.check_findings import Finder
    from vmdkit.vmdk.descriptor import Descriptor

_VERSION_FIRST = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*version=[123][ \t]*\r?(?:\n|\Z)")
_DIGITS = re.compile(r"[0-9a-f]{8}")
_CASE = ("version=", "CID=", "parentCID=", "createType=")
_FLAT, _SPARSE = ("FLAT", "VMFS", "ZERO"), ("SPARSE",)
# createType -> types its lines may have; qemu and VMware choose their driver by the createType
_MEMBERS = {
    "monolithicsparse": _SPARSE,
    "twogbmaxextentsparse": _SPARSE,
    "2gbmaxextentsparse": _SPARSE,
    "streamoptimized": _SPARSE,
    "monolithicflat": _FLAT,
    "twogbmaxextentflat": _FLAT,
    "2gbmaxextentflat": _FLAT,
    "vmfs": _FLAT,
    "vmfsthin": _FLAT,
    "vmfsthick": _FLAT,
    "vmfspreallocated": _FLAT,
    "vmfseagerzeroedthick": _FLAT,
    "vmfssparse": ("VMFSSPARSE",),
    "sesparse": ("SESPARSE",),
    "vmfssesparse": ("SESPARSE",),
}
_TEXT = "descriptor"


def check_text(finder: Finder, text: Descriptor) -> None:
    """Look at a descriptor that could be parsed."""
    for doubt in text.doubts:
        finder.note("descriptor-form", doubt.text, structure=_TEXT, offset=doubt.offset)
    _check_keys(finder, text)
    _check_ids(finder, text)
    _check_type(finder, text)
    _check_form(finder, text)
    _check_lines(finder, text)


def is_refused(finder: Finder, text: Descriptor) -> bool:
    """Tell whether nobody outside VMware can look at the data; notes why."""
    row = subformats.SUBFORMATS.get(text.create_type.lower())
    if text.is_encrypted:
        finder.unsupported(subformats.ENCRYPTED_REFUSAL, structure=_TEXT)
        return True
    if row is not None and row.refusal:
        finder.unsupported(f"{text.create_type}: {row.refusal}", structure=_TEXT)
        return True
    return False


def _check_keys(finder: Finder, text: Descriptor) -> None:
    version = text.header.get("version")
    if version is None or version not in ("1", "2", "3"):
        what = "is missing" if version is None else f"is {version!r}; 1, 2 and 3 are known"
        finder.error("descriptor-version", f"version {what}; qemu takes the file for raw bytes", structure=_TEXT)
    if version == "3" and not text.change_track_path:
        finder.note("ctk", "version is 3, though no changed-block tracking is on", structure=_TEXT)
    if not text.extents:
        finder.error("descriptor-empty", "there is no extent in it", structure=_TEXT)
    if text.ddb.get("iofilters"):
        finder.note(
            "iofilters", f"I/O filters ({text.ddb['iofilters']}) are attached; what is written past them is not "
            "seen by them", structure=_TEXT,
        )  # fmt: skip


def _check_ids(finder: Finder, text: Descriptor) -> None:
    for key in ("cid", "parentcid"):
        value = text.header.get(key)
        try:
            _ = text.cid if key == "cid" else text.parent_cid
        except DescriptorError as error:
            finder.error("descriptor-cid", error.message, structure=_TEXT)
            continue
        if value is None and key == "cid":
            finder.error("descriptor-cid", "there is no CID, so children cannot know their parent", structure=_TEXT)
        elif value is not None and not _DIGITS.fullmatch(value):
            finder.note("descriptor-form", f"{key} is {value!r}; eight digits in lower case are due", structure=_TEXT)
    if text.header.get("cid") and text.header.get("cid") == text.header.get("parentcid"):
        finder.note("descriptor-cid", "CID and parentCID are equal", structure=_TEXT)


def _check_type(finder: Finder, text: Descriptor) -> None:
    name = text.create_type
    if not name:
        finder.error("create-type", "there is no createType; other programs do not open the disk", structure=_TEXT)
        return
    if name.lower() not in subformats.SUBFORMATS:
        finder.note("create-type", f"createType {name!r} is unknown; read by its extents", structure=_TEXT)
        return
    members = _MEMBERS.get(name.lower())
    strange = sorted({line.type for line in text.extents} - set(members or ())) if members else []
    if strange:
        finder.error(
            "create-type", f"createType is {name}, but there are extents of type {', '.join(strange)}", structure=_TEXT
        )


def _check_form(finder: Finder, text: Descriptor) -> None:
    """Note what is legal, and trips other readers (format spec 1.2, measured)."""
    raw = text.raw
    if text.header.get("version") in ("1", "2", "3") and not _VERSION_FIRST.match(raw) and not text.at:
        finder.note(
            "descriptor-form", "version=N is not the first key, written without blanks: qemu takes the file for a raw "
            "disk", structure=_TEXT,
        )  # fmt: skip
    if b"\r" in raw:
        finder.note("descriptor-form", "lines end in CR LF; VMware writes LF", structure=_TEXT)
    if b"# Extent description" not in raw:
        finder.note("descriptor-form", "section comments are missing; libvmdk needs them", structure=_TEXT)
    if any(key.lower().encode() in raw.lower() and key.encode() not in raw for key in _CASE) and (
        b" = " not in raw.split(b"# The Disk Data Base")[0]
    ):
        finder.note("descriptor-form", "keys are not written as VMware writes them; qemu fails", structure=_TEXT)


def _check_lines(finder: Finder, text: Descriptor) -> None:
    dropped = [line for line in text.extents if line.access != "RW" or line.type == "ZERO"]
    if dropped and not (text.at and [line.type for line in text.extents] == ["SPARSE"]):  # one file: its header counts
        finder.note(
            "extent-access", f"{len(dropped)} extents are not RW, or ZERO: qemu leaves them out, and shows a shorter "
            "disk that is shifted from there on", structure=_TEXT,
        )  # fmt: skip
    if any(line.at and line.type == "FLAT" for line in text.extents):
        finder.note("extent-offset", "a flat extent begins inside its file; some readers ignore that", structure=_TEXT)
    spans: dict[str, list[tuple[int, int]]] = {}
    for line in text.extents:
        if line.name is not None and line.type in ("FLAT", "VMFS"):
            spans.setdefault(line.name, []).append((line.at, line.at + line.length))
    for name, places in spans.items():
        ordered = sorted(places)
        if any(one[1] > other[0] for one, other in pairwise(ordered)):
            finder.error(
                "extent-shared", f"two lines show the same bytes of {name!r}: writing the one changes the other",
                structure=_TEXT,
            )  # fmt: skip


def parse_error(finder: Finder, error: DescriptorError) -> None:
    """Note that a descriptor cannot be understood."""
    code = "descriptor-large" if "more than" in error.message else "descriptor-grammar"
    finder.error(code, error.message, structure=_TEXT)
