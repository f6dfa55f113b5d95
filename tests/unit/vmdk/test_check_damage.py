# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every damage of tests/images and what a check says of it; every sound image, of which it says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import images
from images import Hosted, Stream
from images.damage import DAMAGE
from images.refused import READ_ONLY, REFUSED
from vmdkit.checker import check
from vmdkit.vmdk.check_findings import Severity

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.vmdk.check_findings import Report

# damage: (exit code, the findings: e)rror, r)epairable, l)eak, n)ote, u)nchecked
FOUND = {
    "rgt-lacks-grain": (2, "r:gt-mismatch"),
    "gt-lacks-grain": (2, "r:gt-mismatch"),
    "rgt-swapped": (2, "e:gt-conflict"),
    "rgt-garbage": (2, "r:gt-mismatch"),
    "rgd-offset-beyond-eof": (2, "e:rgd-offset"),
    "gte-duplicate": (2, "l:leak r:gte-shared"),
    "gte-beyond-eof": (2, "e:gte-beyond-eof l:leak"),
    "gte-beyond-eof-last": (2, "e:gte-beyond-eof l:leak"),
    "gte-at-eof": (2, "e:gte-beyond-eof l:leak"),
    "gte-in-header": (2, "e:gte-metadata l:leak"),
    "gte-in-directory": (2, "e:gte-metadata l:leak"),
    "gte-unaligned": (2, "e:gte-unaligned l:leak r:gte-shared"),
    "gte-1-without-flag": (2, "e:gte-one l:leak"),
    "gte-1-flag-lost": (2, "e:gte-one"),
    "leaked-tail-grain": (3, "l:leak"),
    "gde-0": (3, "l:leak n:gde-missing"),
    "gde-beyond-eof": (2, "e:gde-invalid l:leak"),
    "gde-in-header": (2, "e:gde-invalid l:leak"),
    "gde-primary-broken": (2, "l:leak r:gde-invalid"),
    "gde-twice": (2, "e:gde-shared l:leak n:gd-order r:gte-shared"),
    "last-grain-short": (0, "n:gte-short"),
    "tail-lost": (2, "e:gte-beyond-eof"),
    "unclean": (0, "n:unclean"),
    "descriptor-area-tight": (0, ""),
    "descriptor-area-too-small": (0, ""),
    "descriptor-beyond-eof": (2, "e:descriptor-area n:no-descriptor"),
    "descriptor-size-huge": (2, "e:descriptor-area n:no-descriptor"),
    "newline-bytes": (2, "r:header-newlines"),
    "text-mode": (
        2,
        "e:create-type e:descriptor-cid e:descriptor-empty e:descriptor-version n:descriptor-area n:descriptor-form",
    ),
    "capacity-2^40": (2, "e:header-capacity"),
    "capacity-2^62": (2, "e:descriptor-grammar e:header-capacity"),
    "capacity-2^64": (2, "e:descriptor-grammar e:header-capacity"),
    "capacity-unlike-text": (2, "e:header-capacity"),
    "capacity-0": (2, "e:extent-capacity l:leak"),
    "capacity-0-host-file": (1, "u:extent-refused"),
    "grain-0": (2, "e:header-grain"),
    "grain-3": (2, "e:header-grain"),
    "grain-huge": (2, "e:header-grain"),
    "grain-2^63": (2, "e:header-grain"),
    "gtes-0": (2, "e:header-entries"),
    "gtes-511": (2, "e:header-entries"),
    "gtes-huge": (2, "e:header-entries"),
    "gd-offset-0": (2, "e:gd-offset"),
    "gd-offset-beyond-eof": (2, "e:gd-offset"),
    "gd-offset-at-end": (2, "e:gd-offset"),
    "overhead-0": (0, "n:header-overhead"),
    "overhead-huge": (2, "r:header-overhead"),
    "extent-file-lost": (2, "e:extent-missing"),
    "extent-capacity": (2, "e:extent-capacity l:leak"),
    "stream-no-eos": (2, "r:stream-no-eos"),
    "stream-no-footer": (2, "e:stream-no-footer"),
    "stream-no-directory": (2, "e:stream-no-footer"),
    "stream-b-no-eos": (0, "n:stream-no-eos n:stream-redundant"),
    "stream-trailing-zeros": (0, "n:stream-trailing"),
    "stream-b-trailing-zeros": (0, "n:stream-trailing"),
    "stream-bomb": (2, "e:grain-inflate"),
    "stream-bomb-oversize": (2, "e:grain-size n:stream-gap"),
    "stream-one-byte-too-much": (2, "e:grain-inflate"),
    "stream-grain-short": (0, "n:grain-short"),
    "stream-not-zlib": (2, "e:grain-inflate"),
    "stream-checksum": (2, "e:grain-inflate"),
    "stream-size-huge": (2, "e:grain-size n:stream-gap"),
    "stream-size-beyond-eof": (2, "e:grain-size n:stream-gap"),
    "stream-size-0": (2, "e:grain-size n:stream-marker n:stream-padding"),
    "stream-size-1": (2, "e:grain-inflate n:stream-padding"),
    "stream-lba-wrong": (2, "e:grain-lba l:leak"),
    "stream-lba-huge": (2, "e:grain-lba l:leak"),
    "stream-grains-swapped": (2, "e:grain-lba l:leak"),
    "stream-gte-beyond-eof": (2, "e:gte-beyond-eof l:leak"),
    "stream-gte-in-descriptor": (2, "e:gte-metadata l:leak"),
    "stream-overhead-zeros": (2, "e:stream-marker n:stream-overhead"),
    "stream-grain-padding": (0, "n:stream-padding"),
    "stream-table-marker-size": (2, "e:stream-marker"),
    "stream-table-marker-type": (2, "e:stream-marker n:stream-marker"),
    "stream-table-marker-zero": (2, "e:stream-marker"),
    "stream-directory-marker": (2, "e:stream-marker"),
    "footer-marker-size": (2, "e:stream-marker"),
    "footer-overhead": (0, "n:stream-footer-copy"),
    "footer-capacity": (2, "e:stream-footer"),
    "footer-grain": (2, "e:stream-footer"),
    "footer-version": (2, "e:stream-footer"),
    "footer-magic": (2, "e:stream-no-footer"),
    "footer-directory-at-end": (2, "e:stream-footer"),
    "footer-directory-beyond-eof": (2, "e:gd-offset"),
    "footer-directory-0": (2, "e:gd-offset"),
    "footer-marker": (2, "e:stream-no-footer"),
    "stream-flag-compressed-lost": (2, "e:header-flags"),
    "stream-capacity-2^62": (2, "e:header-capacity"),
    "cowd-gte-beyond-eof": (2, "e:gte-beyond-eof l:leak"),
    "cowd-gte-in-header": (2, "e:gte-metadata l:leak"),
    "cowd-gde-beyond-eof": (2, "e:gde-invalid l:leak"),
    "cowd-gde-in-header": (2, "e:gde-invalid l:leak"),
    "cowd-free-sector-low": (2, "r:cowd-free"),
    "cowd-grain-0": (2, "e:header-grain"),
    "cowd-grain-huge": (2, "e:header-grain"),
    "cowd-gd-offset": (2, "e:gd-offset"),
    "cowd-gd-offset-0": (2, "e:gd-offset"),
    "cowd-directory-short": (2, "e:header-entries"),
    "cowd-directory-huge": (2, "e:header-entries"),
    "cowd-capacity": (2, "e:header-entries"),
    "cowd-version": (63, "u:unsupported"),
    "cowd-magic": (2, "e:header-magic"),
    "cowd-unclean": (0, "n:unclean"),
    "sesparse-type-4": (2, "e:gte-invalid"),
    "sesparse-type-f": (2, "e:gte-invalid"),
    "sesparse-type-0-not-empty": (2, "e:gte-invalid"),
    "sesparse-grain-beyond": (2, "e:gte-beyond-eof"),
    "sesparse-directory-type": (2, "e:gde-invalid"),
    "sesparse-directory-no-type": (2, "e:gde-invalid"),
    "sesparse-table-beyond": (2, "e:gde-invalid"),
    "sesparse-table-past-region": (2, "e:gde-invalid"),
    "sesparse-magic": (2, "e:header-magic"),
    "sesparse-version": (63, "u:unsupported"),
    "sesparse-volatile-magic": (2, "e:sesparse-volatile"),
    "sesparse-grain-size": (2, "e:header-grain"),
    "sesparse-table-size": (2, "e:header-entries"),
    "sesparse-capacity": (2, "e:extent-capacity e:header-capacity"),
    "sesparse-directory-offset": (2, "e:sesparse-region"),
    "sesparse-grains-offset": (2, "e:sesparse-region"),
    "sesparse-volatile-offset": (2, "e:sesparse-region"),
    "parent-itself": (2, "e:chain-loop n:descriptor-cid"),
    "parent-loop": (2, "e:chain-loop"),
    "parent-cid": (2, "e:chain-cid"),
    "parent-cid-wrong": (2, "e:chain-cid"),
    "parent-capacity": (2, "e:chain-capacity"),
    "parent-lost": (2, "e:parent-missing"),
    "parent-url": (1, "u:parent-refused"),
    "parent-outside": (1, "u:parent-refused"),
    "parent-dotdot": (1, "u:parent-refused"),
    "parent-too-deep": (2, "e:chain-loop"),
    "name-absolute": (1, "u:extent-refused"),
    "name-dotdot": (1, "u:extent-refused"),
    "name-dotdot-backslash": (2, "e:extent-missing"),
    "name-dotdot-hidden": (1, "u:extent-refused"),
    "name-device": (1, "u:extent-refused"),
    "name-proc": (1, "u:extent-refused"),
    "name-nbd": (1, "u:extent-refused"),
    "name-nbd-short": (1, "u:extent-refused"),
    "name-json": (1, "u:extent-refused"),
    "name-http": (1, "u:extent-refused"),
    "name-file-url": (1, "u:extent-refused"),
    "name-fd": (1, "u:extent-refused"),
    "name-dot": (1, "u:extent-refused"),
    "name-dotdot-only": (1, "u:extent-refused"),
    "name-empty": (1, "u:extent-refused"),
    "name-long": (1, "u:extent-refused"),
    "name-control": (1, "u:extent-refused"),
    "name-drive": (2, "e:extent-missing"),
    "name-itself": (2, "e:extent-short"),
    "extent-fifo": (1, "u:extent-refused"),
    "extent-directory": (1, "u:extent-refused"),
    "extent-symlink-out": (1, "u:extent-refused"),
    "extent-symlink-beside": (1, "u:extent-refused"),
    "extent-lost": (2, "e:extent-missing"),
    "extent-short": (2, "e:extent-short"),
    "extent-empty": (2, "e:extent-short"),
    "extent-long": (0, "n:extent-long"),
    "extent-named-twice": (2, "e:extent-shared"),
    "text-no-extents": (2, "e:descriptor-empty"),
    "text-no-create-type": (2, "e:create-type"),
    "text-no-version": (2, "e:descriptor-version"),
    "text-no-cid": (2, "e:descriptor-cid"),
    "text-cid-not-hex": (2, "e:descriptor-cid"),
    "text-version-9": (2, "e:descriptor-version"),
    "text-version-x": (2, "e:descriptor-version"),
    "text-encoding-unknown": (0, "n:descriptor-form"),
    "text-encoding-not-text": (0, "n:descriptor-form"),
    "text-size-0": (0, "n:extent-long"),
    "text-size-negative": (2, "e:descriptor-grammar"),
    "text-size-hex": (2, "e:descriptor-grammar"),
    "text-size-underscore": (2, "e:descriptor-grammar"),
    "text-size-foreign-digits": (2, "e:descriptor-grammar"),
    "text-size-huge": (2, "e:descriptor-grammar"),
    "text-size-many-digits": (2, "e:descriptor-grammar"),
    "text-sum-huge": (2, "e:descriptor-grammar"),
    "text-offset-negative": (2, "e:descriptor-grammar"),
    "text-offset-huge": (2, "e:descriptor-grammar"),
    "text-offset-beyond": (2, "e:extent-short n:extent-offset"),
    "text-access-unknown": (2, "e:descriptor-grammar"),
    "text-name-lacks": (2, "e:extent-name"),
    "text-quote-open": (2, "e:descriptor-grammar"),
    "text-line-stops": (2, "e:descriptor-grammar"),
    "text-zero-only": (0, "n:extent-access"),
    "text-many-extents": (0, "n:extent-access"),
    "text-nul-inside": (2, "e:descriptor-empty e:descriptor-grammar n:descriptor-form"),
    "text-not-in-its-encoding": (0, "n:descriptor-form"),
    "text-two-mebibytes": (2, "e:descriptor-large"),
    "text-long-line": (0, ""),
    "text-empty": (2, "e:not-vmdk"),
    "text-only-title": (2, "e:create-type e:descriptor-cid e:descriptor-empty e:descriptor-version n:descriptor-form"),
    "text-random": (2, "e:not-vmdk"),
}
LAYOUT = "64k:A 64k:b 64k:- 64k:C 32M:- 64k:D"
# Notes that sound but unusual images deserve.
UNUSUAL = {
    "hosted-v3": {"header-version"},
    "hosted-on-demand": {"gde-missing"},
    "hosted-reversed": {"gd-order"},
    "hosted-256-entries": {"header-entries"},
    "stream-QEMU": {"stream-no-eos", "stream-redundant"},
    "stream-progress": {"stream-marker"},  # one of a kind that nobody knows
    "custom": {"extent-access", "extent-offset"},
    "partitionedDevice": {"extent-access", "extent-offset", "extent-long"},
}


