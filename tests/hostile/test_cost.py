# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a hostile file may cost: about a second, 100 MiB, and an error that says where; never a foreign exception.

Each case runs in a process of its own, whose memory is limited and measured.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import images
import vmdkit
from images import Hosted, Stream
from images.damage import DAMAGE
from images.damage_stream import bomb

if TYPE_CHECKING:
    from collections.abc import Callable

    from images import Image

MIB = 1 << 20
MOST_MEMORY = 100 << 10  # KiB of the whole process, interpreter and numpy included
MOST_SECONDS = 2.0  # of processor time, without the start of the interpreter; one, on a machine that is not shared

CHILD = """
import itertools, json, resource, sys, time
import numpy, deflate  # what every user of the package has loaded
import vmdkit
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
options, came = json.loads(sys.argv[2]), []
begun = time.process_time()
try:
    with vmdkit.open(sys.argv[1], **options) as disk:
        came.append(f"size {disk.size}")
        asks = [lambda at=at: disk.pread(min(512, disk.size - at), at) for at in (0, disk.size // 2, disk.size - 512)]
        asks += [lambda: list(itertools.islice(disk.extents(), 100000))]
        asks += [lambda: list(itertools.islice(disk.locate(), 100000)), lambda: disk.facts()]
        for ask in asks:
            try:
                ask()
            except (vmdkit.VmdkitError, OSError) as error:
                came.append(str(error))
except (vmdkit.VmdkitError, OSError) as error:
    came.append(str(error))
seconds = time.process_time() - begun
(memory,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))  # not ru_maxrss: that
print(json.dumps([came, seconds, int(memory)]))  # counts what the parent had before exec
"""


