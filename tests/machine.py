# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A disk's whole life at random, against plain bytes: a hypothesis state machine over every writable subformat.

Requests of any alignment and flag, several writers of one grain, reopening, snapshot, commit, resize, compact. What is
trimmed reads as zero or as before. The operations that were really done are counted, by verb: the first example that
hypothesis tries is the smallest it knows, one and the same operation over and over, and that one is left out.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import vmdkit
from vmdkit import maker
from vmdkit.errors import UnsupportedError
from vmdkit.gate import SameDir
from vmdkit.storage.file import open_file
from vmdkit.units import KIB, MIB
from vmdkit.vmdk.check import check_disk
from vmdkit.vmdk.check_findings import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmdkit.device import Device

SIZE = 2 * MIB + 512
LENGTHS = (1, 511, 512, 4096, 5000, 64 * KIB, 65537, 200 * KIB, MIB)


class Kind(NamedTuple):
    """What is made first: options of the disk, and of a child over it; without one the disk itself is written."""

    base: dict[str, Any]
    child: dict[str, Any] | None = None


def _kinds() -> dict[str, Kind]:
    plain: dict[str, dict[str, Any]] = {
        "sparse": {"subformat": "monolithicSparse"},
        "sparse-v2": {"subformat": "monolithicSparse", "zeroed_grain": True},
        "sparse-8k": {"subformat": "monolithicSparse", "grain": 8 * KIB},
        "split": {"subformat": "twoGbMaxExtentSparse"},
        "split-v2": {"subformat": "twoGbMaxExtentSparse", "zeroed_grain": True},
        "flat": {"subformat": "monolithicFlat"},
        "split-flat": {"subformat": "twoGbMaxExtentFlat"},
        "vmfs": {"subformat": "vmfs"},
        "vmfs-thin": {"subformat": "vmfs", "thin": True},
        "cowd": {"subformat": "vmfsSparse", "grain": 4 * KIB},
        "cowd-512": {"subformat": "vmfsSparse"},
    }
    kinds = {name: Kind(options) for name, options in plain.items()}
    for name in ("sparse", "sparse-v2", "sparse-8k", "split", "split-v2"):
        kinds[f"{name}-child"] = Kind(plain["flat" if "v2" in name else "sparse"], plain[name])
    kinds["cowd-child"] = Kind(plain["vmfs"], plain["cowd"])
    kinds["cowd-512-child"] = Kind(plain["vmfs"], plain["cowd-512"])
    return kinds


KINDS = _kinds()

places = st.tuples(st.integers(0, SIZE - 1), st.sampled_from(LENGTHS), st.sampled_from((1, 512, 4096, 64 * KIB)))
content = st.integers(0, 1 << 30)