def said(report: Report) -> str:
    return " ".join(sorted({f"{finding.severity.value[0]}:{finding.code}" for finding in report.findings}))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    before = {path: path.read_bytes() for path in image.files if path.is_file()}
    report = check(image.path)
    assert (report.exit_code, said(report)) == FOUND[name]
    for finding in report.findings:
        assert len(finding.text) > 10
        assert finding.severity is not Severity.REPAIRABLE or finding.remedy
    json.dumps(report.facts())
    assert before == {path: path.read_bytes() for path in before}


def test_no_damage_is_called_clean_unless_it_is_harmless() -> None:
    """What a reader must refuse, or fails to read, is never clean."""
    for name, damage in DAMAGE.items():
        if damage.outcome in ("refuses", "fails"):
            assert FOUND[name][0] != 0, name


@pytest.mark.parametrize("kind", [*images.SUBFORMATS, *images.PATCHED])
def test_sound_images_are_clean(kind: str, tmp_path: Path) -> None:
    image = {**images.SUBFORMATS, **images.PATCHED}[kind].build(tmp_path, LAYOUT)
    report = check(image.path)
    assert report.exit_code == 0
    codes = report.codes() - {"gte-short"}
    assert (
        codes <= UNUSUAL.get(kind, set()) | {"stream-no-eos"}
        if kind.startswith("stream")
        else codes == UNUSUAL.get(kind, set())
    )
    assert {os.path.basename(name) for name in report.files} == {path.name for path in image.files}


