# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Decide, entry by entry, what two copies of a grain table that differ should both say (format spec 4.3, 4.4).

The one place of this decision: check reports by it, repair writes by it. One, the primary, is what VMware, qemu and
7-Zip read; two, the redundant, what libvmdk reads::

    one          two             both should be
    grain        none            one         a writer got no further than the primary
    none         grain           two         a writer got no further than the redundant; its data were durable
    sound        broken          one
    broken       grain           two
    broken       none            undecided   what was lost may have been data
    grain        another grain   undecided   or one, after a crash: either was right after the last flush

A redundant table that has anything broken is believed in nothing that the primary does not say: what looks like a
grain there may be chance. Of the primary, a sector that is mostly broken is taken from a sound redundant table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmdkit.units import SECTOR

if TYPE_CHECKING:
    from vmdkit.vmdk.check_grains import Entries, Mask

_PER_SECTOR = SECTOR // 4
_MOSTLY = 4  # broken entries of a sector, and more than half of those in use, that make it garbage


class Merged(NamedTuple):
    """``entries`` for both copies; where ``undecided`` they are the primary's. ``extra``: taken from the redundant."""

    entries: Entries
    undecided: Mask
    extra: Mask


def merge(one: Entries, two: Entries, sound_one: Mask, sound_two: Mask, *, crashed: bool) -> Merged:
    """Merge raw entries of the two copies of one table; ``sound`` says which of them can be right by themselves."""
    differs = one != two
    merged = one.copy()
    trusted = bool(sound_two.all())
    taken = differs & ~sound_one & sound_two & (two != 0)
    if trusted:
        taken |= differs & _garbage(one, sound_one)
    extra = differs & sound_one & sound_two & (one == 0) & trusted
    merged[taken | extra] = two[taken | extra]
    undecided = differs & ~sound_one & ~taken
    if not crashed and trusted:
        undecided |= differs & sound_one & (one != 0) & (two != 0)
    return Merged(merged, undecided, extra | (taken & (two != 0)))


def _garbage(one: Entries, sound: Mask) -> Mask:
    """Tell which entries lie in a sector of which most entries in use are broken."""
    out = np.zeros(len(one), dtype=bool)
    for at in range(0, len(one), _PER_SECTOR):
        part = slice(at, at + _PER_SECTOR)
        broken, used = int(np.count_nonzero(~sound[part])), int(np.count_nonzero(one[part]))
        out[part] = broken >= _MOSTLY and 2 * broken > used
    return out


def write_order(old: Entries, new: Entries, sound_old: Mask) -> tuple[list[int], list[int]]:
    """Return the sectors to write so that a cut between them leaves a table that is decided alike: first, then last.

    Sectors of a broken table that look sound go first: as long as any of the others is left, the table is known
    to be broken.
    """
    changed = [
        at for at in range(0, len(old), _PER_SECTOR) if (old[at : at + _PER_SECTOR] != new[at : at + _PER_SECTOR]).any()
    ]
    looks_sound = [at for at in changed if sound_old[at : at + _PER_SECTOR].all()]
    return [at // _PER_SECTOR for at in looks_sound], [at // _PER_SECTOR for at in changed if at not in looks_sound]
