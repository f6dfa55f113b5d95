# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

import witness
from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ops.tree import MOST_SPANS, Hasher, Shape, Tree, TreeDigest, parse_digest
from vmdkit.units import GIB, KIB, MIB, TIB

PAGE = Path(__file__).parents[3] / "docs" / "hash.md"
SMALL = Shape(block=4 * KIB)


def digest(data: bytes, shape: Shape = SMALL) -> TreeDigest:
    hasher = Hasher(shape)
    tree = Tree(hasher, len(data))
    padded = data.ljust(-(-len(data) // shape.block) * shape.block, b"\0")
    for leaf in hasher.leaves(memoryview(padded)):
        tree.push(leaf, 0)
    return tree.finish()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096, 4 * 4096, 5 * 4096 - 1])
def test_agrees_with_the_definition(size: int) -> None:
    data = bytes(1 + number % 251 for number in range(size))
    assert digest(data).digest.hex() == witness.tree_hash(data, 4096)


def test_one_block_by_hand() -> None:
    leaf = hashlib.sha256(b"abc".ljust(4096, b"\0")).digest()
    root = b"\2vmdkit tree 1\0\0" + (3).to_bytes(8, "little") + (4096).to_bytes(8, "little") + leaf
    assert len(root) == 64
    assert digest(b"abc").digest == hashlib.sha256(root).digest()


def test_two_blocks_by_hand() -> None:
    leaves = [hashlib.sha256(letter * 4096).digest() for letter in (b"a", b"b")]
    top = hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest()
    root = b"\2vmdkit tree 1\0\0" + (8192).to_bytes(8, "little") + (4096).to_bytes(8, "little") + top
    assert digest(b"a" * 4096 + b"b" * 4096).digest == hashlib.sha256(root).digest()


def test_the_size_counts_although_zeros_look_alike() -> None:
    digests = {digest(b"x" + bytes(zeros)).digest for zeros in (0, 1, 4095, 4096, 8192)}
    assert len(digests) == 5


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 1000, 1 << 40, (1 << 40) + 1])
def test_runs_of_zeros_are_put_in_whole(count: int) -> None:
    hasher = Hasher(SMALL)
    tree = Tree(hasher, (count + 2) * 4096)
    tree.push(hasher.leaf(memoryview(b"a" * 4096)), 0)
    tree.zeros(count)
    tree.push(hasher.leaf(memoryview(b"b" * 4096)), 0)
    found = tree.finish()
    assert len(found.spans) == 2
    if count <= 1000:
        assert found == digest(b"a" * 4096 + bytes(count * 4096) + b"b" * 4096)


def test_zeros_need_not_be_put_in_at_the_end() -> None:
    assert Tree(Hasher(SMALL), 5 * 4096).finish() == digest(bytes(5 * 4096))


def test_a_subtree_may_be_put_in_whole() -> None:
    data = b"".join(bytes([number]) * 4096 for number in range(1, 7))
    hasher = Hasher(SMALL)
    leaves = hasher.leaves(memoryview(data))
    tree = Tree(hasher, 4096 * 4096)  # spans of 4 blocks
    for joined in hasher.fold(leaves[:4], 2):
        tree.push(joined, 2)
    for leaf in leaves[4:]:
        tree.push(leaf, 0)
    assert tree.finish() == digest(data.ljust(4096 * 4096, b"\0"))


def test_a_subtree_out_of_place_is_refused() -> None:
    hasher = Hasher(SMALL)
    tree = Tree(hasher, 4096 * 4096)
    tree.push(hasher.zero(0), 0)
    with pytest.raises(UsageError, match="no subtree of level 1 may be put at block 1"):
        tree.push(hasher.zero(1), 1)


def test_a_subtree_behind_the_end_is_refused() -> None:
    hasher = Hasher(SMALL)
    tree = Tree(hasher, 4096)
    tree.push(hasher.zero(0), 0)
    with pytest.raises(UsageError, match="at block 1"):
        tree.push(hasher.zero(0), 0)


def test_a_subtree_whose_spans_are_not_known_is_refused() -> None:
    hasher = Hasher(SMALL)
    with pytest.raises(UsageError, match="no subtree of level 3"):
        Tree(hasher, 4096 * 4096).push(b"?" * 32, 3)


