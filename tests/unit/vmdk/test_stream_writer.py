# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What the writer of streams writes: every marker, at odd sizes, walked by a parser that forgives nothing."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from model import Model
from stream_walk import walk
from streams import ModelDevice, far_stream, written
from vmdkit import kernels
from vmdkit.checker import check
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ops.copy import CopyOptions, stream
from vmdkit.ops.sink import Sink, Tee
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import KIB, MIB, TIB
from vmdkit.vmdk.measure import measure
from vmdkit.vmdk.stream_writer import Grains, StreamRecipe, StreamWriter

if TYPE_CHECKING:
    from pathlib import Path

FIXED = StreamRecipe(cid="12345678")


def assert_same(data: bytes, model: Model, *, whole: bool = True) -> None:
    """Compare a stream with its model, by the strict walk, then by our reader."""
    found = walk(data)
    assert found.size == -(-model.size // 512) * 512
    if whole:
        assert found.pread(model.size, 0) == model.pread(model.size, 0)
    for at in found.grains:
        count = min(found.grain, model.size - at)
        assert found.pread(count, at) == model.pread(count, at)


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        ("64k:A", "gTDFE"),
        ("512:A", "gTDFE"),
        ("512:-", "DFE"),
        ("512:0", "DFE"),
        ("1M:0 1M:-", "DFE"),
        ("64k:A 64k:b 64k:- 64k:C 64k:0 32M:- 64k:d 64k:E 1k:F", "gggTgggTDFE"),
        ("65024:A 512:b 512:c", "ggTDFE"),
        ("32704k:- 64k:A 64k:b 64k:-", "gTgTDFE"),  # the last grain of a table, and the first of the next
        ("32M:A", "g" * 512 + "TDFE"),
        ("32M:- 32M:- 512:z", "gTDFE"),
        ("32M:A 32M:- 64k:b", "g" * 512 + "TgTDFE"),
        ("1M:z", "g" * 16 + "TDFE"),
        ("100k:z", "ggTDFE"),
        ("200k:- 3k:a 77k:-", "gTDFE"),  # data that neither begin nor end on a grain
        ("60k:- 8k:a 60k:-", "ggTDFE"),  # data over a seam
    ],
)
def test_layouts(layout: str, order: str, tmp_path: Path) -> None:
    data = written(layout)
    model = Model(layout)
    assert walk(data).order == order
    assert_same(data, model)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(data)
    with vmdkit.open(path) as disk:
        assert disk.size == model.size
        assert disk.pread(model.size, 0) == model.pread(model.size, 0)
        assert disk.doubts == []  # type: ignore[attr-defined]
    report = check(str(path))
    assert [finding.code for finding in report.findings] == []


def test_the_numbers_of_tables() -> None:
    assert walk(written("32M:- 64k:A 96M:- 64k:b 100M:-")).tables == [1, 4]


@pytest.mark.parametrize("grain", [4 * KIB, 8 * KIB, 64 * KIB, 128 * KIB, MIB])
def test_grains_of_other_sizes(grain: int) -> None:
    model = Model("700k:A 3M:- 5k:b 100k:0 1M:z 3k:C")
    data = written(model, StreamRecipe(grain=grain))
    assert walk(data).grain == grain
    assert_same(data, model)


@pytest.mark.parametrize("level", [kernels.FAST, kernels.STORED, 1, 2, 6, 9, 12])
@pytest.mark.parametrize("layout", ["128k:A 64k:z 512:b", "4k:A 4k:z 4k:b"])
def test_levels(level: int, layout: str) -> None:
    model = Model(layout)
    data = written(model, StreamRecipe(level=level))
    assert_same(data, model)
    for packed in walk(data).packed.values():
        assert packed[0] == 0x78
        assert int.from_bytes(packed[:2], "big") % 31 == 0
        assert not packed[1] & 0x20  # no dictionary
        assert len(packed) <= 6 + 65536 + 2 * 5  # incompressible data grow by stored blocks only


