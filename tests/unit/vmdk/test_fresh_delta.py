# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A delta as a snapshot leaves it: no grain, no table, a file shorter than one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import images
import vmdkit
from model import Model

if TYPE_CHECKING:
    from pathlib import Path


def test_fresh_cowd_delta_shows_its_parent(tmp_path: Path) -> None:
    base = images.monolithic_sparse(tmp_path, "64k:A 64k:-", name="base")
    child = images.vmfs_sparse(tmp_path, Model(base.model.size, base.model), name="base-000001", parent=base)
    with vmdkit.open(child.path) as disk:
        assert disk.pread(disk.size, 0) == base.model.pread(disk.size, 0)
