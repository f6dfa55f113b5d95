# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from argparse import Namespace
from typing import Any

import pytest

from vmdkit.cli import progress
from vmdkit.ops.copy import Tally


def arguments(**given: Any) -> Namespace:
    return Namespace(**{"quiet": False, "progress": None, **given})


@pytest.mark.parametrize("given", [{}, {"progress": "bar"}, {"progress": "none"}, {"quiet": True}])
def test_nothing_where_stderr_is_no_terminal(given: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(arguments(**given), 100) as advance:
        advance(100)
    assert capsys.readouterr() == ("", "")


def test_json_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vmdkit.cli.progress.time.monotonic", lambda: now)
    tally = Tally()
    with progress.shown(arguments(progress="json"), 100, tally) as advance:
        for _ in range(10):
            now += 0.25
            tally.skipped += 5
            advance(10)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == {"done": 20, "total": 100, "rate": 40, "eta": 2.0, "skipped": 10}
    assert len(lines) == 6
    assert lines[-1] == {"done": 100, "total": 100, "rate": 40, "eta": 0.0, "skipped": 50}


def test_json_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(arguments(progress="json"), 0):
        pass
    assert json.loads(capsys.readouterr().err) == {"done": 0, "total": 0, "rate": 0, "eta": None}


def test_a_bar_on_a_terminal(raw: Any, tmp_path: Any) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vmdkit.cli.main", "convert", "--raw", raw, tmp_path / "out"]
    with subprocess.Popen(command, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}) as child:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the other side has closed
            pass
        assert child.wait(20) == 0
    os.close(ours)
    assert b"1.0/1.0" in shown
    assert b"skipped" in shown
