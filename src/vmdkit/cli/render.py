# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that reaches a terminal passes here, and leaves as text that cannot steer it.

Names, descriptors and annotations come from strangers: control characters (C0, C1, DEL), bidirectional and format
characters, line separators and undecodable bytes are shown as escapes, in errors too. JSON escapes all but ASCII.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def safe_text(text: object) -> str:
    """Return ``text`` with every character that does not simply show itself written as an escape."""
    string = str(text)
    if string.isprintable():  # no Other, no Separator but the space: exactly what is wanted
        return string
    return "".join(char if char.isprintable() else _escape(char) for char in string)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def out(text: object = "") -> None:
    """Print one line on stdout; line breaks in it are escaped like all else."""
    emit(safe_text(text) + "\n")


def emit(text: str) -> None:
    """Write text to stdout that the caller has made safe, line breaks included."""
    if sys.stdout is None:
        return
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # LANG=C
            encoding = sys.stdout.encoding or "ascii"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except OSError as error:
        error.filename = "standard output"
        raise


def say(text: object) -> None:
    """Print one line about this program on stderr."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"vmdkit: {safe_text(text)}\n")  # stderr replaces what it cannot encode
        sys.stderr.flush()
    except OSError:  # nobody is left to tell
        pass


def describe(error: BaseException) -> str:
    """Return what an error says, on one line, with the path or offset it knows."""
    if isinstance(error, OSError) and error.strerror:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes)) and name]
        text = ": ".join([*(os.fsdecode(name) for name in names), error.strerror])
    else:
        text = str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    return ", ".join([text, *getattr(error, "__notes__", ())])


def out_json(value: Any) -> None:
    """Print ``value`` as JSON in ASCII, indented."""
    emit(json.dumps(value, indent=2) + "\n")


def table(rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), head: bool = True) -> None:
    """Print rows in columns; ``right`` lists the columns to align right, ``head`` underlines the first row."""
    cells = [[safe_text(cell) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    for number, row in enumerate(cells):
        padded = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out("  ".join(padded).rstrip())
        if head and not number:
            out("  ".join("-" * width for width in widths))