@pytest.mark.parametrize("kind", images.CHILDREN)
def test_sound_chains_are_clean(kind: str, tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("flat", "1M:A"), (kind, "64k:- 64k:C 896k:-"), (kind, "960k:- 64k:D")])
    for chain in (False, True):
        report = check(image.path, chain=chain)
        assert report.exit_code == 0
        assert len(report.files) >= 3
    assert len(report.files) == sum(len(link.files) for link in image.layers())


def test_a_chain_is_checked_to_its_ground(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted", "64k:A 64k:B"), ("hosted", "64k:C 64k:-")])
    assert image.parent is not None
    image.parent.poke("rgt[0]", 0, 0)
    assert check(image.path).exit_code == 0
    report = check(image.path, chain=True)
    assert report.exit_code == 2
    assert report.codes() == {"gt-mismatch"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_not_called_clean(name: str, tmp_path: Path) -> None:
    assert check(REFUSED[name](tmp_path).path).exit_code in (1, 2, 63)


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_cannot_be_written_is_clean(name: str, tmp_path: Path) -> None:
    assert check(READ_ONLY[name](tmp_path).path).exit_code == 0


def test_an_extent_alone(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, "64k:A 64k:B", split=64 << 10)
    assert check(image.parts[1].path).path == str(image.parts[1].path)
    assert len(check(image.parts[1].path).files) == 3  # its disk, as its descriptor is beside it
    image.path.unlink()
    report = check(image.parts[1].path)
    assert (report.exit_code, report.codes()) == (0, {"no-descriptor"})


def test_what_is_no_vmdk(tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(4096))
    assert check(raw).exit_code == 63
    with pytest.raises(OSError, match="No such file"):
        check(tmp_path / "nothing.vmdk")


def test_grains_used_twice_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmdkit.vmdk import check_grains

    image = images.monolithic_sparse(tmp_path, LAYOUT, Hosted(grain=4096))
    first, *_, last = image.parts[0].entries
    image.poke_entry(last, image.peek(*image.entry(first)))
    whole = check(image.path)
    assert "gte-shared" in whole.codes()
    monkeypatch.setattr(check_grains, "_WINDOW", 8)
    piecewise = check(image.path)
    assert (piecewise.codes(), piecewise.leaked, piecewise.grains) == (whole.codes(), whole.leaked, whole.grains)


def test_what_is_only_a_hole_is_no_leak(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    size = image.path.stat().st_size
    os.truncate(image.path, size + (1 << 30))
    assert check(image.path).leaked == 0
    with image.path.open("r+b") as file:
        file.seek(size + (65 << 20))
        file.write(b"x")
    assert check(image.path).leaked == 65536


def test_a_grain_no_entry_leads_to_in_a_stream(tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "64k:A 64k:B 64k:C", Stream())
    name, index = image.entry(1)
    image.poke(name, 0, index)
    report = check(image.path)
    assert (report.exit_code, report.codes()) == (3, {"leak"})


def test_stale_and_living_locks_are_told(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A")
    (tmp_path / "disk.vmdk.lck").mkdir()
    (tmp_path / "disk.vmdk.lck/M00001.lck").write_bytes(b"uuid=00 1-1(x) 1 X 1 lc=0".ljust(512, b"\0"))
    report = check(image.path)
    assert (report.exit_code, report.codes()) == (0, {"lock-held"})


def test_a_tebibyte_nearly_empty_is_checked_at_once(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:A 1024G:-")
    begun = time.monotonic()
    report = check(image.path)
    assert (report.exit_code, report.grains) == (0, 1)
    assert time.monotonic() - begun < 1.5


MEASURE = """
import sys
from vmdkit.checker import check
report = check(sys.argv[1])
(memory,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(report.exit_code, memory)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A full disk of 64 GiB in grains of 4 KiB: sixteen million entries, all in use."""
    import numpy as np

    image = images.monolithic_sparse(tmp_path, "64G:-", Hosted(grain=4096))
    overhead, count = image.peek("header.overHead"), (64 << 30) // 4096
    entries = (np.arange(count, dtype=np.int64) * 8 + overhead).astype("<u4").tobytes()
    with image.path.open("r+b") as file:
        for name in ("gt[0]", "rgt[0]"):
            file.seek(image.fields[name].offset if name in image.fields else _first_table(image, name))
            file.write(entries)
    os.truncate(image.path, overhead * 512 + (64 << 30))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(image.path)], capture_output=True, text=True, check=True, timeout=60
    )
    code, memory = done.stdout.split()
    assert code == "0"
    assert int(memory) < 110 << 10  # KiB


def _first_table(image: images.Image, name: str) -> int:
    directory = image.fields["rgd" if name.startswith("r") else "gd"]
    with image.path.open("rb") as file:
        file.seek(directory.offset)
        return int.from_bytes(file.read(4), "little") * 512
