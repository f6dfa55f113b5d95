# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How many threads are worth while, where each keeps a core busy."""

from __future__ import annotations

import os

_LEAST, _MOST = 2, 32  # with one core a second thread still reads ahead; each holds some MiB, and 200 are allowed


def default_threads() -> int:
    """Return one for each core that this process may use, from 2 to 32."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # no Linux
        cores = os.cpu_count() or 1
    return min(max(cores, _LEAST), _MOST)
