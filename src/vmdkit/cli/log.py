# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Show what the library logs, one safe line each, on stderr."""

from __future__ import annotations

import logging

from vmdkit.cli.render import say

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        say(prefix + record.getMessage())


def configure(verbose: int, quiet: bool) -> None:
    """Show warnings, with ``verbose`` more, with ``quiet`` errors only."""
    logger = logging.getLogger("vmdkit")
    logger.handlers[:] = [_Lines()]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else _LEVELS[min(verbose, 2)])
