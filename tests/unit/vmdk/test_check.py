# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a look at all metadata finds, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from images import Hosted
from images.damage import DAMAGE

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = "64k:A 64k:b 64k:- 64k:C 32M:- 64k:D"
SHOULD = {
    "rgt-lacks-grain": "1 entries differ between the two copies",
    "gt-lacks-grain": "1 entries differ between the two copies",
    "rgt-swapped": "2 entries lead to different grains in the two copies",
    "rgt-garbage": "512 entries differ between the two copies",
    "rgd-offset-beyond-eof": "the redundant grain directory has 2 entries and cannot lie at",
    "gte-duplicate": "1 entries share a grain with another entry: writing the one changes the other; "
    "the first concerns 0x10000",
    "gte-beyond-eof": "1 entries of the grain tables point behind the end of the file",
    "gte-at-eof": "1 entries of the grain tables point behind the end",
    "gte-in-header": "1 entries of the grain tables point into header, descriptor or tables",
    "gte-1-without-flag": "1 entries are 1, which without the flag of zero grains is no grain",
    "gte-unaligned": "1 grains do not begin at a multiple of the grain",
    "gde-beyond-eof": "1 entries of the grain directory lead outside the file",
    "gde-twice": "share a grain with another entry",
    "last-grain-short": "1 grains are cut off by the end of the file",
    "unclean": "not closed cleanly",
}


def doubts(path: Path) -> str:
    with vmdkit.open(path) as disk:
        return "\n".join(disk.facts()["doubts"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SHOULD)
def test_damage_is_found(name: str, tmp_path: Path) -> None:
    assert SHOULD[name] in doubts(DAMAGE[name].build(tmp_path).path)


@pytest.mark.parametrize("kind", [*images.SUBFORMATS, *images.PATCHED])
def test_sound_images_raise_no_doubt(kind: str, tmp_path: Path) -> None:
    image = {**images.SUBFORMATS, **images.PATCHED}[kind].build(tmp_path, LAYOUT)
    found = doubts(image.path)
    if kind == "hosted-v3":
        assert found.count("\n") == 0
        assert "version 3" in found
    elif kind == "hosted-short":
        assert found == "" or "cut off" in found
    else:
        assert found == ""


def test_the_places_of_grains_that_are_shared_across_tables(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    far = next(number for number in image.parts[0].entries if number >= 512)
    name, index = image.entry(0)
    image.poke_entry(far, image.peek(name, index))
    assert f"writing the one changes the other; the first concerns {far * 65536:#x}" in doubts(image.path)


def test_three_entries_of_one_grain_are_two_too_many(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT)
    value = image.peek(*image.entry(0))
    image.poke_entry(1, value)
    image.poke_entry(3, value)
    assert (
        "2 entries share a grain with another entry: writing the one changes the other; the first concerns 0x10000"
        in doubts(image.path)
    )


def test_entries_behind_the_end_of_the_disk_mean_nothing(tmp_path: Path) -> None:
    """The last table is longer than the disk; nobody ever reads what follows."""
    image = images.monolithic_sparse(tmp_path, "64k:A 64k:-")
    image.poke("gt[0]", 0xFFFFFFFF, 2)
    image.poke("gt[0]", image.peek("gt[0]", 0), 511)
    assert doubts(image.path) == ""


def test_all_kinds_of_tables_can_be_missing(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "1G:-", Hosted(on_demand=True))
    assert doubts(image.path) == ""
    image = images.monolithic_sparse(tmp_path, "1G:-", Hosted(grain=4096), name="small")
    image.poke("rgt[300]", 7, 3)
    assert "1 entries differ between the two copies" in doubts(image.path)


MEASURE = """
import sys, vmdkit
with vmdkit.open(sys.argv[1]) as disk:
    print(disk.facts()["doubts"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def test_a_file_of_two_tebibytes_and_tiny_grains_costs_little(tmp_path: Path) -> None:
    """Eight thousand pointers strewn over 2^32 places of 512 bytes; the file is a hole but for its tables."""
    image = images.monolithic_sparse(tmp_path, "16M:-", Hosted(grain=512))
    entries = bytearray()
    for number in range(32768):
        entries += (4096 + number * 131000).to_bytes(4, "little")
    for table in range(64):
        for copy in ("gt", "rgt"):
            image.poke(f"{copy}[{table}]", bytes(entries[table * 2048 : table * 2048 + 2048]))
    with image.path.open("r+b") as file:
        for copy in ("gt", "rgt"):
            for table in range(64):
                place = image.fields[f"{copy}[{table}]"]
                file.seek(place.offset)
                file.write(entries[table * 2048 : table * 2048 + 2048])
    os.truncate(image.path, (2 << 40) - 512)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(image.path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 100 << 10  # KiB
