# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs check, repair and unlock as a user types them: what they print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import images
from images.damage import DAMAGE

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmdkit.cli.main", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"),
    [("descriptor-area-tight", 0), ("leaked-tail-grain", 3), ("rgt-swapped", 2), ("cowd-version", 63), ("name-fd", 1)],
)
def test_check_ends_with_the_verdict(name: str, code: int, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    done = run("check", image.path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1].startswith(f"{image.path}: ")
    known = json.loads(run("check", "--json", image.path).stdout)
    assert known["exit"] == code
    for finding in known["findings"]:
        assert set(finding) == {"severity", "code", "structure", "file", "offset", "count", "text", "remedy"}
    assert run("check", "-q", image.path).stdout == ""


def test_check_could_not_run(tmp_path: Path) -> None:
    assert run("check", tmp_path / "nothing").returncode == 1
    assert run("check", "--nonsense", "x").returncode == 1
    (tmp_path / "raw").write_bytes(bytes(512))
    assert run("check", "--raw", tmp_path / "raw").returncode == 63


def test_plan_then_repair_then_put_back(tmp_path: Path) -> None:
    image = DAMAGE["gte-duplicate"].build(tmp_path)
    before = image.path.read_bytes()
    planned = run("repair", "--plan", image.path)
    assert "would be afterwards:" in planned.stdout
    assert "1. " in planned.stdout
    assert image.path.read_bytes() == before
    done = run("repair", image.path)
    assert done.returncode == 3  # the second grain of before is nobody's now
    assert image.path.read_bytes() != before
    undo = f"{image.path}.undo"
    assert undo in done.stdout
    assert run("repair", "--revert", undo).returncode == 0
    assert image.path.read_bytes() == before
    known = json.loads(run("repair", "--json", "--no-undo", image.path).stdout)
    assert known["steps"][0]["code"] == "copy"
    assert known["after"]["exit"] == 3
    assert known["undo"] is None


def test_nothing_safe_to_do(tmp_path: Path) -> None:
    image = DAMAGE["gte-beyond-eof"].build(tmp_path)
    done = run("repair", image.path)
    assert done.returncode == 2
    assert "nothing to do that is safe" in done.stdout
    assert "--discard-damaged" in done.stdout
    done = run("repair", "--discard-damaged", image.path)
    assert "risk: " in done.stdout


def test_rebuild_a_descriptor(tmp_path: Path) -> None:
    image = images.vmfs(tmp_path, "64k:A 64k:-")
    image.path.unlink()
    assert run("check", image.parts[0].path).returncode == 2
    assert run("repair", "--rebuild-descriptor", image.parts[0].path).returncode == 0
    assert run("check", image.path).returncode == 0


def test_unlock(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A")
    assert "no lock was left" in run("unlock", image.path).stdout
    lock = tmp_path / "disk.vmdk.lck"
    lock.mkdir()
    (lock / "M00001.lck").write_bytes(b"uuid=00-11 77-5(vmware-vmx) 1 X 5 lc=1".ljust(512, b"\0"))
    done = run("unlock", image.path)
    assert done.returncode == 1
    assert "vmware-vmx (process 77) on machine uuid=00-11" in done.stderr
    assert run("unlock", "--force", image.path).returncode == 0
    assert not lock.exists()
