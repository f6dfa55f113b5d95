# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A server that is started for the occasion, as a disk: ``[ qemu-nbd -f qcow2 disk.qcow2 ]``, the form nbdcopy has.

The words between the brackets are taken out before the options are parsed: they are the server's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPEN, _CLOSE = "[", "]"


class Program(str):
    """What stands for the server among the words; ``command`` starts it, with its socket as systemd hands it over."""

    command: tuple[str, ...]

    def __new__(cls, command: Sequence[str]) -> Program:
        """Return the word for a command."""
        word = super().__new__(cls, " ".join((_OPEN, *command, _CLOSE)))
        word.command = tuple(command)
        return word


def programs(words: Sequence[str]) -> list[str]:
    """Return ``words`` with a Program in the place of each pair of brackets; raises UsageError for a lone one."""
    found: list[str] = []
    inside: list[str] | None = None
    for word in words:
        if word == _OPEN and inside is None:
            inside = []
        elif word == _CLOSE and inside is not None:
            if not inside:
                raise UsageError("between the brackets the command is missing that starts the server")
            found.append(Program(inside))
            inside = None
        elif inside is not None:
            inside.append(word)
        else:
            found.append(word)
    if inside is not None:
        raise UsageError("'[' begins a command, and no ']' of its own ends it")
    return found
