# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmdkit
from vmdkit import checker
from vmdkit.errors import VmdkitError
from vmdkit.maker import Workshop
from vmdkit.vmdk import create as creation
from vmdkit.vmdk import fresh
from vmdkit.vmdk.create import Recipe, new_disk

if TYPE_CHECKING:
    from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
SIZE = 5 * MIB + 512
RECIPES = [
    Recipe("monolithicSparse", grain=4 * KIB),
    Recipe("monolithicSparse", grain=64 * KIB, zeroed_grain=True),
    Recipe("twoGbMaxExtentSparse", grain=4 * KIB),
    Recipe("vmfsSparse"),
    Recipe("vmfsSparse", grain=4 * KIB),
    Recipe("twoGbMaxExtentFlat"),
    Recipe("vmfs", thin=True),
]
CHILDREN = [recipe for recipe in RECIPES if recipe.shape.child]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces of 2 MiB, and let tables go to the file from the third on."""
    shapes = {
        key: shape if not shape.piece else vars(creation)["Shape"](**{**_fields(shape), "piece": 2 * MIB})
        for key, shape in creation.SHAPES.items()
    }
    monkeypatch.setattr(creation, "SHAPES", shapes)
    monkeypatch.setattr(fresh, "_MOST_ENTRIES", 1024)


def _fields(shape: Any) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def named(recipe: Recipe) -> str:
    return f"{recipe.subformat}-{recipe.grain}{'-v2' * recipe.zeroed_grain}"


step = st.tuples(
    st.sampled_from(["write", "place", "zero", "full"]), st.integers(0, SIZE - 1), st.integers(1, 300 * KIB)
)


@pytest.mark.parametrize("with_parent", [False, True])
@pytest.mark.parametrize("recipe", RECIPES, ids=named)
@settings(max_examples=12, deadline=None)
@given(steps=st.lists(step, max_size=12))
def test_any_order_of_writes(recipe: Recipe, with_parent: bool, steps: list[tuple[str, int, int]]) -> None:
    if with_parent and not recipe.shape.child:
        pytest.skip("raw bytes cannot have a parent")
    with tempfile.TemporaryDirectory() as home:
        path, model = f"{home}/new.vmdk", bytearray(SIZE)
        parent = None
        if with_parent:
            vmdkit.create(f"{home}/base.vmdk", SIZE)
            with vmdkit.open(f"{home}/base.vmdk", writable=True) as base:
                base.pwrite(b"P" * (3 * MIB), MIB)
            model[MIB : 4 * MIB] = b"P" * (3 * MIB)
            parent = Workshop().open_disk(f"{home}/base.vmdk")
        with new_disk(Workshop(), path, SIZE, recipe, parent=parent) as disk:
            for number, (verb, offset, count) in enumerate(steps):
                count = min(count, SIZE - offset)
                data = bytes([65 + number]) * count if verb in ("write", "place") else bytes(count)
                do(disk, verb, offset, data)
                model[offset : offset + count] = data
            assert disk.pread(SIZE, 0) == model
        with vmdkit.open(path) as made:
            assert made.pread(SIZE, 0) == model
        if parent is not None:
            parent.close()
        assert checker.check(path).findings == []


def do(disk: Any, verb: str, offset: int, data: bytes) -> None:
    if verb == "write":
        disk.pwrite(data, offset)
    elif verb in ("zero", "full"):
        disk.zero(len(data), offset, no_hole=verb == "full")
    else:
        done = 0
        while done < len(data):
            run = disk.place(len(data) - done, offset + done)
            os.pwrite(run.storage.fileno(), data[done : done + run.length], run.at)
            done += run.length


def test_a_run_gets_grains_side_by_side(tmp_path: Path) -> None:
    """So the kernel moves it in one piece, over the end of a grain table."""
    recipe = Recipe(grain=4 * KIB)
    with new_disk(Workshop(), str(tmp_path / "a.vmdk"), 16 * MIB, recipe) as disk:
        run = disk.place(8 * MIB, 2 * KIB)
        assert run is not None
        assert (run.offset, run.length) == (2 * KIB, 8 * MIB)
        again = disk.place(MIB, 2 * KIB)
        assert again is not None
        assert again.at == run.at
        assert again.length == MIB


def test_the_header_comes_last(tmp_path: Path) -> None:
    with new_disk(Workshop(), str(tmp_path / "a.vmdk"), MIB) as disk:
        disk.pwrite(b"A" * 4096, 0)
        (part,) = tmp_path.iterdir()
        assert part.read_bytes()[:4] == bytes(4)
    assert (tmp_path / "a.vmdk").read_bytes()[:4] == b"KDMV"


def test_many_threads_share_grains(tmp_path: Path) -> None:
    path = str(tmp_path / "a.vmdk")
    with new_disk(Workshop(), path, MIB) as disk:

        def work(first: int) -> None:
            for piece in range(first, MIB // 4096, 4):
                disk.pwrite(bytes([piece % 251 + 1]) * 4096, piece * 4096)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with vmdkit.open(path) as made:
        for piece in range(MIB // 4096):
            assert made.pread(4096, piece * 4096) == bytes([piece % 251 + 1]) * 4096
    assert os.stat(path).st_size == MIB + 64 * KIB


def test_a_file_grows_as_far_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files (or a file system's own) stops at what is needed, not at what would be handy."""
    truncate, limit = os.ftruncate, 300 * KIB

    def limited(fd: int, size: int) -> None:
        if size > limit:
            raise OSError(27, "File too large")
        truncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", limited)
    path = str(tmp_path / "a.vmdk")
    with new_disk(Workshop(), path, MIB) as disk:
        disk.pwrite(b"A" * 128 * KIB, 0)
    with vmdkit.open(path) as made:
        assert made.pread(128 * KIB, 0) == b"A" * 128 * KIB
    with pytest.raises(OSError, match="File too large"), new_disk(Workshop(), str(tmp_path / "b.vmdk"), MIB) as disk:
        disk.pwrite(b"A" * 256 * KIB, 0)


