# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdkit
from vmdkit.cli.create import recipe_options
from vmdkit.cli.main import main
from vmdkit.errors import ChainError, UsageError
from vmdkit.maker import Workshop, create
from vmdkit.units import GIB, KIB, MIB, TIB
from vmdkit.vmdk.create import SHAPES, SPARSE_PIECE, Recipe, new_disk
from vmdkit.vmdk.disk import VmdkDisk

if TYPE_CHECKING:
    from pathlib import Path

ALL = [shape.name for shape in SHAPES.values()]
CHILDREN = [shape.name for shape in SHAPES.values() if shape.child]


def disk(path: Path) -> VmdkDisk:
    opened = vmdkit.open(path)
    assert isinstance(opened, VmdkDisk)
    return opened


def header(path: Path) -> dict[str, Any]:
    """Unpack the header by the published table, not by the package's own."""
    fields = struct.unpack("<4sIIQQQQIQQQB4sH", path.read_bytes()[:79])
    names = "magic version flags capacity grain desc desc_size gtes rgd gd overhead unclean newlines compress"
    return dict(zip(names.split(), fields, strict=True))


def test_monolithic_header_is_vmwares(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    create(path, 10 * MIB)
    assert header(path) == {
        "magic": b"KDMV", "version": 1, "flags": 3, "capacity": 20480, "grain": 128, "desc": 1, "desc_size": 20,
        "gtes": 512, "rgd": 21, "gd": 26, "overhead": 128, "unclean": 0, "newlines": b"\n \r\n", "compress": 0,
    }  # fmt: skip
    raw = path.read_bytes()
    assert len(raw) == 128 * 512
    assert struct.unpack_from("<I", raw, 21 * 512) == (22,)
    assert struct.unpack_from("<I", raw, 26 * 512) == (27,)
    assert not any(raw[22 * 512 : 26 * 512])
    assert not any(raw[27 * 512 :])
    assert not any(raw[79:512])


def test_split_extent_header_is_vmwares(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 10 * MIB, subformat="twoGbMaxExtentSparse")
    found = header(tmp_path / "a-s001.vmdk")
    assert (found["desc"], found["desc_size"], found["rgd"], found["gd"], found["overhead"]) == (0, 0, 1, 6, 128)
    raw = (tmp_path / "a-s001.vmdk").read_bytes()
    assert struct.unpack_from("<I", raw, 512) == (2,)
    assert struct.unpack_from("<I", raw, 6 * 512) == (7,)


def test_tables_are_contiguous_and_in_order(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 10 * GIB)
    found, raw = header(tmp_path / "a.vmdk"), (tmp_path / "a.vmdk").read_bytes()
    count = 10 * GIB // (32 * MIB)
    for at in (found["rgd"], found["gd"]):
        first = at + -(-count * 4 // 512)
        assert struct.unpack_from(f"<{count}I", raw, at * 512) == tuple(range(first, first + 4 * count, 4))
    assert found["gd"] == found["rgd"] + -(-count * 4 // 512) + 4 * count
    assert found["overhead"] % 128 == 0
    assert 0 <= found["overhead"] - (found["gd"] + -(-count * 4 // 512) + 4 * count) < 128
    assert len(raw) == found["overhead"] * 512


def test_cowd_header(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 8 * MIB, subformat="vmfsSparse")
    raw = (tmp_path / "a-delta.vmdk").read_bytes()
    assert struct.unpack_from("<4sIIIIIII", raw) == (b"COWD", 1, 3, 16384, 1, 4, 4, 5)
    assert len(raw) == 5 * 512
    assert not any(raw[32:])


@pytest.mark.parametrize("subformat", ALL)
def test_a_new_disk_is_zero_and_without_doubts(subformat: str, tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 3 * MIB + 512, subformat=subformat, adapter="ide", hwversion="7")
    with disk(tmp_path / "a.vmdk") as opened:
        assert opened.size == 3 * MIB + 512
        assert not any(opened.pread(opened.size, 0))
        facts = opened.facts()
    assert facts["doubts"] == []
    assert (facts["subformat"], facts["adapter"], facts["hardware_version"]) == (subformat, "ide", "7")
    assert facts["cid"] not in ("00000000", "ffffffff", "fffffffe")
    with vmdkit.open(tmp_path / "a.vmdk", writable=True) as opened_again:
        opened_again.pwrite(b"x" * 70000, 3 * MIB - 69488)
    with disk(tmp_path / "a.vmdk") as opened:
        assert opened.pread(70000, 3 * MIB - 69488) == b"x" * 70000
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_thick_is_allocated_and_thin_is_not(tmp_path: Path) -> None:
    create(tmp_path / "thick.vmdk", MIB, subformat="vmfs")
    create(tmp_path / "thin.vmdk", MIB, subformat="vmfs", thin=True)
    create(tmp_path / "full.vmdk", MIB, subformat="monolithicFlat", preallocate=True)
    blocks = {name: (tmp_path / f"{name}-flat.vmdk").stat().st_blocks * 512 for name in ("thick", "thin", "full")}
    assert blocks == {"thick": MIB, "thin": 0, "full": MIB}
    assert 'ddb.thinProvisioned = "1"' in (tmp_path / "thin.vmdk").read_text()
    assert "thinProvisioned" not in (tmp_path / "thick.vmdk").read_text()


@pytest.mark.parametrize("grain", [4 * KIB, 64 * KIB, MIB])
def test_grain_and_zeroed_grain(grain: int, tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 40 * MIB, grain=grain, zeroed_grain=True)
    found = header(tmp_path / "a.vmdk")
    assert (found["version"], found["flags"], found["grain"]) == (2, 7, grain // 512)
    with vmdkit.open(tmp_path / "a.vmdk", writable=True) as opened:
        opened.pwrite(b"y" * 5000, 33 * MIB)
        opened.zero(grain, 33 * MIB)
        assert not any(opened.pread(4096, 33 * MIB))


def test_pieces_of_a_split_disk(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", 2 * SPARSE_PIECE + 512, subformat="twoGbMaxExtentSparse")
    create(tmp_path / "b.vmdk", 3 * GIB, subformat="twoGbMaxExtentFlat")
    lines = [line for line in (tmp_path / "a.vmdk").read_text().splitlines() if line.startswith("RW")]
    assert lines == [
        'RW 4192256 SPARSE "a-s001.vmdk"',
        'RW 4192256 SPARSE "a-s002.vmdk"',
        'RW 1 SPARSE "a-s003.vmdk"',
    ]
    lines = [line for line in (tmp_path / "b.vmdk").read_text().splitlines() if line.startswith("RW")]
    assert lines == ['RW 4193792 FLAT "b-f001.vmdk" 0', 'RW 2097664 FLAT "b-f002.vmdk" 0']


@pytest.mark.parametrize("base", ALL)
@pytest.mark.parametrize("subformat", CHILDREN)
def test_children(base: str, subformat: str, tmp_path: Path) -> None:
    create(tmp_path / "base.vmdk", MIB, subformat=base)
    with vmdkit.open(tmp_path / "base.vmdk", writable=True) as opened:
        opened.pwrite(b"B" * 4096, 1000)
    create(tmp_path / "child.vmdk", parent=tmp_path / "base.vmdk", subformat=subformat)
    with disk(tmp_path / "child.vmdk") as child:
        text = child.descriptor
        assert child.parent is not None
        assert (text.parent_hint, text.create_type) == ("base.vmdk", subformat)
        assert list(text.ddb) == ["longcontentid"]
        assert int(text.ddb["longcontentid"][24:], 16) == text.cid
        assert child.pread(4096, 1000) == b"B" * 4096
        assert child.facts()["doubts"] == []


def test_the_hint_is_relative_to_the_child(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    create(tmp_path / "base.vmdk", MIB)
    create(tmp_path / "below" / "child.vmdk", parent=tmp_path / "base.vmdk")
    with vmdkit.open(tmp_path / "below" / "child.vmdk", allow_paths=[str(tmp_path)]) as child:
        assert isinstance(child, VmdkDisk)
        assert child.descriptor.parent_hint == "../base.vmdk"


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "a-flat.vmdk").write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists"):
        create(tmp_path / "a.vmdk", MIB, subformat="monolithicFlat")
    assert sorted(os.listdir(tmp_path)) == ["a-flat.vmdk"]
    assert (tmp_path / "a-flat.vmdk").read_bytes() == b"precious"
    create(tmp_path / "a.vmdk", MIB, subformat="monolithicFlat", overwrite=True)
    create(tmp_path / "a.vmdk", 2 * MIB, overwrite=True)
    with vmdkit.open(tmp_path / "a.vmdk") as opened:
        assert opened.size == 2 * MIB


def test_a_parent_is_not_overwritten(tmp_path: Path) -> None:
    create(tmp_path / "a.vmdk", MIB)
    with pytest.raises(UsageError, match="made of this very file"):
        create(tmp_path / "a.vmdk", parent=tmp_path / "a.vmdk", overwrite=True)


class Failing(Workshop):
    """Fails at the N-th name that is given."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().rename(old, new, replace=replace)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_nothing_is_left_after_a_failure(after: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "a.vmdk", 3 * GIB, subformat="twoGbMaxExtentSparse", files=Failing(after))
    assert os.listdir(tmp_path) == []


def test_a_disk_being_filled_appears_at_the_end(tmp_path: Path) -> None:
    with new_disk(Workshop(), str(tmp_path / "a.vmdk"), MIB, Recipe("vmfsSparse")) as filling:
        filling.pwrite(b"F" * 100_000, 5)
        assert not (tmp_path / "a.vmdk").exists()
    with disk(tmp_path / "a.vmdk") as opened:
        assert opened.pread(100_000, 5) == b"F" * 100_000
        assert opened.facts()["doubts"] == []
    with pytest.raises(RuntimeError), new_disk(Workshop(), str(tmp_path / "b.vmdk"), MIB):
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["a-delta.vmdk", "a.vmdk"]


@pytest.mark.parametrize(
    ("size", "options", "text"),
    [
        (0, {}, "at least one byte"),
        (2 * TIB + 512, {}, "at most 2 TiB; twoGb"),
        (2 * TIB, {"subformat": "vmfsSparse"}, "holds at most"),
        (MIB, {"subformat": "qcow2"}, "cannot be created"),
        (MIB, {"adapter": "pvscsi"}, "say lsilogic too"),
        (MIB, {"hwversion": "x"}, "1 to 99"),
        (MIB, {"grain": 3000}, "power of two from 4 KiB"),
        (MIB, {"grain": 2 * MIB}, "to 1 MiB"),
        (MIB, {"grain": 4096, "subformat": "vmfs"}, "no grains"),
        (MIB, {"thin": True}, "only vmfs"),
        (MIB, {"preallocate": True}, "only flat"),
        (MIB, {"zeroed_grain": True, "subformat": "vmfsSparse"}, "no entry"),
    ],
)
def test_nonsense(size: int, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        create(tmp_path / "a.vmdk", size, **options)
    assert os.listdir(tmp_path) == []


def test_children_that_cannot_be(tmp_path: Path) -> None:
    create(tmp_path / "base.vmdk", MIB)
    with pytest.raises(UsageError, match="cannot have a parent"):
        create(tmp_path / "child.vmdk", parent=tmp_path / "base.vmdk", subformat="vmfs")
    with pytest.raises(UsageError, match="size of its parent"):
        create(tmp_path / "child.vmdk", 2 * MIB, parent=tmp_path / "base.vmdk")
    path = tmp_path / "base.vmdk"
    raw = path.read_bytes()
    at = raw.index(b"\nCID=") + 5
    path.write_bytes(raw[:at] + b"ffffffff" + raw[at + 8 :])
    with pytest.raises(ChainError, match="no parent"):
        create(tmp_path / "child.vmdk", parent=path)
    with pytest.raises(UsageError, match="quotation"):
        create(tmp_path / 'a"b.vmdk', MIB)


def test_two_tebibytes_in_no_time(tmp_path: Path) -> None:
    began = time.monotonic()
    create(tmp_path / "a.vmdk", 2 * TIB)
    assert time.monotonic() - began < 1
    assert (tmp_path / "a.vmdk").stat().st_blocks * 512 < 2 * MIB
    with disk(tmp_path / "a.vmdk") as opened:
        assert not any(opened.pread(65536, 2 * TIB - 65536))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 6 * GIB), st.data())
def test_any_size(subformat: str, size: int, data: st.DataObject) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as home:
        create(Path(home) / "a.vmdk", size, subformat=subformat, thin=subformat == "vmfs")
        with disk(Path(home) / "a.vmdk") as opened:
            assert opened.size == -(-size // 512) * 512
            assert opened.doubts == []
            at = data.draw(st.integers(0, opened.size - 1))
            assert opened.pread(1, at) == b"\0"


def test_options_as_typed() -> None:
    words = ["subformat=vmfs,thin=on", "adapter_type=ide,grain=128k", "zeroed_grain,preallocate=off"]
    assert recipe_options(words) == {
        "subformat": "vmfs", "thin": True, "adapter": "ide", "grain": 128 * KIB, "zeroed_grain": True,
        "preallocate": False,
    }  # fmt: skip
    for wrong in ("compat=1", "thin=perhaps", "subformat", "grain="):
        with pytest.raises(UsageError):
            recipe_options([wrong])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.vmdk"
    assert main(["create", str(path), "1M", "-o", "subformat=monolithicFlat", "--json"]) == 0
    assert '"subformat": "monolithicFlat"' in capsys.readouterr().out
    assert main(["create", str(path), "1M"]) == 1
    assert "it exists; -f overwrites it" in capsys.readouterr().err
    assert main(["create", str(tmp_path / "c.vmdk"), "--parent", str(path), "-v"]) == 0
    assert "monolithicSparse, 1 MiB" in capsys.readouterr().out
    assert main(["create", str(tmp_path / "d.vmdk")]) == 1
    assert "a size is needed" in capsys.readouterr().err
