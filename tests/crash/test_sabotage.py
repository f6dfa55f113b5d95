# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A writer that is broken on purpose must be caught: a judge that cannot condemn proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.torture import own
from vmdkit.torture.fixtures import plans
from vmdkit.torture.promise import CHANGED, LOST, MIXED
from vmdkit.vmdk import descriptor_edit, hosted
from vmdkit.vmdk.allocate import TableWriter
from vmdkit.vmdk.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    Sabotage = Callable[[pytest.MonkeyPatch], None]

PLANS = plans()
_encode = TableWriter._encode
_publish = TableWriter._publish
_allocate = TableWriter.allocate
_free = TableWriter.free


class Skipping:
    """A device that leaves out one of its next barriers."""

    def __init__(self, device: Any, which: int) -> None:
        self._device, self._which, self._count = device, which, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def flush(self) -> None:
        self._count += 1
        if self._count != self._which:
            self._device.flush()


def skip_barrier(which: int) -> Sabotage:
    def publish(self: TableWriter) -> None:
        storage = self._storage
        self._storage = Skipping(storage, which)  # type: ignore[assignment]
        try:
            _publish(self)
        finally:
            self._storage = storage

    return lambda patch: patch.setattr(TableWriter, "_publish", publish)


def tables_before_barrier(patch: pytest.MonkeyPatch) -> None:
    def encode(self: TableWriter, pending: Any) -> Any:
        writes = _encode(self, pending)
        writes.unreferenced += writes.referenced
        writes.referenced = []
        return writes

    patch.setattr(TableWriter, "_encode", encode)


def one_copy_only(patch: pytest.MonkeyPatch) -> None:
    def encode(self: TableWriter, pending: Any) -> Any:
        self._copies, both = self._copies[-1:], self._copies
        try:
            return _encode(self, pending)
        finally:
            self._copies = both

    patch.setattr(TableWriter, "_encode", encode)


def reuse_at_once(patch: pytest.MonkeyPatch) -> None:
    def free(self: TableWriter, first: int, last: int, code: int) -> None:
        _free(self, first, last, code)
        self._space.give_back(self._pending.freed)
        self._pending.freed.clear()

    patch.setattr(TableWriter, "free", free)


def forget_the_parent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TableWriter, "allocate", lambda self, view, offset, fill: _allocate(self, view, offset, None))


def stale_free_sector(patch: pytest.MonkeyPatch) -> None:
    def publish(self: TableWriter) -> None:
        self._before_barrier = None
        _publish(self)

    patch.setattr(TableWriter, "_publish", publish)


def no_unclean_flag(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hosted.HostedExtent, "mark_unclean", lambda self, unclean: None)


def no_content_id(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(descriptor_edit, "write_changed", lambda storage, at, old, new: None)


def late_content_id(patch: pytest.MonkeyPatch) -> None:
    """Leave out the barrier behind the new content ID."""
    begin = Session._begin

    def sabotaged(self: Session) -> None:
        storage = self._storage
        self._storage = Skipping(storage, 1)  # type: ignore[assignment]
        try:
            begin(self)
        finally:
            self._storage = storage

    patch.setattr(Session, "_begin", sabotaged)


def flush_first_extent_only(patch: pytest.MonkeyPatch) -> None:
    publish = Session._publish

    def sabotaged(self: Session) -> None:
        self._extents, extents = self._extents[:1], self._extents
        try:
            publish(self)
        finally:
            self._extents = extents

    patch.setattr(Session, "_publish", sabotaged)


def clean_before_published(patch: pytest.MonkeyPatch) -> None:
    close = Session.close

    def sabotaged(self: Session) -> None:
        for extent in self._extents:
            extent.mark_unclean(unclean=False)
        close(self)

    patch.setattr(Session, "close", sabotaged)


CASES: dict[str, tuple[Sabotage, str, set[str]]] = {
    "tables before the barrier": (tables_before_barrier, "sparse-child", {CHANGED}),
    "tables before the barrier, no parent": (tables_before_barrier, "sparse", {CHANGED, LOST, MIXED}),
    "tables before the barrier, COWD": (tables_before_barrier, "cowd-child", {CHANGED, LOST, own.UNREADABLE}),
    "no barrier before the tables": (skip_barrier(1), "sparse-64k-child", {CHANGED}),
    "no barrier after the tables": (skip_barrier(2), "sparse-v2-child", {LOST}),
    "one copy only": (one_copy_only, "sparse", {LOST}),
    "freed grains reused at once": (reuse_at_once, "sparse-v2", {LOST, CHANGED, MIXED, own.UNREADABLE}),
    "new grains without the parent's bytes": (forget_the_parent, "split-child", {CHANGED, LOST, own.RUNNING}),
    "freeSector not kept": (stale_free_sector, "cowd", {own.UNREADABLE}),
    "no unclean flag": (no_unclean_flag, "sparse", {own.SILENT}),
    "no new content ID": (no_content_id, "flat", {own.SILENT}),
    "content ID without a barrier": (late_content_id, "split", {own.SILENT}),
    "one extent flushed": (flush_first_extent_only, "split-flat", {LOST}),
    "one sparse extent flushed": (flush_first_extent_only, "split", {LOST}),
    "marked clean too early": (clean_before_published, "sparse", {own.REFUSED}),
}


@pytest.mark.parametrize("case", CASES)
def test_is_caught(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage, plan, kinds = CASES[case]
    sabotage(monkeypatch)
    seen: set[str] = set()
    for seed in range(1, 9):
        effort = own.Effort(requests=24, recover=0.2 if kinds & {own.REFUSED} else 0, again=0)
        result = own.torture(PLANS[plan], seed, states=60, effort=effort)
        seen |= set(result.kinds)
        if seen & kinds:
            break
    assert seen & kinds, seen
