# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.cli.program import Program, programs
from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_words_between_brackets_are_one() -> None:
    found = programs(["-v", "[", "serve", "-x", "a b", "]", "out", "[", "x", "]"])
    assert found == ["-v", "[ serve -x a b ]", "out", "[ x ]"]
    commands = [word.command for word in found if isinstance(word, Program)]
    assert commands == [("serve", "-x", "a b"), ("x",)]


def test_brackets_inside_are_the_commands() -> None:
    (found,) = programs(["[", "sh", "-c", "[", "]"])
    assert isinstance(found, Program)
    assert found.command == ("sh", "-c", "[")


@pytest.mark.parametrize(("words", "text"), [(["[", "]"], "the command is missing"), (["a", "[", "b"], "no ']'")])
def test_lone_brackets(words: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        programs(words)


def test_a_name_that_is_a_bracket_is_reached_by_a_path(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    raw.rename(tmp_path / "[")
    assert vmdkit("hash", "--raw", "./[").returncode == 0


def test_copies_through_servers_of_its_own(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * (2 << 20))
    serve = [sys.executable, "-m", "vmdkit.cli.main", "serve", "-t", "--raw"]
    done = vmdkit("copy", "[", *serve, raw, "]", "--flush", "[", *serve, "-w", tmp_path / "out", "]")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out").read_bytes() == raw.read_bytes() + b"x" * (1 << 20)


def test_a_server_that_is_not_there(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("copy", "--raw-source", raw, "[", "no-such-server", "-w", "]")
    assert (done.returncode, done.stderr) == (1, "vmdkit: no-such-server: No such file or directory\n")