def test_a_smaller_level_is_smaller() -> None:
    text = b" ".join(hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(20000))
    sizes = []
    for level in (kernels.STORED, kernels.FAST, 6, 12):
        out = io.BytesIO()
        stream(MemoryDevice(text), StreamWriter(out, len(text), StreamRecipe(level=level)))
        sizes.append(len(out.getvalue()))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_a_size_that_is_no_whole_sector() -> None:
    out = io.BytesIO()
    source = MemoryDevice(b"x" * 70001)
    stream(source, StreamWriter(out, source.size))
    found = walk(out.getvalue())
    assert found.size == 137 * 512
    assert found.pread(found.size, 0) == b"x" * 70001 + bytes(137 * 512 - 70001)


@pytest.mark.parametrize("size", [2 * TIB + 512, 64 * TIB, 128 * TIB])
def test_more_than_2_tib_of_holes(size: int, tmp_path: Path) -> None:
    model = Model(size)
    model.put("A", 512, 0)
    model.put("b", 3000, 2 * TIB - 1500) if size > 2 * TIB + 3000 else None
    model.put("C", 512, size - 512)
    data = written(model)
    found = walk(data)
    assert found.size == size
    assert_same(data, model, whole=False)
    (tmp_path / "disk.vmdk").write_bytes(data)
    with vmdkit.open(tmp_path / "disk.vmdk") as disk:
        for at in (0, 2 * TIB - 1536, size - 512):
            assert disk.pread(512, at) == model.pread(512, at)
        stored = sum(min(64 * KIB, size - at) for at in found.grains)
        assert sum(run.length for run in disk.extents() if not run.flags) == stored


def test_measure_forecasts_the_worst_case() -> None:
    for layout in ("64k:z", "100k:z 40M:- 5k:y", "512:-"):
        model = Model(layout)
        assert (
            len(written(model, StreamRecipe(level=kernels.STORED))) == measure(ModelDevice(model), "streamOptimized")[0]
        )
        assert len(written(model)) <= measure(ModelDevice(model), "streamOptimized").required


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_descriptor_is_as_vmware_writes_it() -> None:
    text = walk(
        written("64k:A 1M:-", StreamRecipe(cid="0badcafe", adapter="ide", hwversion="13"), name="my disk.vmdk")
    ).text
    long = re.search(r'longContentID = "([0-9a-f]{32})"', text)
    assert long
    assert long[1].endswith("0badcafe")
    assert text == (
        "# Disk DescriptorFile\nversion=1\n"
        'encoding="UTF-8"\nCID=0badcafe\nparentCID=ffffffff\ncreateType="streamOptimized"\n\n'
        '# Extent description\nRDONLY 2176 SPARSE "my disk.vmdk"\n\n# The Disk Data Base \n#DDB\n\n'
        'ddb.adapterType = "ide"\nddb.geometry.cylinders = "2"\nddb.geometry.heads = "16"\n'
        'ddb.geometry.sectors = "63"\n'
        f'ddb.longContentID = "{long[1]}"\nddb.toolsInstallType = "4"\nddb.toolsVersion = "2147483647"\n'
        'ddb.virtualHWVersion = "13"\n'
    )


def test_the_same_disk_gives_the_same_bytes() -> None:
    layout = "3M:A 1M:- 2M:z 5k:b"
    one = written(layout, FIXED, threads=1)
    assert written(layout, FIXED, threads=4) == one
    assert written(layout, StreamRecipe(cid="12345679")) != one
    lines = [walk(written(layout)).lines() for _ in range(2)]
    for key in ("CID", "ddb.longContentID"):
        assert lines[0][key] != lines[1][key]
        assert lines[0][key][-8:] == lines[0]["CID"]


@pytest.mark.parametrize(
    "given",
    [
        "6000c29fe40c8733ea3ec31b2b4352e9",
        "6000c29f-e40c-8733-ea3e-c31b2b4352e9",
        "60 00 C2 9f e4 0c 87 33-ea 3e c3 1b 2b 43 52 e9",
    ],
)
def test_a_uuid_is_written_as_vmware_does(given: str) -> None:
    lines = walk(written("512:A", StreamRecipe(uuid=given))).lines()
    assert lines["ddb.uuid"] == "60 00 c2 9f e4 0c 87 33-ea 3e c3 1b 2b 43 52 e9"
    assert "ddb.uuid" not in walk(written("512:A")).lines()