@pytest.mark.parametrize(
    ("size", "span"),
    [(0, 64 * KIB), (64 * MIB, 64 * KIB), (64 * MIB + 1, 128 * KIB), (TIB, GIB), (1 << 63, 1 << 53)],
)
def test_spans_are_as_small_as_their_number_allows(size: int, span: int) -> None:
    found = Tree(Hasher(Shape()), size).finish()
    assert found.span == span
    assert span == 64 * KIB or MOST_SPANS // 2 < -(-size // span) <= MOST_SPANS


def test_spans_that_are_not_zero_are_kept() -> None:
    found = digest(b"a" * 4096 + bytes(4096) + b"c")
    assert sorted(found.spans) == [0, 2]
    assert found.spans[0] == hashlib.sha256(b"a" * 4096).digest()


def test_where_two_differ() -> None:
    one, two = (digest(b"a" * 4096 + middle * 4096 + b"c") for middle in (b"\0", b"b"))
    assert one.first_difference(two) == two.first_difference(one) == (4096, 4096)
    assert one.first_difference(one) is None
    other = digest(b"a" * 4096 + bytes(4096) + b"d")
    assert one.first_difference(other) == (8192, 1)


def test_spans_of_two_lengths_are_not_compared() -> None:
    one, two = (Tree(Hasher(SMALL), size).finish() for size in (4 * MIB, 8 * MIB))
    with pytest.raises(UsageError, match="spans of 4096 and 8192 bytes"):
        one.first_difference(two)


@pytest.mark.parametrize("shape", [Shape(), Shape("sha256", 4 * KIB), Shape("sha256", 16 * MIB)])
def test_text_and_back(shape: Shape) -> None:
    found = Tree(Hasher(shape), 100).finish()
    assert parse_digest(str(found)) == (shape, found.digest)


@pytest.mark.parametrize(
    "text",
    ["", "tree-sha256-64k", "tree-sha256-64k:00", "tree-sha256-64k:" + "g" * 64, "tree-sha256-65k:" + "0" * 64,
     "tree-md5-64k:" + "0" * 64, "tree-sha256-1k:" + "0" * 64, "tree-sha256-32M:" + "0" * 64],
)  # fmt: skip
def test_text_that_is_no_digest(text: str) -> None:
    with pytest.raises(UsageError):
        parse_digest(text)


@pytest.mark.parametrize("block", [0, 1, 2 * KIB, 65535, 3 * 64 * KIB, 32 * MIB])
def test_blocks_that_are_refused(block: int) -> None:
    with pytest.raises(UsageError, match="a power of two from 4 KiB to 16 MiB is due"):
        Shape(block=block)


def test_blake3() -> None:
    pytest.importorskip("blake3")
    data = b"a" * 10000
    assert digest(data, Shape("blake3", 4096)).digest.hex() == witness.tree_hash(data, 4096, "blake3")


def test_blake3_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vmdkit\[hash\]'"):
        Shape("blake3")


def _vectors() -> list[tuple[str, int, str, str]]:
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (sha256|blake3) \| `([0-9a-f]{64})` \|$", PAGE.read_text(), re.MULTILINE)
    return [(content, int(block), algorithm, hexadecimal) for content, block, algorithm, hexadecimal in rows]


CONTENTS = {
    "nothing": b"",
    "`abc`": b"abc",
    "65536 zeros": bytes(65536),
    "65536 zeros, then `a`": bytes(65536) + b"a",
    "1000000 bytes, byte n is n mod 251": bytes(number % 251 for number in range(1000000)),
}


@pytest.mark.parametrize(("content", "block", "algorithm", "expected"), _vectors())
def test_what_the_page_says(content: str, block: int, algorithm: str, expected: str) -> None:
    if algorithm == "blake3":
        pytest.importorskip("blake3")
    assert digest(CONTENTS[content], Shape(algorithm, block)).digest.hex() == expected
    assert witness.tree_hash(CONTENTS[content], block, algorithm) == expected


def test_the_page_has_vectors() -> None:
    assert len(_vectors()) == 8
