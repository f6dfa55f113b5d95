# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Locks: the directory protocol, who is named, what is stale, what is never broken. Expected bytes are packed here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from vmdkit.errors import UsageError
from vmdkit.vmdk import lockfile, locks
from vmdkit.vmdk.locks import LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from images import Image

HOLD = """
import sys, time, vmdkit
disk = vmdkit.open(sys.argv[1], writable=True)
print("open", flush=True)
sys.stdin.readline()
disk.close()
"""
OTHER = "uuid=56-4d-00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd"


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 0.15)


@pytest.fixture
def disk(tmp_path: Path) -> Image:
    return images.monolithic_sparse(tmp_path, "64k:A 64k:-")


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a disk open for writing."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def lck(path: Path) -> Path:
    return path.with_name(path.name + ".lck")


def put(path: Path, text: str, name: str = "M00007.lck", size: int = 512) -> Path:
    """Put a member into the lock directory of a disk."""
    lck(path).mkdir(exist_ok=True)
    member = lck(path) / name
    member.write_bytes(text.encode().ljust(size, b"\0"))
    return member


def dead() -> int:
    """Return the number of a process that was."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_member_is_512_bytes_of_six_words(disk: Image) -> None:
    with vmdkit.open(disk.path, writable=True):
        (name,) = os.listdir(lck(disk.path))
        raw = (lck(disk.path) / name).read_bytes()
    assert re.fullmatch(r"M\d{5}\.lck", name)
    assert len(raw) == 512
    text = raw.rstrip(b"\0").decode("ascii")
    machine, execution, number, kind, began, place = text.split(" ")
    assert re.fullmatch(r"uuid=([0-9a-f]{2}-){15}[0-9a-f]{2}", machine)
    with open(f"/proc/{os.getpid()}/stat", encoding="ascii") as file:
        started = file.read().rpartition(")")[2].split()[19]
    assert re.fullmatch(rf"{os.getpid()}-{started}\(\S+\)", execution)
    assert (number, kind, began) == ("1", "X", started)
    value = 5381
    for byte in os.fsencode(os.path.realpath(disk.path)) + b".lck":
        value = (value * 33 + byte) % (1 << 32)
    assert place == f"lc={value}"


def test_nothing_is_left_of_a_lock(disk: Image, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    with vmdkit.open(disk.path, writable=True):
        assert lck(disk.path).is_dir()
    assert sorted(os.listdir(tmp_path)) == before


def test_each_file_is_locked_and_parents_are_shared(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:A 64k:B", name="base")
    child = images.split_sparse(tmp_path, "64k:- 64k:C", split=64 << 10, name="child", parent=base)
    with vmdkit.open(child.path, writable=True):
        kinds = {
            path.name: next(path.iterdir()).read_bytes().split(b" ")[3] for path in tmp_path.iterdir() if path.is_dir()
        }
    assert kinds == {
        "child.vmdk.lck": b"X",
        "child-s001.vmdk.lck": b"X",
        "child-s002.vmdk.lck": b"X",
        "base.vmdk.lck": b"S",
        "base-flat.vmdk.lck": b"S",
    }


def test_reading_takes_no_lock(disk: Image) -> None:
    with vmdkit.open(disk.path):
        assert not lck(disk.path).exists()


def test_two_children_of_one_parent_are_written_at_once(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:A", name="base")
    one, two = (images.monolithic_sparse(tmp_path, "64k:-", name=name, parent=base) for name in ("one", "two"))
    with vmdkit.open(one.path, writable=True), vmdkit.open(two.path, writable=True), pytest.raises(LockedError):
        vmdkit.open(base.path, writable=True, with_children=True)
    vmdkit.open(base.path, writable=True, with_children=True).close()


def test_failure_to_open_leaves_no_lock(disk: Image) -> None:
    disk.poke_entry(0, 0x7FFFFF00)
    with pytest.raises(vmdkit.CorruptError):
        vmdkit.open(disk.path, writable=True)
    assert not lck(disk.path).exists()
    disk.poke_entry(0, 128)
    vmdkit.open(disk.path, writable=True).close()


# ── a second writer ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_writer_is_told_who_has_it(disk: Image) -> None:
    with held(disk.path) as process:
        with pytest.raises(LockedError) as caught:
            vmdkit.open(disk.path, writable=True)
        assert f"(process {process.pid}) on this machine, {os.uname().nodename}" in str(caught.value)
        assert "python" in str(caught.value)
        with vmdkit.open(disk.path) as reader:
            assert "it is being written by" in str(reader.doubts[0])  # type: ignore[attr-defined]
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(10)
    vmdkit.open(disk.path, writable=True).close()


def test_a_second_opening_in_one_process(disk: Image) -> None:
    with vmdkit.open(disk.path, writable=True), pytest.raises(LockedError, match="this very process"):
        vmdkit.open(disk.path, writable=True)


def test_waiting_is_worth_it(disk: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 20.0)
    with held(disk.path) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        vmdkit.open(disk.path, writable=True).close()


def test_byte_locks_alone_are_enough(disk: Image) -> None:
    with vmdkit.open(disk.path, writable=True):
        for member in lck(disk.path).iterdir():
            member.unlink()
        lck(disk.path).rmdir()
        with pytest.raises(LockedError, match="this very process"):
            vmdkit.open(disk.path, writable=True)


def test_raw_bytes_are_locked_by_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(4096))
    with vmdkit.open(raw, raw=True, writable=True), pytest.raises(LockedError):
        vmdkit.open(raw, raw=True, writable=True)
    assert os.listdir(tmp_path) == ["disk.raw"]


# ── stale, and what only looks so ────────────────────────────────────────────────────────────────────────────────


def test_what_a_killed_writer_leaves_is_taken_away(disk: Image) -> None:
    with held(disk.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert lck(disk.path).is_dir()
    vmdkit.open(disk.path, writable=True).close()
    assert not lck(disk.path).exists()


def test_a_process_with_the_number_of_a_dead_one_is_not_it(disk: Image) -> None:
    put(disk.path, f"{lockfile.machine_id()} {os.getpid()}-1(other) 3 X 1 lc=0")
    vmdkit.open(disk.path, writable=True).close()


@pytest.mark.parametrize(
    "text",
    [
        f"{OTHER} 1-1(vmware-vmx) 3 X 1 lc=0",
        "AbCdEfGhIjKlMnOp 123-0 3 X 0",
        f"{lockfile.machine_id()} not-understood 3 X 1 lc=0",
        "rubbish",
        "",
    ],
)
def test_what_is_not_known_to_be_dead_is_never_broken(text: str, disk: Image) -> None:
    member = put(disk.path, text)
    with pytest.raises(LockedError, match="it is in use by"):
        vmdkit.open(disk.path, writable=True)
    assert list(lck(disk.path).iterdir()) == [member]


def test_a_shared_lock_of_another_machine_bars_writing_only(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:A", name="base")
    child = images.monolithic_sparse(tmp_path, "64k:-", name="child", parent=base)
    put(base.path, f"{OTHER} 1-1(vmware-vmx) 3 S 1 lc=0")
    vmdkit.open(child.path, writable=True).close()
    with pytest.raises(LockedError):
        vmdkit.open(base.path, writable=True, with_children=True)


def test_somebody_who_is_entering_is_waited_for(disk: Image) -> None:
    entering = lck(disk.path) / "D00001.lck"
    entering.mkdir(parents=True)
    with pytest.raises(LockedError, match="just opening"):
        vmdkit.open(disk.path, writable=True)
    os.utime(entering, (time.time() - 3600,) * 2)
    vmdkit.open(disk.path, writable=True).close()


def test_a_plain_file_is_the_lock_of_an_esx_host(disk: Image) -> None:
    lck(disk.path).write_bytes(b"")
    with pytest.raises(LockedError, match="ESX"):
        vmdkit.open(disk.path, writable=True)
    with pytest.raises(LockedError):
        locks.unlock(str(disk.path))
    locks.unlock(str(disk.path), force=True)
    vmdkit.open(disk.path, writable=True).close()


def test_a_forked_process_does_not_give_up_its_parents_lock(disk: Image) -> None:
    with vmdkit.open(disk.path, writable=True):
        child = os.fork()
        if not child:
            for one in list(locks._held):
                one.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(list(lck(disk.path).iterdir())) == 1
        with pytest.raises(LockedError):
            vmdkit.open(disk.path, writable=True)


def test_an_ended_program_leaves_no_lock(disk: Image) -> None:
    code = "import sys, vmdkit; disk = vmdkit.open(sys.argv[1], writable=True); sys.exit()"
    subprocess.run([sys.executable, "-c", code, str(disk.path)], check=True)
    assert not lck(disk.path).exists()


def test_many_writers_at_once(disk: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each adds one to a counter in the disk; a lock that two have at once would lose some."""
    code = """
import sys, vmdkit
from vmdkit.vmdk import locks
locks.WAIT = 60
for _ in range(4):
    with vmdkit.open(sys.argv[1], writable=True) as disk:
        disk.pwrite((int.from_bytes(disk.pread(8, 0), "little") + 1).to_bytes(8, "little"), 0)
"""
    with vmdkit.open(disk.path, writable=True) as opened:
        opened.pwrite(bytes(8), 0)
    running = [subprocess.Popen([sys.executable, "-c", code, str(disk.path)]) for _ in range(4)]
    assert [process.wait(100) for process in running] == [0] * 4
    with vmdkit.open(disk.path) as opened:
        assert int.from_bytes(opened.pread(8, 0), "little") == 16


