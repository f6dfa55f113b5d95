# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Make a file fit to be written that was not closed cleanly: what opening for writing needs of repair (spec 4.3, 3).

A power cut leaves entries that one copy of the tables has and the other has not yet, and tables that one directory
points at only. Both values of each such entry were right at some moment after the last flush, so either may be kept;
an entry that has a grain is preferred to one that has none. What else is wrong, and can be mended so that nothing
reads otherwise, is mended too. If anything is left, the file is not written: that takes a decision.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vmdkit.errors import CorruptError
from vmdkit.vmdk.check_findings import Severity
from vmdkit.vmdk.repair_steps import Steps
from vmdkit.vmdk.structs import UNALLOCATED

if TYPE_CHECKING:
    from vmdkit.device import Device
    from vmdkit.vmdk.check_findings import Finder
    from vmdkit.vmdk.structs import Codes
    from vmdkit.vmdk.tables import GrainTables

_AT_ONCE = 128  # tables compared together
_log = logging.getLogger(__name__)


class Mend(Protocol):
    """What mends one kind of extent file."""

    def __call__(self, storage: Device, steps: Steps, *, clear_unclean: bool = True) -> Finder:
        """Mend what is safe to mend; return what a check finds afterwards."""
        ...


def recover(storage: Device, mend: Mend) -> bool:
    """Check a file that was not closed cleanly and mend what is safe; tell whether anything was changed.

    The mark of not being closed stays. Raises CorruptError, saying how to go on, where anything wrong is left.
    """
    steps = Steps()
    found = mend(storage, steps, clear_unclean=False)
    for step in steps.done:
        _log.warning("%s: not closed cleanly: %s", storage.name, step.text)
    wrong = [one for one in found.findings if one.severity in (Severity.ERROR, Severity.REPAIRABLE)]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CorruptError(
            f"it was not closed cleanly, and has damage that takes a decision: {wrong[0].text}{more}; "
            "'vmdkit check' tells all, 'vmdkit repair --plan' what can be done; until then it can be read",
            path=storage.name, offset=wrong[0].offset,
        )  # fmt: skip
    return bool(steps.done)


def present_tables(*copies: GrainTables) -> Codes:
    """Return the numbers of tables that at least one copy has something of."""
    present = np.zeros(len(copies[0]), dtype=bool)
    for copy in copies:
        present |= (copy.directory != UNALLOCATED) & ~copy.hidden
    return np.flatnonzero(present)


def differing_tables(primary: GrainTables, redundant: GrainTables) -> list[int]:
    """Return the numbers of tables whose copies are not equal."""
    found: list[int] = []
    present = present_tables(primary, redundant)
    for part in np.split(present, np.flatnonzero(np.diff(present) != 1) + 1):
        for at in range(0, len(part), _AT_ONCE):
            first, last = int(part[at]), int(part[min(at + _AT_ONCE, len(part)) - 1]) + 1
            different = (primary.bulk(first, last) != redundant.bulk(first, last)).reshape(-1, primary.entries)
            found += (np.flatnonzero(different.any(axis=1)) + first).tolist()
    return found