def test_the_room_for_the_descriptor() -> None:
    data = written("64k:A", StreamRecipe(area=512 * 2))
    assert int.from_bytes(data[36:44], "little") == 2
    assert_same(data, Model("64k:A"))
    with pytest.raises(UsageError, match=r"the descriptor has \d+ bytes; 512 are reserved"):
        written("64k:A", StreamRecipe(area=512), name="n" * 100)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"adapter": "nvme"}, "adapter 'nvme' is unknown"),
        ({"hwversion": "0"}, "hardware version '0'"),
        ({"grain": 3000}, "a grain of 3000 bytes"),
        ({"grain": 2 * MIB}, "a grain of 2097152 bytes"),
        ({"level": 13}, r"level 13; 1 \(fast\) to 12 \(small\) are due"),
        ({"level": -2}, "level -2"),
        ({"area": 100}, "100 bytes for the descriptor"),
        ({"cid": "ffffffff"}, "content ID 'ffffffff'"),
        ({"cid": "0"}, "content ID '0'"),
        ({"cid": "123456789"}, "content ID '123456789'"),
        ({"cid": "xyz"}, "content ID 'xyz'"),
        ({"uuid": "00"}, "UUID '00'"),
        ({"uuid": "g" * 32}, "UUID 'g"),
    ],
)
def test_recipes_that_make_no_sense(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StreamWriter(io.BytesIO(), 512, StreamRecipe(**recipe))


def test_sizes_that_no_stream_has() -> None:
    with pytest.raises(UsageError, match="at least one byte"):
        StreamWriter(io.BytesIO(), 0)
    with pytest.raises(UsageError, match=r"grains of 64 KiB holds at most 128 TiB"):
        StreamWriter(io.BytesIO(), 128 * TIB + 1)
    with pytest.raises(UsageError, match=r"grains of 4 KiB holds at most 8 TiB"):
        StreamWriter(io.BytesIO(), 9 * TIB, StreamRecipe(grain=4 * KIB))


def test_a_name_that_no_descriptor_can_hold() -> None:
    with pytest.raises(UsageError, match="quotation marks"):
        StreamWriter(io.BytesIO(), 512, name='a"\nRW 1 FLAT "/etc/passwd" 0\n"')


# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Appended:
    """An output that can do nothing but append."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.writers: set[int] = set()

    def write(self, data: bytes | memoryview) -> None:
        assert data
        self.writers.add(threading.get_ident())
        self.data += data


def test_one_pass_by_one_thread() -> None:
    out = Appended()
    source = ModelDevice(Model("40M:A"))
    writer: Sink[list[Grains]] = StreamWriter(out, source.size)
    stream(source, writer, CopyOptions(threads=4))
    assert_same(bytes(out.data), source.model)
    assert out.writers == {threading.get_ident()}


def test_nothing_is_written_before_the_first_grain_or_the_end() -> None:
    out = Appended()
    writer = StreamWriter(out, MIB, FIXED)
    assert not out.data
    writer.zeros(0, MIB)
    assert not out.data
    writer.finish()
    assert walk(bytes(out.data)).order == "DFE"


def test_behind_something_else_and_digested() -> None:
    """A member of an archive: the sectors in the tables count from the begin of the member."""
    out = io.BytesIO()
    out.write(b"header of the member")
    digest = hashlib.sha256()
    tee = Tee(out, digest)
    source = ModelDevice(Model("3M:A 64k:z"))
    writer = StreamWriter(tee, source.size)
    stream(source, writer)
    data = out.getvalue()[20:]
    assert_same(data, source.model)
    assert digest.digest() == hashlib.sha256(data).digest()
    assert tee.written == writer.written == len(data)
    assert writer.grains == 49


def test_without_finish_it_is_cut_off(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = StreamWriter(out, MIB)
    view = memoryview(b"A" * MIB)
    writer.put(writer.pack(0, view))
    (tmp_path / "disk.vmdk").write_bytes(out.getvalue())
    with pytest.raises(vmdkit.FormatError, match="probably cut off"):
        vmdkit.open(tmp_path / "disk.vmdk")
    with vmdkit.open(tmp_path / "disk.vmdk", salvage=True) as disk:
        assert disk.pread(MIB, 0) == view


def test_a_piece_may_lie_over_seams_of_tables() -> None:
    out = io.BytesIO()
    data = Model("3M:A 4M:- 1M:b").pread(8 << 20, 0)
    writer = StreamWriter(out, len(data), StreamRecipe(grain=4 * KIB, level=kernels.FAST))
    writer.put(writer.pack(0, memoryview(data)))
    writer.finish()
    found = walk(out.getvalue())
    assert found.tables == [0, 1, 3]
    assert found.pread(len(data), 0) == data


def test_what_leaves_the_disk_is_refused() -> None:
    writer = StreamWriter(io.BytesIO(), 100 * KIB)
    writer.pack(64 * KIB, memoryview(b"A" * 36 * KIB))
    for offset, count in ((64 * KIB, 36 * KIB + 1), (128 * KIB, 1), (64 * MIB, 64 * KIB)):
        with pytest.raises(UsageError, match="leave the disk, which has 102400"):
            writer.pack(offset, memoryview(b"A" * count))


def test_the_order_is_watched() -> None:
    writer = StreamWriter(io.BytesIO(), 100 * MIB)
    view = memoryview(b"A" * 64 * KIB)
    first, second, other = writer.pack(0, view), writer.pack(64 * KIB, view), writer.pack(64 * MIB, view)
    writer.put(second)
    for wrong in (second, first):
        with pytest.raises(UsageError, match="in the order of the disk, each once"):
            writer.put(wrong)
    writer.put(other)
    with pytest.raises(UsageError, match="in the order of the disk, each once"):
        writer.put(first)
    with pytest.raises(UsageError, match="is not where a grain"):
        writer.pack(512, view)


def test_what_begins_beyond_2_tib_of_the_file_cannot_be_pointed_to() -> None:
    class Nowhere:
        def write(self, data: bytes | memoryview) -> None:
            pass

    writer = StreamWriter(Nowhere(), 100 * MIB, StreamRecipe(level=kernels.STORED))
    view = memoryview(os.urandom(64 * KIB))
    writer.put(writer.pack(0, view))
    writer.written = 2 * TIB - 66048  # one more grain fits to the byte
    writer.put(writer.pack(64 * KIB, view))
    assert writer.written == 2 * TIB
    with pytest.raises(UnsupportedError, match="longer than 2 TiB"):
        writer.put(writer.pack(128 * KIB, view))
    with pytest.raises(UnsupportedError, match="longer than 2 TiB"):
        writer.finish()


@pytest.mark.parametrize("jump", [5 << 30, 9 << 30, 2 * TIB - (10 << 20)])
def test_grains_far_behind_in_the_file(jump: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    model = far_stream(path, jump)
    assert path.stat().st_size > jump
    with vmdkit.open(path) as disk:
        for at in range(0, model.size, 64 * KIB):
            count = min(64 * KIB, model.size - at)
            assert disk.pread(count, at) == model.pread(count, at)


def test_an_output_that_fails() -> None:
    class Full:
        def write(self, data: bytes | memoryview) -> None:
            raise OSError(28, "No space left on device")

    source = ModelDevice(Model("3M:A"))
    with pytest.raises(OSError, match="No space left"):
        stream(source, StreamWriter(Full(), source.size))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmdkit")]


def test_an_incompressible_grain_is_stored() -> None:
    random = os.urandom(64 * KIB)
    writer = StreamWriter(io.BytesIO(), 64 * KIB)
    (grains,) = writer.pack(0, memoryview(random))
    assert len(grains.data) == 129 * 512
    assert zlib.decompress(grains.data[12 : 12 + 65552]) == random