# ── unlock ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unlock_removes_what_is_stale_and_nothing_else(disk: Image) -> None:
    put(disk.path, f"{lockfile.machine_id()} {dead()}-5(vmdkit) 3 X 5 lc=0")
    assert len(locks.unlock(str(disk.path))) == 1
    assert not lck(disk.path).exists()
    put(disk.path, f"{OTHER} 1-1(vmware-vmx) 3 X 1 lc=0")
    with pytest.raises(LockedError, match="--force"):
        locks.unlock(str(disk.path))
    assert locks.unlock(str(disk.path), force=True) == [f"the lock of vmware-vmx (process 1) on machine {OTHER}"]
    assert locks.unlock(str(disk.path)) == []


def test_unlock_never_takes_it_from_a_living_process(disk: Image) -> None:
    with held(disk.path), pytest.raises(LockedError, match="end it first"):
        locks.unlock(str(disk.path), force=True)


# ── children ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_with_children_is_not_written_unless_told(tmp_path: Path) -> None:
    base = images.monolithic_flat(tmp_path, "64k:A", name="base")
    images.monolithic_sparse(tmp_path, "64k:-", name="child", parent=base)
    with pytest.raises(UsageError, match=r"would break child\.vmdk"):
        vmdkit.open(base.path, writable=True)
    assert sorted(os.listdir(tmp_path)) == ["base-flat.vmdk", "base.vmdk", "child.vmdk"]
    with vmdkit.open(base.path, writable=True, with_children=True) as disk:
        disk.pwrite(b"x", 0)
    vmdkit.open(base.path, writable=True).close()  # the child has lost its parent: it is none any more
