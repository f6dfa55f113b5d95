# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Change a descriptor in place, without changing the length of anything.

The content ID has to change, durably, before the first byte of data does (format spec 1.3). Each change here keeps
its place and its length, so that whole sectors are rewritten where they are: a power cut leaves the old sector or
the new one, never a cut-off text, and neither the locks on the file nor its owner are lost, as they would be if a
new file took its place.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from vmdkit.errors import DescriptorError
from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from vmdkit.device import Device

_CID = re.compile(rb'^[ \t]*CID[ \t]*=[ \t]*"?(?:0x)?([0-9a-f]{1,8})', re.IGNORECASE | re.MULTILINE)
_LONG_CID = re.compile(rb'^[ \t]*ddb\.longContentID[ \t]*=[ \t]*"([0-9a-f]{32})"', re.IGNORECASE | re.MULTILINE)
_TRACKING = re.compile(rb"^[ \t]*changeTrackPath[ \t]*=", re.IGNORECASE | re.MULTILINE)
_VERSION_3 = re.compile(rb'^[ \t]*version[ \t]*=[ \t]*"?(3)', re.IGNORECASE | re.MULTILINE)
_RESERVED = (0xFFFFFFFF, 0xFFFFFFFE, 0)  # "none", "never written" and what VDDK leaves: never generated


def new_content_id(old: int, digits: int = 8) -> int:
    """Return a random content ID of at most ``digits`` hexadecimal digits, unlike ``old`` and the reserved ones."""
    while True:
        value = random.getrandbits(4 * digits)
        if value != old and value not in _RESERVED:
            return value


def change_content(text: bytes) -> tuple[bytes, int]:
    """Return the text as it has to be once the content has changed, and its new content ID.

    The long content ID follows; changed-block tracking, which would be silently wrong from now on, is switched off
    (its line becomes a comment, version 3 becomes 1). Raises DescriptorError where there is no content ID.
    """
    match = _CID.search(text)
    if match is None:
        raise DescriptorError("there is no CID to change, so a child or backup could not notice the writing")
    digits = len(match[1])
    cid = new_content_id(int(match[1], 16), digits)
    out = bytearray(text)
    out[match.start(1) : match.end(1)] = f"{cid:0{digits}x}".encode()
    long = _LONG_CID.search(text)
    if long is not None:
        value = f"{random.getrandbits(96):024x}{cid:08x}"
        out[long.start(1) : long.end(1)] = value.encode()
    tracking = _TRACKING.search(text)
    if tracking is not None:
        out[tracking.start()] = ord("#")
        version = _VERSION_3.search(text)
        if version is not None:
            out[version.start(1)] = ord("1")
    return bytes(out), cid


def write_changed(storage: Device, at: int, old: bytes, new: bytes) -> None:
    """Write the sectors in which ``new`` differs from ``old``, the text at ``at``; both have one length."""
    first = at - at % SECTOR
    for start in range(first, at + len(old), SECTOR):
        low, high = max(start - at, 0), min(start + SECTOR - at, len(old))
        if old[low:high] != new[low:high]:
            storage.pwrite(new[low:high], at + low)
