# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How the command line is parsed: argparse, with one line for a mistake and the options that every verb has.

General options are accepted before and after the verb; a verb's module therefore never defines them itself.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from vmdkit.cli.render import say
from vmdkit.cores import default_threads

if TYPE_CHECKING:
    from typing import Any

    Verbs = argparse._SubParsersAction["Parser"]

_MOST_THREADS = 64
GENERAL: dict[str, Any] = {"quiet": False, "verbose": 0, "json": False, "progress": None}
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("-q", "--quiet"), {"action": "store_true", "help": "say nothing but errors"}),
    (("-v", "--verbose"), {"action": "count", "help": "say more; twice for even more"}),
    (("--json",), {"action": "store_true", "help": "print JSON"}),
    (("--progress",), {"choices": ("bar", "json", "none"), "help": "default: a bar where stderr is a terminal"}),
)


class Parser(argparse.ArgumentParser):
    """An argparse parser that answers a mistake with one line and exit code ``usage_code``."""

    usage_code = 2

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, on one line, and leave."""
        _, _, verb = self.prog.partition(" ")
        say(f"{verb + ': ' if verb else ''}{message} ('{self.prog} --help' says more)")
        raise SystemExit(self.usage_code)


def add_general_options(parser: Parser) -> None:
    """Add -q, -v, --json and --progress; one that the parser has defined itself is left alone."""
    group = parser.add_argument_group("general options")
    for names, settings in _OPTIONS:
        try:
            group.add_argument(*names, default=argparse.SUPPRESS, **settings)
        except argparse.ArgumentError:
            continue


def add_threads(parser: Parser, default: int | None = None) -> None:
    """Add --threads, which is at least one and not more than a machine has use for; ``default`` may be 0, no choice."""
    count = default_threads()
    parser.add_argument(
        "--threads", type=_threads, default=count if default is None else default, metavar="N",
        help=f"threads that read, pack and unpack (default {count}: one for each core)",
    )  # fmt: skip


def _threads(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"between 1 and {_MOST_THREADS} threads, not {count}")
    return count


def parse_defaults() -> argparse.Namespace:
    """Return a namespace with the general options' defaults, for both parsers to write to."""
    return argparse.Namespace(**GENERAL)
