# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Check what a disk needs beside its extents: parents, the file of changed blocks, locks (format spec 1.12 to 1.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdkit.errors import ChainError, DescriptorError, FormatError, GateError, VmdkitError
from vmdkit.vmdk import chain, locks
from vmdkit.vmdk.check_findings import Finder, Report, Severity
from vmdkit.vmdk.descriptor import NO_CID
from vmdkit.vmdk.image import read_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.descriptor import Descriptor

_LINK = "chain"


def check_parents(storage: Device, text: Descriptor, gate: Gate, report: Report) -> Iterator[Device]:
    """Yield the file of each parent, open until the next; notes what does not fit on the way."""
    seen: tuple[chain.Identity, ...] = (chain.identify(storage),)
    while True:
        finder = Finder(text.path)
        parent = _open_parent(finder, text, gate)
        report.add(*finder.findings)
        if parent is None:
            return
        with parent:
            finder = Finder(text.path)
            above, seen = _compare(finder, text, parent, seen)
            report.add(*finder.findings)
            if above is None:
                return
            yield parent
            text = above


def _open_parent(finder: Finder, text: Descriptor, gate: Gate) -> Device | None:
    try:
        if text.parent_cid == NO_CID:
            _hint_without_cid(finder, text)
            return None
        return chain.open_parent(text, gate)
    except DescriptorError:
        return None  # the text's own matter
    except GateError as error:
        finder.add(
            Severity.UNCHECKED, "parent-refused", error.message, structure=_LINK,
            remedy="--allow-path DIR, if you trust the image",
        )  # fmt: skip
    except ChainError as error:
        finder.error("parent-missing", error.message, structure=_LINK)
    except OSError as error:
        finder.add(Severity.UNCHECKED, "parent-refused", f"its parent cannot be opened: {error.strerror}")
    return None


def _hint_without_cid(finder: Finder, text: Descriptor) -> None:
    if not text.parent_hint:
        return
    if "parentcid" in text.header:
        finder.note("parent-hint", f"it names a parent {text.parent_hint!r}; parentCID says none", structure=_LINK)
    else:
        finder.error(
            "parent-hint", f"it names its parent {text.parent_hint!r}, but has no parentCID to know it by",
            structure=_LINK,
        )  # fmt: skip


def _compare(
    finder: Finder, text: Descriptor, parent: Device, seen: tuple[chain.Identity, ...]
) -> tuple[Descriptor | None, tuple[chain.Identity, ...]]:
    """Tell whether ``parent`` is what ``text`` was made from; return its own descriptor."""
    here = chain.identify(parent)
    try:
        chain.check_depth(seen, here, text.path)
    except ChainError as error:
        finder.error("chain-loop", error.message, structure=_LINK)
        return None, seen
    try:
        above = read_descriptor(parent)
        if above is None:
            raise FormatError("a parent has to be a VMDK, and this is none")
        cid = above.cid
    except VmdkitError as error:
        finder.error("parent-unreadable", f"its parent {parent.name} cannot be read: {error.message}", structure=_LINK)
        return None, seen
    if chain.is_half_committed(text, cid):
        finder.add(
            Severity.REPAIRABLE, "half-committed", f"committing it to {parent.name} was interrupted; it reads as "
            "before, other programs may refuse it", structure=_LINK,
            remedy="vmdkit commit goes on with that, vmdkit repair takes it back to an ordinary child",
        )  # fmt: skip
    elif cid != text.parent_cid:
        finder.error(
            "chain-cid", f"its parent {parent.name} has changed since: content ID {cid:08x}, {text.parent_cid:08x} "
            "is due", structure=_LINK,
            remedy="restore the parent as it was; repair --relink, if you know that nothing the guest sees changed",
        )  # fmt: skip
    if above.size != text.size:
        finder.error(
            "chain-capacity", f"its parent {parent.name} has {above.size} bytes, this link {text.size}", structure=_LINK
        )
    return above, (*seen, here)


def check_sidecars(finder: Finder, text: Descriptor, gate: Gate) -> None:
    """Look at what lies beside a descriptor: the file of changed blocks, and lock directories."""
    name = text.change_track_path
    if name:
        try:
            gate.open(name, text.path).close()
        except FileNotFoundError:
            finder.note("ctk", f"the file of changed blocks {name!r} is not there", structure="descriptor")
        except (VmdkitError, OSError):
            finder.note("ctk", f"the file of changed blocks {name!r} cannot be opened", structure="descriptor")
    for holder in locks.holders(text.path):
        if holder.mine:
            continue  # who repairs, checks
        if holder.stale:
            finder.note(
                "lock-stale", f"a lock is left of {holder}, which is no more", structure="lock",
                remedy="vmdkit unlock",
            )  # fmt: skip
        else:
            finder.note("lock-held", f"it is locked by {holder}; what was found may be half-written", structure="lock")