class Life(RuleBasedStateMachine):
    """One disk. Subclasses say which (``kind``) and who looks at it in the end (``judge``)."""

    kind: ClassVar[Kind]
    done: ClassVar[Counter[str]]  # operations of all lives of this class
    lives: ClassVar[int] = 0
    judge: ClassVar[Callable[[Path, bytes], None]]

    def __init__(self) -> None:
        super().__init__()
        type(self).lives += 1
        self.idle = type(self).lives == 1
        self.home = Path(tempfile.mkdtemp(prefix="vmdkit-life-"))
        self.path = self.home / "disk.vmdk"
        self.parents: list[Path] = []
        self.model = bytearray(SIZE)
        maker.create(self.path, SIZE, **self.kind.base)
        if self.kind.child is not None:
            with vmdkit.open(self.path, writable=True) as base:
                for number in range(5):
                    data, at = random.Random(number).randbytes(100_000), number * 450_000
                    data = data[: SIZE - at]
                    base.pwrite(data, at)
                    self.model[at : at + len(data)] = data
            self._push(self.home / "child.vmdk", **self.kind.child)
        self.device = self._open()

    def _open(self) -> Device:
        return vmdkit.open(self.path, writable=True)

    def _push(self, path: Path, **options: Any) -> None:
        maker.create(path, parent=self.path, **options)
        self.parents.append(self.path)
        self.path = path

    def _place(self, place: tuple[int, int, int]) -> tuple[int, int]:
        at, count, align = place
        at = min(at, len(self.model) - 1) // align * align
        return at, min(count, len(self.model) - at)

    def _begin(self, verb: str) -> bool:
        """Count an operation; False in the life that is left out."""
        if not self.idle:
            type(self).done[verb] += 1
        return not self.idle

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    @rule(place=places, content=content, fua=st.booleans())
    def pwrite(self, place: tuple[int, int, int], content: int, fua: bool) -> None:
        if not self._begin("pwrite"):
            return
        at, count = self._place(place)
        data = random.Random(content).randbytes(count)
        self.device.pwrite(data, at, fua=fua)
        self.model[at : at + count] = data

    @rule(place=places, no_hole=st.booleans(), fast=st.booleans())
    def zero(self, place: tuple[int, int, int], no_hole: bool, fast: bool) -> None:
        if not self._begin("zero"):
            return
        at, count = self._place(place)
        try:
            self.device.zero(count, at, no_hole=no_hole, fast=fast)
        except UnsupportedError:
            assert fast
            self.device.zero(count, at)  # a part may have been zeroed
        self.model[at : at + count] = bytes(count)

    @rule(place=places)
    def trim(self, place: tuple[int, int, int]) -> None:
        if not self._begin("trim"):
            return
        at, count = self._place(place)
        self.device.trim(count, at)
        now = self.device.pread(count, at)
        for start in range(0, count, 512):
            new, old = now[start : start + 512], self.model[at + start : at + min(start + 512, count)]
            assert new == old or all(one in (0, two) for one, two in zip(new, old, strict=True))
        self.model[at : at + count] = now

    @rule()
    def flush(self) -> None:
        if not self._begin("flush"):
            return
        self.device.flush()

    @rule(place=places)
    def pread(self, place: tuple[int, int, int]) -> None:
        if not self._begin("pread"):
            return
        at, count = self._place(place)
        assert self.device.pread(count, at) == self.model[at : at + count]

    @rule(at=st.integers(0, SIZE // (64 * KIB) - 1), content=content)
    def writers_of_one_grain(self, at: int, content: int) -> None:
        """Three writers take turns in its sectors, all at once."""
        start, count = at * 64 * KIB, min(64 * KIB, len(self.model) - at * 64 * KIB) // 512 * 512
        if count <= 0 or not self._begin("writers of one grain"):
            return
        data = random.Random(content).randbytes(count)
        errors: list[BaseException] = []

        def work(first: int) -> None:
            try:
                for sector in range(first * 512, count, 3 * 512):
                    self.device.pwrite(data[sector : sector + 512], start + sector)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        self.model[start : start + count] = data

    # ── openings, and what is done between them ──────────────────────────────────────────────────────────────

    @rule()
    def reopen(self) -> None:
        if not self._begin("reopen"):
            return
        self.device.close()
        self.device = self._open()
        assert self.device.pread(len(self.model), 0) == self.model

    @precondition(lambda self: len(self.parents) < 3)
    @rule()
    def snapshot(self) -> None:
        if not self._begin("snapshot"):
            return
        self.device.close()
        child = Path(maker.snapshot(self.path))
        self.parents.append(self.path)
        self.path = child
        self.device = self._open()

    @precondition(lambda self: self.parents)
    @rule(delete=st.booleans())
    def commit(self, delete: bool) -> None:
        if not self._begin("commit"):
            return
        self.device.close()
        maker.commit(self.path, delete=delete)
        if delete:
            self.path = self.parents.pop()
        self.device = self._open()

    @precondition(lambda self: not self.parents)
    @rule(sectors=st.integers(1, 2 * SIZE // 512))
    def resize(self, sectors: int) -> None:
        if not self._begin("resize"):
            return
        self.device.close()
        size = sectors * 512
        maker.resize(self.path, size, shrink=True)
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))
        self.device = self._open()

    @rule()
    def compact(self) -> None:
        if not self._begin("compact"):
            return
        self.device.close()
        maker.compact(self.path)
        self.device = self._open()

    def teardown(self) -> None:
        try:
            self.device.close()
            type(self).judge(self.path, bytes(self.model))
        finally:
            shutil.rmtree(self.home)


def ours(path: Path, due: bytes) -> None:
    """Judge by our own reader, through either copy of the tables, and by our check: not even a leak is left."""
    for directory in ("primary", "redundant"):
        try:
            device = vmdkit.open(path, directory=directory)
        except vmdkit.UnsupportedError:
            continue  # this subformat has one copy only
        with device:
            assert device.pread(device.size, 0) == due
            assert sum(run.length for run in device.extents()) == device.size
    gate = SameDir(open_file)
    with open_file(str(path)) as storage:
        findings = check_disk(storage, gate).findings
    assert not [each for each in findings if each.severity is not Severity.NOTE], findings


def live(kind: str, operations: int, judge: Callable[[Path, bytes], None], *, steps: int = 60) -> Counter[str]:
    """Run lives of this kind until ``operations`` have been done; return them by verb. The seeds count from 1.

    VMDKIT_SEED moves them: another number, another set of lives. VMDKIT_SHRINK makes a failing one small, which takes
    minutes.
    """
    phases = (Phase.generate, Phase.shrink) if "VMDKIT_SHRINK" in os.environ else (Phase.generate,)
    first = int(os.environ.get("VMDKIT_SEED", "0")) * 1000 + 1
    done: Counter[str] = Counter()
    for number in range(first, first + 200):
        life: type[Life] = type(
            f"Life{number}", (Life,), {"kind": KINDS[kind], "done": done, "judge": staticmethod(judge)}
        )
        run_state_machine_as_test(
            seed(number)(life),
            settings=settings(
                max_examples=4, stateful_step_count=steps, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), phases=phases, print_blob=False,
            ),
        )  # fmt: skip
        if done.total() >= operations:
            break
    return done
