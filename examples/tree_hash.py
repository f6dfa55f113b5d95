#!/usr/bin/env python3
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tree hash of docs/hash.md in plain Python, for those who would rather not trust vmdkit: they share no code.

python3 tree_hash.py RAW_FILE [BLOCK_SIZE] [sha256|blake3]
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import BinaryIO


def tree_hash(file: BinaryIO, size: int, block: int = 65536, algorithm: str = "sha256") -> str:
    def h(*parts: bytes) -> bytes:
        return new(b"".join(parts)).digest()

    def subtree(index: int, level: int) -> bytes:
        offset = index * block << level
        if offset >= size:
            return zero[level]
        if level:
            return h(b"\1", subtree(2 * index, level - 1), subtree(2 * index + 1, level - 1))
        file.seek(offset)
        return h(file.read(min(block, size - offset)).ljust(block, b"\0"))

    new = hashlib.sha256 if algorithm == "sha256" else __import__("blake3").blake3
    height = 0
    while block << height < size:
        height += 1
    zero = [h(bytes(block))]
    for _ in range(height):
        zero.append(h(b"\1", zero[-1], zero[-1]))
    numbers = size.to_bytes(8, "little") + block.to_bytes(8, "little")
    return h(b"\2vmdkit tree 1\0\0", numbers, subtree(0, height)).hex()


if __name__ == "__main__":
    block_size = int(sys.argv[2]) if len(sys.argv) > 2 else 65536
    name = sys.argv[3] if len(sys.argv) > 3 else "sha256"
    with open(sys.argv[1], "rb") as image:
        print(tree_hash(image, image.seek(0, os.SEEK_END), block_size, name))