def run(path: Path, **options: object) -> list[str]:
    """Open and use an image in another process; return what was said, once the cost is found bearable."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(options)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(vmdkit.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    came, seconds, memory = json.loads(done.stdout)
    assert seconds < MOST_SECONDS
    assert memory < MOST_MEMORY
    for text in came:
        assert len(text) < 1000
    said: list[str] = came
    return said


# ── headers that promise much ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("capacity", [1 << 38, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("kind", ["hosted", "stream-A", "stream-B", "seSparse"])
def test_capacities(capacity: int, kind: str, tmp_path: Path) -> None:
    image = images.SUBFORMATS[kind].build(tmp_path, "64k:A 64k:-")
    image.poke("header.capacity", capacity)
    if kind == "stream-A":
        image.poke("footer.capacity", capacity)
    said = run(image.path)
    assert str(tmp_path) in said[0]
    if kind == "stream-A":
        assert run(image.path, salvage=True)


def _hole(image: Image, size: int, **fields: int) -> Path:
    """Make a file as large as its header promises, all of it a hole."""
    for name, value in fields.items():
        image.poke(f"header.{name}", value)
    os.truncate(image.parts[0].path, size)
    return image.path


def test_a_very_large_hosted_disk_is_read(tmp_path: Path) -> None:
    """32 TiB: 4 MiB of each directory, all of it a hole, and no table."""
    image = images.monolithic_sparse(tmp_path, "64k:-")
    image.poke_text("RW 128 ", f"RW {1 << 36} ")
    _hole(image, 40 * MIB, capacity=1 << 36, gdOffset=2048, rgdOffset=40960)
    assert run(image.path)[0] == f"size {32 << 40}"


def test_the_largest_directory_full_of_nonsense(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, "64k:-")
    image.poke_text("RW 128 ", f"RW {1 << 33} ")
    _hole(image, 8 * MIB, capacity=1 << 33, gdOffset=2048, rgdOffset=4096)
    with image.path.open("r+b") as file:
        file.seek(MIB)
        file.write(struct.pack("<131072I", *range(7, 131072 + 7)))
    said = run(image.path)
    assert said[0] == f"size {4 << 40}"


def test_the_largest_cowd(tmp_path: Path) -> None:
    image = images.vmfs_sparse(tmp_path, "64k:A")
    image.poke_text("RW 128 ", f"RW {0xFFFFFFFF} ")
    _hole(image, 64 * MIB, numSectors=0xFFFFFFFF, numGDEntries=1 << 20)
    assert run(image.path)[0] == f"size {0xFFFFFFFF * 512}"


def test_a_large_sesparse(tmp_path: Path) -> None:
    """2^22 tables of 16 MiB each: 64 TiB."""
    image = images.se_sparse(tmp_path, "64k:A")
    image.poke_text("RW 128 ", f"RW {1 << 37} ")
    _hole(image, 64 * MIB, capacity=1 << 37, grainDirectorySize=1 << 16)
    assert run(image.path)[0] == f"size {64 << 40}"


def test_a_cheap_file_of_four_exbibytes(tmp_path: Path) -> None:
    image = images.monolithic_flat(tmp_path, "64k:A")
    image.poke_text("RW 128 ", f"RW {1 << 52} ")
    assert run(image.path)[0] == f"size {1 << 61}"


# ── compressed data ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("grain", [64 << 10, MIB, 8 * MIB])
def test_a_grain_that_would_inflate_to_300_mib(grain: int, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "64k:A 64k:B", Stream(packed={0: bomb(300 * MIB)}, grain=grain))
    said = run(image.path)
    assert "compressed grain" in said[1]
    assert str(image.path) in said[1]


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'


def _fill(row: bytes) -> bytes:
    return HEAD + row * ((MIB - len(HEAD)) // len(row))


TEXTS = {
    "lines of zeros": HEAD + b"RW 1 ZERO\n" * 32768,
    "lines of no access": HEAD + b"NOACCESS 1 ZERO\n" * 32768,
    "lines of one flat file": HEAD + b'RW 1 FLAT "x"\n' * 32768,
    "lines of files that are not there": _fill(b'RW 1 FLAT "y"\n'),
    "lines of one file at many places": HEAD + b'RW 1 FLAT "x" 3\n' * 32768,
    "too many lines": HEAD + b"RW 1 ZERO\n" * 32769,
    "lines of no length": _fill(b"RW 0 ZERO\n"),
    "keys": HEAD + b"RW 1 ZERO\n" + b"".join(b"k%d=v\n" % number for number in range(90_000)),
    "keys that stand twice": HEAD + b"RW 1 ZERO\n" + b"".join(b"k%d=%d\n" % (at // 2, at) for at in range(80_000)),
    "one long value": HEAD + b"RW 1 ZERO\na=" + b"x" * 1_000_000,
    "one long hint": HEAD.replace(b"ffffffff", b"5") + b"RW 1 ZERO\nparentFileNameHint=" + b"x" * 1_000_000,
    "one long create type": HEAD.replace(b"custom", b"x" * 1_000_000) + b"RW 1 ZERO\n",
    "one long extent type": HEAD + b"RW 1 " + b"X" * 1_000_000,
    "one long file name": HEAD + b'RW 1 FLAT "' + b"x" * 1_000_000 + b'"',
    "one long content ID": HEAD.replace(b"CID=1", b"CID=" + b"1" * 1_000_000) + b"RW 1 ZERO\n",
    "one long filter": HEAD + b'RW 1 ZERO\nddb.iofilters = "' + b"x" * 1_000_000 + b'"',
    "empty lines": HEAD + b"RW 1 ZERO\n" + b"\n" * 1_000_000,
    "more than a mebibyte": HEAD + b"RW 1 ZERO\n" + b"#" * MIB,
    "nothing but signs": b"#" * MIB,
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 512)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(TEXTS[name])
    said = run(path)
    assert said
    assert said[0].startswith("size ") or str(path) in said[0]


def test_a_sparse_file_named_thousands_of_times(tmp_path: Path) -> None:
    image = images.split_sparse(tmp_path, "64k:A", Hosted(descriptor=0))
    _hole(image, 40 * MIB, capacity=1 << 33, gdOffset=2048, rgdOffset=40960)
    image.put_text(HEAD + f'RW 128 SPARSE "{image.parts[0].path.name}"\n'.encode() * 20_000)
    assert "two lines name the same sparse file" in run(image.path)[0]


# ── chains ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["parent-itself", "parent-loop", "parent-too-deep"])
def test_chains_without_end(name: str, tmp_path: Path) -> None:
    image = DAMAGE[name].build(tmp_path)
    for options in ({}, {"ignore_cid": True}):
        (said,) = run(image.path, **options)
        assert "comes back" in said or "more than 64 links" in said


def test_as_many_links_as_allowed(tmp_path: Path) -> None:
    image = images.chain(tmp_path, [("hosted-4k", "4k:A 4k:B")] + [("hosted-4k", "8k:-")] * 63)
    assert run(image.path) == ["size 8192"]


@pytest.mark.parametrize("name", [name for name in DAMAGE if not name.startswith("parent-too")])
def test_no_damage_costs_time_or_an_exception_of_another_kind(name: str, tmp_path: Path) -> None:
    import time

    image = DAMAGE[name].build(tmp_path)
    begun = time.process_time()
    said: list[str] = []
    actions: list[Callable[[Any], object]] = [
        lambda disk: disk.pread(min(disk.size, 4 * MIB), 0),
        lambda disk: list(disk.extents()),
        lambda disk: list(disk.locate()),
        lambda disk: disk.facts(),
    ]
    for options in ({}, {"salvage": True, "ignore_cid": True, "ignore_journal": True}):
        try:
            with vmdkit.open(image.path, **options) as disk:  # type: ignore[arg-type]
                for action in actions:
                    try:
                        action(disk)
                    except (vmdkit.VmdkitError, OSError) as error:
                        said.append(str(error))
        except (vmdkit.VmdkitError, OSError) as error:
            said.append(str(error))
    assert time.process_time() - begun < MOST_SECONDS
    for text in said:
        assert str(tmp_path) in text  # which file
