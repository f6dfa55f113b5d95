# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The verb, as a user types it."""

from __future__ import annotations

import json

import pytest

from vmdkit.cli.main import main


def test_a_clean_writer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["torture", "--disk", "sparse", "--operation", "compact monolithicSparse", "--states", "5", "--jobs", "1"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "sparse" in told
    assert "0 with violations" in told


def test_json_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torture", "--json", "--disk", "flat", "--states", "4", "--rounds", "2", "--seed", "7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["writer"], one["seed"]) for one in told["writers"]] == [("flat", "7"), ("flat", "8")]
    assert told["states"] == sum(one["states"] for one in told["writers"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--disk", "nonsense"], "nonsense"),
        (["--create", "x"], "all three"),
        (["--create", "true {nonsense}", "--server", "x", "--read", "x"], "{nonsense}"),
        (["--create", "true", "--server", "false", "--read", "x", "--requests-of", "read"], "--requests-of"),
        (["--replay", "/dev/null"], "recording"),
    ],
)
def test_nonsense_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torture", *words]) != 0
    assert text in capsys.readouterr().err


def test_faults(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["torture", "--faults", "--disk", "flat", "--states", "1", "--requests", "5", "--jobs", "1"]
    assert main(words) == 0
    assert "flat faults" in capsys.readouterr().out
    assert main(["torture", "--faults", "--operation", "all"]) == 1


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torture", "--disk", "list"]) == 0
    assert "cowd-child" in capsys.readouterr().out
    assert main(["torture", "--operation", "list"]) == 0
    assert "compact monolithicFlat" in capsys.readouterr().out
