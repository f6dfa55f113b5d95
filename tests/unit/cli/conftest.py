# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Run the real command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024


class Command(Protocol):
    def __call__(self, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def vmdkit(tmp_path: Path) -> Command:
    """Return a function that runs the command in tmp_path and gives back code, stdout and stderr as text."""

    def run(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 30, **options}
        settings["env"] = {**os.environ, "COLUMNS": "200", **options.get("env", {})}
        settings.setdefault("text", True)
        command = [sys.executable, "-m", "vmdkit.cli.main", *map(os.fspath, map(_word, words))]
        return subprocess.run(command, check=False, **settings)

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Make a raw disk: 64k hole, 64k A, 128k hole, 4k B, rest of 1 MiB hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(1024 * KIB)
        file.seek(64 * KIB)
        file.write(b"A" * 64 * KIB)
        file.seek(256 * KIB)
        file.write(b"B" * 4 * KIB)
    return path


def _word(word: Any) -> Any:
    return word if isinstance(word, (str, bytes, os.PathLike)) else str(word)
