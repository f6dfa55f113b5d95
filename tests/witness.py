# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tree hash as ``examples/tree_hash.py`` computes it, which shares no code with vmdkit."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

_PATH = Path(__file__).parents[1] / "examples" / "tree_hash.py"


def tree_hash(data: bytes, block: int = 65536, algorithm: str = "sha256") -> str:
    """Return the digest of ``data`` in hexadecimal."""
    spec = importlib.util.spec_from_file_location("example_tree_hash", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    digest: str = module.tree_hash(io.BytesIO(data), len(data), block, algorithm)
    return digest
