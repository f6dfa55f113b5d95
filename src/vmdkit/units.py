# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Name the units; every other module counts bytes."""

from __future__ import annotations

import re

from vmdkit.errors import UsageError

SECTOR = 512  # a VMDK sector, also on 4Kn disks (format spec, section 0)
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SUFFIXES = {"": 1, "b": 1, "s": SECTOR, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(\d{1,20})(?:\.(\d{1,9}))?\s*([bskmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` means: ``1000``, ``10G``, ``1.5 TiB``, ``64k``, ``3s`` (sectors).

    Suffixes are powers of 1024, as everywhere in this field. Raises UsageError for anything else and for
    sizes that are no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size; write for example 1048576, 64k, 10G or 1.5T")
    whole, fraction, suffix = match[1], match[2] or "", match[3].lower()
    scaled = int(whole + fraction) * _SUFFIXES[suffix]
    size, rest = divmod(scaled, int("1" + "0" * len(fraction)))
    if rest:
        raise UsageError(f"{text!r} is no whole number of bytes")
    return size


def format_size(count: int) -> str:
    """Return ``count`` bytes for a reader: ``10 MiB``, ``1.5 GiB``, ``512 B``."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count} B"
