# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What qemu-img check calls clean and is not, we find: both verdicts on every damage, side by side."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import images
from images.damage import DAMAGE, READS
from require import golden, requires
from vmdkit.checker import check
from vmdkit.repairer import repair

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = {"parent-itself", "parent-loop"}  # qemu-img check never comes back from these
NOT_OPENED = {"extent-fifo", "sesparse-capacity"}  # qemu waits for somebody to write; takes seconds
# Harmless, and called so by us; qemu refuses, having looked for the footer at the very end only.
MISSED_BY_QEMU = (
    "rgt-lacks-grain", "rgt-swapped", "gte-duplicate", "gte-in-header", "gte-unaligned", "gte-1-without-flag",
    "leaked-tail-grain", "stream-checksum", "stream-grains-swapped", "cowd-gte-in-header", "cowd-free-sector-low",
    "newline-bytes", "parent-cid", "extent-short",
)  # fmt: skip
QEMU_ALONE = {"stream-trailing-zeros"}


def qemu(path: Path) -> int:
    done = subprocess.run(
        ["qemu-img", "check", "-q", "-f", "vmdk", str(path)], capture_output=True, check=False, timeout=60
    )
    return done.returncode


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Return the exit codes (ours, qemu's) for every damage."""
    requires("qemu-img>=7")
    home = tmp_path_factory.mktemp("damage")
    paths = {}
    for name in DAMAGE:
        if name not in ENDLESS | NOT_OPENED:
            (home / name).mkdir()
            paths[name] = DAMAGE[name].build(home / name).path
    with ThreadPoolExecutor(2) as pool:
        theirs = dict(zip(paths, pool.map(qemu, paths.values()), strict=True))
    return {name: (check(path).exit_code, theirs[name]) for name, path in paths.items()}


def test_what_qemu_finds_we_find(verdicts: dict[str, tuple[int, int]]) -> None:
    missed = {name for name, (ours, theirs) in verdicts.items() if theirs and not ours}
    # What we read all the same is no damage to us: notes say what others make of it.
    assert {name for name in missed if DAMAGE[name].outcome not in (READS, "any", "careful")} == set()
    assert missed <= QEMU_ALONE | {name for name in DAMAGE if name.startswith(("text-", "overhead"))}


def test_what_qemu_calls_clean_and_is_not(verdicts: dict[str, tuple[int, int]]) -> None:
    found = sorted(name for name, (ours, theirs) in verdicts.items() if ours and not theirs)
    assert len(found) > 60
    for name in MISSED_BY_QEMU:
        assert name in found


@pytest.mark.parametrize("name", ["rgt-lacks-grain", "gte-duplicate", "gde-primary-broken", "cowd-free-sector-low"])
def test_qemu_reads_what_we_have_repaired(name: str, tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = DAMAGE[name].build(tmp_path)
    assert repair(image.path).report.exit_code in (0, 3)
    assert qemu(image.path) == 0
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(image.path), str(raw)], check=True)
    assert raw.read_bytes() == image.model.pread(image.size, 0)


@pytest.mark.parametrize("kind", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_what_qemu_writes_is_clean(kind: str, tmp_path: Path) -> None:
    requires("qemu-img>=7", "qemu-io")
    path = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={kind}", str(path), "96M"], check=True)
    subprocess.run(["qemu-io", "-f", "vmdk", "-c", "write -P 7 1M 3M", "-c", "write -P 8 70M 4k", str(path)],
                   check=True, capture_output=True)  # fmt: skip
    report = check(path)
    assert report.exit_code == 0, report.findings


def test_what_qemu_packs_is_clean(tmp_path: Path) -> None:
    requires("qemu-img>=7")
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:b 40M:- 64k:C")
    path = tmp_path / "stream.vmdk"
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *options, str(image.path), str(path)], check=True)
    report = check(path)
    assert (report.exit_code, report.grains) == (0, 3)


def test_real_images_are_clean() -> None:
    """Images made by VMware's own programs; the children of which the parents lack are not."""
    seen = 0
    for path in sorted(golden().rglob("*.vmdk")):
        report = check(path)
        if report.codes() & {"extent-missing", "not-vmdk"} or "afl" in path.name:
            continue
        seen += 1
        assert report.exit_code in (0, 3), (path, report.findings)
    assert seen >= 4
