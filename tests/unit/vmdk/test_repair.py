# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Repair: what it mends, that nothing reads otherwise, that it can be cut off anywhere, undone, and done twice."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Hosted, Stream
from images.damage import DAMAGE
from vmdkit.checker import check
from vmdkit.device import BlockSize, Can, Device
from vmdkit.errors import FormatError, UnsupportedError, UsageError
from vmdkit.repairer import rebuild_descriptor, repair, repair_onto, revert
from vmdkit.vmdk import locks
from vmdkit.vmdk.check_cowd import CowdCheck
from vmdkit.vmdk.check_hosted import HostedCheck
from vmdkit.vmdk.locks import LockedError
from vmdkit.vmdk.repair_cowd import mend_cowd
from vmdkit.vmdk.repair_hosted import mend_hosted
from vmdkit.vmdk.repair_steps import Consent, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from images import Image

STEP = 16 << 10
LAYOUT = "64k:A 64k:b 64k:- 64k:C 32M:- 64k:D"
# damage: (exit code after repair, steps). Nothing reads otherwise afterwards.
MENDED = {
    "rgt-lacks-grain": (0, ["gt"]),
    "rgt-garbage": (0, ["gt"]),
    "gte-duplicate": (3, ["copy"]),
    "gde-primary-broken": (0, ["gde"]),
    "unclean": (0, ["unclean"]),
    "newline-bytes": (0, ["header"]),
    "overhead-huge": (0, ["header"]),
    "stream-no-eos": (0, ["eos"]),
    "cowd-free-sector-low": (0, ["free"]),
    "cowd-unclean": (0, ["unclean"]),
}
LEFT_ALONE = (
    "rgt-swapped", "gte-beyond-eof", "gte-in-header", "gde-in-header", "gde-twice", "tail-lost", "text-mode",
    "gte-1-flag-lost", "capacity-0", "stream-checksum", "stream-no-footer", "cowd-gte-beyond-eof", "sesparse-type-4",
    "parent-cid", "extent-short", "descriptor-beyond-eof", "grain-3", "gd-offset-0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 0.1)


def content(path: Path) -> list[bytes | None]:
    """Return what a disk holds, a step at a time; None where it cannot be read."""
    out: list[bytes | None] = []
    try:
        disk = vmdkit.open(path)
    except vmdkit.VmdkitError:
        return out
    with disk:
        for at in range(0, disk.size, STEP):
            try:
                out.append(bytes(disk.pread(min(STEP, disk.size - at), at)))
            except vmdkit.VmdkitError:
                out.append(None)
    return out


def is_kept(before: list[bytes | None], after: list[bytes | None]) -> bool:
    """Tell whether everything that could be read reads as it did."""
    return not before or all(one in (None, other) for one, other in zip(before, after, strict=True))


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.mark.parametrize("name", MENDED)
def test_what_is_safe_is_mended(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    before, raw = content(image.path), files(tmp_path)
    plan = repair(image.path, plan=True)
    assert files(tmp_path) == raw
    assert not any(step.risk for step in plan.steps)
    done = repair(image.path)
    assert (done.report.exit_code, [step.code for step in done.steps]) == MENDED[name]
    assert [(step.code, step.text) for step in plan.steps] == [(step.code, step.text) for step in done.steps]
    assert plan.report.exit_code == done.report.exit_code == check(image.path).exit_code
    assert is_kept(before, content(image.path))
    again = repair(image.path)
    assert again.steps == []
    assert again.undo == ""
    assert done.undo == f"{image.path}.undo"
    assert revert(done.undo) == [str(file) for file in image.files if str(file) in revert(done.undo)]
    Path(done.undo).unlink()
    assert files(tmp_path) == raw


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_takes_a_decision_is_left_alone(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    raw = files(tmp_path)
    with suppress(UnsupportedError):
        done = repair(image.path)
        assert done.report.exit_code == 2
        assert done.steps == []
    assert files(tmp_path) == raw


def test_a_grain_that_only_the_redundant_copy_has_is_taken(tmp_path: Path) -> None:
    """As after a crash of a writer that writes it first: the data were durable before."""
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    image.poke("gt[0]", 0, 1)
    done = repair(image.path)
    assert done.report.exit_code == 0
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


@pytest.mark.parametrize("prefer", ["primary", "redundant"])
def test_two_sound_copies_take_a_decision(prefer: str, tmp_path: Path) -> None:
    image = DAMAGE["rgt-swapped"].build(tmp_path)
    with vmdkit.open(image.path, directory=prefer) as disk:
        due = disk.pread(disk.size, 0)
    done = repair(image.path, consent=Consent(prefer=prefer))
    assert done.report.exit_code == 0
    assert done.steps[0].risk
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == due


@pytest.mark.parametrize("name", ["gte-beyond-eof", "gte-in-header", "gte-1-without-flag", "cowd-gte-beyond-eof"])
def test_damaged_entries_are_given_up_with_consent(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    before = content(image.path)
    assert None in before
    done = repair(image.path, consent=Consent(discard_damaged=True))
    assert done.report.exit_code in (0, 3)
    assert [step.risk != "" for step in done.steps] == [True]
    after = content(image.path)
    assert is_kept(before, after)
    assert None not in after


def test_a_child_is_linked_again_with_consent(tmp_path: Path) -> None:
    image = DAMAGE["parent-cid"].build(tmp_path)
    with pytest.raises(vmdkit.ChainError):
        vmdkit.open(image.path)
    assert repair(image.path).steps == []
    done = repair(image.path, consent=Consent(relink=True))
    assert done.report.exit_code == 0
    assert "sees the new bytes" in done.steps[0].risk
    vmdkit.open(image.path).close()


def test_nothing_is_appended_while_entries_lead_behind_the_end(tmp_path: Path) -> None:
    """They would then lead to what is appended."""
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    image.poke_entry(1, image.peek(*image.entry(0)))
    image.poke_entry(3, image.path.stat().st_size // 512 + 128)
    raw = files(tmp_path)
    assert repair(image.path).steps == []
    assert files(tmp_path) == raw
    assert repair(image.path, consent=Consent(discard_damaged=True)).report.exit_code in (0, 3)


def test_a_missing_table_is_made_again_where_it_belongs(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    whole = image.path.read_bytes()
    image.poke("gd", 0, 1)
    image.poke("gt[1]", bytes(2048))
    assert repair(image.path).report.exit_code == 0
    assert image.path.read_bytes() == whole


def test_a_disk_that_is_open_is_not_repaired(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    with vmdkit.open(image.path, writable=True), pytest.raises(LockedError):
        repair(image.path)


# ── the power goes ───────────────────────────────────────────────────────────────────────────────────────────────


class Recorder(Device):
    """A file in memory that remembers what was written, and when that had to be durable."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data), name="memory.vmdk", can=Can.WRITE | Can.FLUSH | Can.RESIZE, block_size=BlockSize())
        self.data = bytearray(data)
        self.log: list[tuple[int, bytes] | int | None] = []  # a write, a new size, or a barrier

    def _pread_into(self, view: memoryview, offset: int) -> None:
        view[:] = memoryview(self.data)[offset : offset + len(view)]

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.data[offset : offset + len(view)] = view
        self.log.append((offset, bytes(view)))

    def _resize(self, size: int, *, reserve: bool) -> None:
        self.data[size:] = bytes(max(0, size - len(self.data)))
        self.log.append(size)

    def _flush(self) -> None:
        self.log.append(None)


def states(data: bytes | bytearray, log: list[tuple[int, bytes] | int | None]) -> list[bytes]:
    """Return what a power cut can leave: every prefix, and each unflushed write by itself, whole sectors torn."""
    out, sure = [], bytearray(data)
    epochs: list[list[tuple[int, bytes] | int]] = [[]]
    for entry in log:
        if entry is None:
            epochs.append([])
        else:
            epochs[-1].append(entry)
    for epoch in epochs:
        prefix = bytearray(sure)
        for entry in epoch:
            alone = bytearray(sure)
            for state in (alone, prefix):
                _apply(state, entry)
            out += [bytes(alone), bytes(prefix)]
            if not isinstance(entry, int) and len(entry[1]) > 512:
                torn = bytearray(sure)
                _apply(torn, (entry[0], entry[1][:512]))
                out.append(bytes(torn))
        sure = prefix
    return out


def _apply(state: bytearray, entry: tuple[int, bytes] | int) -> None:
    if isinstance(entry, int):
        state[entry:] = bytes(max(0, entry - len(state)))
        return
    offset, data = entry
    state.extend(bytes(max(0, offset + len(data) - len(state))))
    state[offset : offset + len(data)] = data


def _two_copies(image: Image) -> None:
    image.poke("gt[0]", 0, 1)
    image.poke("rgt[0]", 0, 0)
    image.poke("rgt[0]", bytes([255, 255, 255, 255]) * 40 + bytes(352) + bytes([255] * 64))


def _many_shared(image: Image) -> None:
    for grain in (1, 3):
        image.poke_entry(grain, image.peek(*image.entry(0)))


def _everything(image: Image) -> None:
    _many_shared(image)
    image.poke("gd", 0x7FFFFFF0, 1)
    image.poke("rgt[0]", 0, 0)
    image.poke("header.uncleanShutdown", 1)


CUT: dict[str, tuple[Callable[[Path], Image], Callable[[Image], None]]] = {
    "two-copies": (lambda path: images.monolithic_sparse(path, LAYOUT, Hosted(grain=4096)), _two_copies),
    "shared": (lambda path: images.monolithic_sparse(path, LAYOUT), _many_shared),
    "everything": (lambda path: images.monolithic_sparse(path, LAYOUT), _everything),
    "cowd": (
        lambda path: images.vmfs_sparse(path, "4k:A 4k:- 4k:B 2M:- 4k:C"),
        lambda image: (
            image.poke_entry(1, image.peek(*image.entry(0))),  # type: ignore[func-returns-value]
            image.poke("header.freeSector", 9),  # type: ignore[func-returns-value]
            None,
        )[-1],
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_repair_may_be_cut_off_anywhere(name: str, tmp_path: Path) -> None:
    make, damage = CUT[name]
    image = make(tmp_path)
    damage(image)
    part = image.parts[0].path
    mend = mend_cowd if name == "cowd" else mend_hosted
    look = CowdCheck if name == "cowd" else HostedCheck
    before = content(image.path)
    device = Recorder(part.read_bytes())
    mend(device, Steps())
    part.write_bytes(device.data)
    due = content(image.path)
    assert is_kept(before, due)
    assert look(device).run().is_sound()
    seen: set[bytes] = set()
    for state in states(Recorder(image_bytes := _damaged(make, damage, tmp_path / "again")).data, device.log):
        if state in seen:
            continue
        seen.add(state)
        part.write_bytes(state)
        assert is_kept(before, content(image.path))
        again = Recorder(state)
        mend(again, Steps())
        assert look(again).run().is_sound()
        part.write_bytes(again.data)
        assert content(image.path) == due
    assert len(seen) > 2
    assert image_bytes


def _damaged(make: Callable[[Path], Image], damage: Callable[[Image], None], path: Path) -> bytes:
    image = make(path)
    damage(image)
    return image.parts[0].path.read_bytes()


# ── opening after a crash ────────────────────────────────────────────────────────────────────────────────────────


def test_opening_for_writing_mends_what_a_crash_leaves(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT, Hosted(unclean=True))
    image.poke("gt[0]", 0, 1)
    with vmdkit.open(image.path, writable=True) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)
        disk.pwrite(b"x", 0)
    assert check(image.path).exit_code == 0


def test_opening_a_cowd_after_a_crash_sets_its_free_sector(tmp_path: Path) -> None:
    image = images.vmfs_sparse(tmp_path, "4k:A 4k:- 4k:B 20M:- 4k:C")
    image.poke("header.freeSector", 9)
    image.poke("header.uncleanShutdown", 1)
    with vmdkit.open(image.path, writable=True) as disk:
        disk.pwrite(b"N" * 512, 5000)
        assert disk.pread(4096, 0) == image.model.pread(4096, 0)
    assert check(image.path).exit_code == 0


@pytest.mark.parametrize("name", ["gte-beyond-eof", "rgt-swapped-far", "cowd-gte-beyond-eof", "gde-twice"])
def test_opening_after_a_crash_refuses_what_takes_a_decision(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name.removesuffix("-far")].build(tmp_path)
    if name == "rgt-swapped-far":  # another grain, which an entry of the primary has already
        image.poke("gt[0]", 0, 1)
        image.poke("rgt[0]", image.peek("gt[0]", 0), 1)
    image.poke("header.uncleanShutdown", 1)
    raw = image.parts[0].path.read_bytes()
    with pytest.raises(vmdkit.CorruptError, match="vmdkit repair --plan"):
        vmdkit.open(image.path, writable=True)
    assert image.parts[0].path.read_bytes() == raw
    vmdkit.open(image.path).close()


# ── onto, salvage ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repaired_copy_leaves_the_original(tmp_path: Path) -> None:
    image = DAMAGE["gte-duplicate"].build(tmp_path / "old")
    raw = files(tmp_path / "old")
    done = repair_onto(image.path, tmp_path / "new.vmdk")
    assert done.report.exit_code == 3
    assert files(tmp_path / "old") == raw
    assert content(tmp_path / "new.vmdk") == content(image.path)
    assert sorted(os.listdir(tmp_path)) == ["new.vmdk", "old"]
    with pytest.raises(UsageError, match="it exists"):
        repair_onto(image.path, tmp_path / "new.vmdk")


def test_a_repaired_copy_of_several_files(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path / "old", "64k:A 64k:B", split=64 << 10)
    image.poke("1/rgt[0]", 0, 0)
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match="another directory"):
        repair_onto(image.path, tmp_path / "old/copy.vmdk")
    done = repair_onto(image.path, tmp_path / "new/copy.vmdk")
    assert done.report.exit_code == 0
    assert sorted(os.listdir(tmp_path / "new")) == ["copy.vmdk", "disk-s001.vmdk", "disk-s002.vmdk"]
    assert check(image.path).exit_code == 2
    assert content(tmp_path / "new/copy.vmdk") == content(image.path)


@pytest.mark.parametrize("target", ["new.vmdk", "new.raw"])
@pytest.mark.parametrize("end", ["no-footer", "no-directory", "mid-grain"])
def test_a_cut_stream_is_salvaged(end: str, target: str, tmp_path: Path) -> None:
    knobs = Stream() if end == "mid-grain" else Stream(end=end)
    image = images.stream_optimized(tmp_path, LAYOUT, knobs)
    if end == "mid-grain":
        os.truncate(image.path, image.fields["grain[3].data"].offset + 20)
    assert check(image.path).exit_code == 2
    with vmdkit.open(image.path, salvage=True) as disk:
        due = disk.pread(disk.size, 0)
    done = repair_onto(image.path, tmp_path / target)
    assert "reads as zero" in done.steps[0].risk
    with vmdkit.open(tmp_path / target, raw=target.endswith("raw")) as disk:
        assert disk.pread(disk.size, 0) == due
    assert due[: 128 << 10] == image.model.pread(128 << 10, 0)


# ── descriptors ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["flat", "vmfs", "split-flat", "split"])
def test_a_descriptor_is_made_again(kind: str, tmp_path: Path) -> None:
    image = images.SUBFORMATS[kind].build(tmp_path, "256k:A 256k:B 256k:-")
    image.path.unlink()
    wanted = "monolithicFlat" if kind == "flat" else ""
    plan = rebuild_descriptor(image.parts[0].path, plan=True, flat_type=wanted)
    assert not image.path.exists()
    assert plan.steps[0].path == str(image.path)
    done = rebuild_descriptor(image.parts[0].path, flat_type=wanted)
    assert done.report.exit_code == 0
    assert done.report.codes() == set()
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)
        assert disk.facts()["subformat"] == image.subformat  # type: ignore[attr-defined]
    text = image.path.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        rebuild_descriptor(image.parts[0].path)
    assert image.path.read_bytes() == text


@pytest.mark.parametrize("kind", ["vmfsSparse", "seSparse"])
def test_the_descriptor_of_a_delta_takes_a_parent(kind: str, tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("vmfs", "64k:A 64k:B"), (kind, "64k:- 64k:C")])
    image.path.unlink()
    with pytest.raises(UsageError, match="--parent"):
        rebuild_descriptor(image.parts[0].path)
    assert image.parent is not None
    done = rebuild_descriptor(image.parts[0].path, parent=str(image.parent.path))
    assert done.report.exit_code == 0
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_a_child_tells_the_content_id_of_its_parent(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("flat", "64k:A 64k:B"), ("hosted", "64k:- 64k:C")])
    assert image.parent is not None
    image.parent.path.unlink()
    done = rebuild_descriptor(image.parent.parts[0].path, flat_type="monolithicFlat")
    assert "its child" in done.steps[0].text
    with vmdkit.open(image.path) as disk:
        assert disk.pread(disk.size, 0) == image.model.pread(image.size, 0)


def test_a_descriptor_is_not_invented(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, "64k:A 64k:B 64k:C", split=64 << 10)
    image.path.unlink()
    image.parts[1].path.unlink()
    with pytest.raises(FormatError, match="piece 2 of 3 is not there"):
        rebuild_descriptor(image.parts[0].path)
    odd = tmp_path / "x-flat.vmdk"
    odd.write_bytes(bytes(1000))
    with pytest.raises(UnsupportedError, match="no whole sectors"):
        rebuild_descriptor(odd)
    with pytest.raises(UsageError, match="extent file"):
        rebuild_descriptor(tmp_path / "x.vmdk")
