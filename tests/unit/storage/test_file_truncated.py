# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A file that becomes shorter while it is open is an error, never a run of zeros."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmdkit.storage.file import open_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("verb", ["extents", "locate"])
def test_what_was_cut_off_is_no_hole(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 65536)
    with open_file(str(path)) as device:
        os.truncate(path, 8192)
        with pytest.raises(OSError, match="ends at 8192; it had 65536 bytes when opened"):
            list(getattr(device, verb)())


def test_a_hole_at_the_end_is_still_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 4096)
    os.truncate(path, 1 << 20)
    with open_file(str(path)) as device:
        assert [run.flags for run in device.extents()] == [0, 3]
