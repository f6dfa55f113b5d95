# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a handshake agreed on: the transmission phase needs nothing else to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmdkit.nbd.protocol import ExportFlag, Mode

if TYPE_CHECKING:
    from vmdkit.nbd.export import Export


@dataclass(slots=True)
class Session:
    """One client of one export.

    ``minimum`` is the alignment this client must keep, in bytes: 1 unless it asked for the block sizes, since a
    client that never heard of them cannot keep them. ``contexts`` maps the numbers it was given to names.
    """

    export: Export
    mode: Mode = Mode.SIMPLE
    minimum: int = 1
    maximum: int = 0
    flags: ExportFlag = ExportFlag.HAS_FLAGS
    contexts: dict[int, str] = field(default_factory=dict)