def test_pointers_end_at_2_tib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "_HIGHEST", 128 * KIB)
    with (
        pytest.raises(VmdkitError, match="reached the 2 TiB that pointers can say"),
        new_disk(Workshop(), str(tmp_path / "a.vmdk"), MIB) as disk,
    ):
        disk.pwrite(b"A" * 128 * KIB, 0)


def test_few_tables_are_in_memory(tmp_path: Path) -> None:
    """Whatever is written and read, back and forth."""
    with new_disk(Workshop(), str(tmp_path / "a.vmdk"), 32 * MIB, Recipe(grain=4 * KIB)) as disk:
        (extent,) = disk.extent_files
        assert isinstance(extent, fresh.FreshExtent)
        for _ in range(2):
            for at in range(0, 32 * MIB, MIB):
                disk.pwrite(bytes([at // MIB + 1]) * 4 * KIB, at)
                assert len(extent._tables) <= 2
        for at in range(0, 32 * MIB, MIB):
            assert disk.pread(4 * KIB, at) == bytes([at // MIB + 1]) * 4 * KIB
            assert len(extent._tables) <= 2


def test_a_cowd_base_has_every_grain(tmp_path: Path) -> None:
    """Without a parent nothing may be left for a parent to say, and zeros cost no space."""
    path = str(tmp_path / "a.vmdk")
    with new_disk(Workshop(), path, 4 * MIB, Recipe("vmfsSparse")) as disk:
        disk.pwrite(b"A" * 512, MIB)
    with vmdkit.open(path) as made:
        assert [tuple(run) for run in made.extents(context="qemu:allocation-depth")] == [(0, 4 * MIB, 1)]
    assert os.stat(tmp_path / "a-delta.vmdk").st_blocks * 512 < 128 * KIB
