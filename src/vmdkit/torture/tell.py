# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Say whose bytes a sector holds: every sector that is written says so itself (workload.py, fixtures.py)."""

from __future__ import annotations


def tell(value: bytes) -> str:
    """Say what a sector holds."""
    if not any(value):
        return "zeros"
    tag, place = int.from_bytes(value[:8], "little"), int.from_bytes(value[8:16], "little")
    if value != value[:16] * (len(value) // 16):
        return "a mixture"
    origin = {1 << 40: "the parent's bytes"}.get(tag)
    if origin is None:
        origin = "bytes from before" if tag >> 41 else f"the bytes of write {tag & 0xFFFF}"
    return f"{origin} of sector {place}"
