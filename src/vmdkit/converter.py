# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write any Device as a new disk of any format; it appears whole under its name, or not at all.

::

    source ── ops.copy ──► Output.device      or ── ops.stream ──► Output.sink, in order
                           Output.complete               tables, headers, footers; durable, still nameless
                           Output.read_back ──► check    whoever wants proof compares now
                           names appear

An error anywhere before the last line, a signal too, leaves nothing behind. The formats are rows of ``formats.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmdkit.formats import FORMATS, STDOUT, Format, Order, Output, find_format
from vmdkit.ops.copy import CopyOptions, Tally, copy, ignore, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device

    Check = Callable[[Device, Device], None]

__all__ = ["FORMATS", "STDOUT", "Format", "Order", "Output", "convert", "find_format"]


def convert(
    source: Device,
    order: Order,
    kind: str,
    copying: CopyOptions = CopyOptions(),  # noqa: B008  # immutable
    *,
    check: Check | None = None,
    progress: Callable[[int], None] = ignore,
    tally: Tally | None = None,
) -> Tally:
    """Write ``source`` as a new disk of format ``kind``.

    ``check(source, written)`` is called with the result, opened by a reader's path, when it is complete and before
    it has its name; what it raises leaves nothing behind. Raises UsageError for what contradicts itself, where
    something exists and may not be overwritten, or is a file that the source is read from; UnsupportedError for an
    unknown format; and what reading and writing raise.
    """
    row = find_format(kind)
    row.check(source, order)
    tally = Tally() if tally is None else tally
    with row.make(order, source) as output:
        if output.sink is not None:
            stream(source, output.sink, copying, progress, tally)
        else:
            how = replace(copying, destination_is_zero=True, block=output.block)
            copy(source, output.device, how, progress, tally, base=order.parent)
            rest = output.device.size - source.size
            if order.parent is not None and rest:  # the parent's bytes are there, and belong to nothing
                output.device.zero(rest, source.size)
        output.complete()
        if check is not None:
            with output.read_back() as written:
                check(source, written)
    return tally
