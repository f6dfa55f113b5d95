# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several suites share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from images import PATCHED, SUBFORMATS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images import Image
    from model import Model

    Make = Callable[..., Image]


@pytest.fixture
def build(tmp_path: Path) -> Make:
    """Return a function that builds a row of the table in tmp_path: ``build("seSparse", "64k:A 64k:-")``."""

    def make(kind: str, what: str | Model, **common: object) -> Image:
        return {**SUBFORMATS, **PATCHED}[kind].build(tmp_path, what, **common)  # type: ignore[arg-type]

    return make
