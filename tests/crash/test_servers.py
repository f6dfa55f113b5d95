# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Servers under strace: what is known of them has to be found, and nothing that is not so."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from require import requires
from vmdkit.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

QEMU = {
    "create": "qemu-img create -q -f {0} [-b {{parent}} -F {0}] {{image}} {{size}}",
    "server": "qemu-nbd -f {0} -k {{socket}} {{image}}",
    "read": "qemu-img convert -f {0} -O raw {{image}} {{out}}",
}
OURS = f"{sys.executable} -m vmdkit.cli.main"


def torture(capsys: pytest.CaptureFixture[str], *more: str, kind: str = "vmdk", **commands: str) -> tuple[int, Any]:
    words = ["torture", "--json", "--size", "4M", "--states", "60", "--requests", "16", *more]
    for name, command in QEMU.items():
        words += [f"--{name}", commands.get(name) or command.format(kind)]
    code = main(words)
    return code, json.loads(capsys.readouterr().out)


def test_qemu_loses_what_a_child_never_touched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    requires("strace", "qemu-nbd>=7", "qemu-img>=7")
    kept = str(tmp_path / "kept")
    code, told = torture(capsys, "--parent", "--keep", kept)
    (writer,) = told["writers"]
    assert code == 1
    assert writer["kinds"]["untouched data changed"] > 0
    story = next(one for one in writer["examples"] if one["kind"] == "untouched data changed")["story"]
    kept_changes = [line for line in story if line.endswith(": kept")]
    assert len(kept_changes) == 1  # the pointer of a grain that was never written
    assert "write 4 at" in kept_changes[0]
    assert main(["torture", "--json", "--states", "60", "--replay", kept]) == 1
    assert json.loads(capsys.readouterr().out)["writers"] == told["writers"]


@pytest.mark.parametrize("parent", [False, True])
def test_qcow2_is_clean(parent: bool, capsys: pytest.CaptureFixture[str]) -> None:
    requires("strace", "qemu-nbd>=7", "qemu-img>=7")
    more = ["--parent"] if parent else []
    # Zeroing is left out: qcow2 reuses clusters that a zero request has freed before its tables say so (docs/crash.md).
    code, told = torture(capsys, "--requests-of", "write,trim,flush", *more, kind="qcow2")
    assert (code, told["violations"]) == (0, 0), told


@pytest.mark.parametrize("parent", [False, True])
def test_ours_is_clean(parent: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    requires("strace", "qemu-img>=7")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    more = ["--parent"] if parent else []
    code, told = torture(capsys, *more, server=f"{OURS} serve -w -U {{socket}} {{image}}")
    assert (code, told["violations"]) == (0, 0), told
