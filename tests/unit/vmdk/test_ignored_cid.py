# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A parent that has changed is read only when told, and then it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from model import Model

if TYPE_CHECKING:
    from pathlib import Path


def test_a_changed_parent_read_all_the_same_is_a_doubt(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, "1M:A", name="base")
    child = images.monolithic_sparse(
        tmp_path, Model(base.model.size, base.model), name="child", parent=base, parent_cid=0x1234
    )
    with pytest.raises(vmdkit.ChainError):
        vmdkit.open(child.path)
    with vmdkit.open(child.path, ignore_cid=True) as disk:
        assert any("has changed since" in doubt.text for doubt in disk.doubts)  # type: ignore[attr-defined]
        assert disk.pread(512, 0) == base.model.pread(512, 0)
