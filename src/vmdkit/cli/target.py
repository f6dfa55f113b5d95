# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where a verb's output goes: the names of storage/target.py, under which verbs know them."""

from __future__ import annotations

from vmdkit.storage.target import in_place, is_block_device, new_file, refuse_own_files

__all__ = ["in_place", "is_block_device", "new_file", "refuse_own_files"]
