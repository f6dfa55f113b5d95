# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Find and check the parent of a link (format spec 1.15).

A hint is where the parent's descriptor was when the child was made. It is tried as it stands, as far as the gate
allows, and then as a bare name in the child's own directory, since whole directories are copied and moved.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmdkit.errors import ChainError, GateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.descriptor import Descriptor

DEEPEST = 64  # links; VMware allows 32 snapshots
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_NO_CONTENT = (0, 0xFFFFFFFE, 0xFFFFFFFF)  # IDs that say nothing about content (format spec 1.3)

Identity = tuple[int, int] | str


def identify(storage: Device) -> Identity:
    """Return what tells one file from another: device and inode, or the name where there is no descriptor."""
    fd = storage.fileno()
    if fd is None:
        return storage.name
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_parent(text: Descriptor, gate: Gate) -> Device:
    """Open the file that ``text`` names as its parent; raises ChainError where there is none, GateError, OSError."""
    hint = text.parent_hint
    if not hint:
        raise ChainError("it has a parent (parentCID), but does not say which (parentFileNameHint)", path=text.path)
    refused: GateError | None = None
    for name in _candidates(hint):
        try:
            return gate.open(name, text.path)
        except GateError as error:
            refused = refused or error
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    if refused is not None:
        raise refused
    raise ChainError(
        f"its parent {hint[:300]!r} is not there; put it beside this file, or read this link alone (--single-link)",
        path=text.path,
    )


def _candidates(hint: str) -> Iterator[str]:
    name = hint.replace("\\", "/")
    yield name
    bare = name.rsplit("/", 1)[-1]
    if bare and bare != name:
        yield bare


def is_half_committed(child: Descriptor, parent_cid: int) -> bool:
    """Tell whether a commit of ``child`` into a parent with this content ID was interrupted between its first steps.

    The parent is given the child's own content ID before its first byte changes, the child's parentCID follows
    (commit.py). A parent can have that ID from nowhere else, and from then on the chain reads as it did before.
    """
    return parent_cid == child.cid != child.parent_cid and child.cid not in _NO_CONTENT


def check_parent(child: Descriptor, parent: Device, parent_cid: int | None, *, writable: bool = False) -> None:
    """Raise ChainError unless the parent is the very disk the child was made from.

    ``parent_cid`` is None where the parent has none (not a VMDK). ``writable``: the child is to be written, so that
    its content ID will change, and nothing would tell of an interrupted commit any more.
    """
    if parent_cid is not None and is_half_committed(child, parent_cid):
        if writable:
            raise ChainError(
                f"committing it to {parent.name} was interrupted: vmdkit commit goes on with that, vmdkit repair makes "
                "it fit to be written; it can be read as it is",
                path=child.path,
            )
    elif parent_cid is not None and parent_cid != child.parent_cid:
        raise ChainError(
            f"its parent {parent.name} has changed since: content ID {parent_cid:08x}, "
            f"{child.parent_cid:08x} is due; reading both together would mix two states "
            "(--ignore-cid if you know better)",
            path=child.path,
        )
    if parent.size != child.size:
        raise ChainError(
            f"its parent {parent.name} has {parent.size} bytes, this link {child.size}; all links of a chain are "
            "of one size (--ignore-cid if you know better)",
            path=child.path,
        )


def check_depth(seen: tuple[Identity, ...], here: Identity, path: str) -> None:
    """Raise ChainError for a chain that comes back to itself or is deeper than any real one."""
    if here in seen:
        raise ChainError("the chain of parents comes back to this file", path=path)
    if len(seen) >= DEEPEST:
        raise ChainError(f"the chain of parents has more than {DEEPEST} links", path=path)
