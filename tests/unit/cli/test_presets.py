# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.errors import UsageError
from vmdkit.formats import FORMATS
from vmdkit.presets import PRESETS, find_preset

if TYPE_CHECKING:
    from pathlib import Path

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize("row", PRESETS.values(), ids=PRESETS)
def test_every_row_names_formats_there_are_and_its_sources(row: Any) -> None:
    assert {name.lower() for name in row.formats} <= set(FORMATS)
    assert row.sources
    assert all(source.startswith("https://") for source in row.sources)
    assert {*row.options, *row.never} <= {key for name in row.formats for key in FORMATS[name.lower()].options}


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("azure", 1, 20 * MIB),
        ("azure", 20 * MIB + 1, 21 * MIB),
        ("azure", 32 * TIB, 32 * TIB),
        ("gcp", 1, GIB),
        ("gcp", GIB, GIB),
        ("gcp", GIB + 1, 2 * GIB),
        ("aws", 513, 1024),
        ("esxi", 10 * MIB, 10 * MIB),
    ],
)
def test_sizes(name: str, size: int, expected: int) -> None:
    assert find_preset(name).size(size) == expected


def test_what_is_not_taken() -> None:
    with pytest.raises(UsageError, match="Azure takes disks of at most 32 TiB"):
        find_preset("azure").size(32 * TIB + 1)
    with pytest.raises(UsageError, match=r"Azure takes vhd, not raw: a fixed VHD of whole MiB.*learn\.microsoft"):
        find_preset("azure").format("raw")
    with pytest.raises(UsageError, match="VirtualBox does not take zeroed_grain: it reads version 1 only"):
        find_preset("virtualbox").check({"zeroed_grain": True})
    with pytest.raises(UsageError, match="no target is called 'moon', only esxi, "):
        find_preset("moon")
    assert find_preset("AWS").format("RAW") == "raw"


@pytest.mark.parametrize("place", PRESETS)
def test_a_disk_for_every_place(place: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "out", "--target", place, "--verify", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out").exists()


def test_what_grows_is_told(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "out", "--target", "azure")
    assert done.returncode == 0
    assert done.stderr == (
        "vmdkit: out: 20971520 bytes, 19922944 more than the source: Azure takes a fixed VHD of whole MiB, "
        "from 20 MiB to 32 TiB, and its footer\n"
    )
    assert (tmp_path / "out").stat().st_size == 20 * MIB + 512
    assert (tmp_path / "out").read_bytes()[: 20 * MIB] == raw.read_bytes() + bytes(19 * MIB)


def test_the_format_may_be_another_that_is_taken(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    assert vmdkit("convert", "--raw", raw, "out", "--target", "aws", "-O", "raw").returncode == 0
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()
    done = vmdkit("convert", "--raw", raw, "none", "--target", "gcp", "-O", "raw")
    assert done.returncode == 1
    assert done.stderr.startswith("vmdkit: Google Cloud takes tar.gz, not raw: disk.raw, of whole GiB")
    assert not (tmp_path / "none").exists()
