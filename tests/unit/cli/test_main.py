# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from vmdkit.cli import main
from vmdkit.cli.render import describe
from vmdkit.errors import CorruptError


def test_version_and_its_time(vmdkit: Any) -> None:
    times = []
    for _ in range(5):
        before = os.times()
        done = vmdkit("--version")
        times.append(sum(os.times()[2:4]) - sum(before[2:4]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "vmdkit 0.1.0\n", "")
    assert min(times) < 0.15, "CPU seconds, which a busy machine stretches less"


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["help"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = f"import sys; from vmdkit.cli.main import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "rich", "logging", "concurrent.futures", "vmdkit.vmdk.image", "vmdkit.cli.info"}


def test_help_lists_every_verb(vmdkit: Any) -> None:
    done = vmdkit("--help")
    assert done.returncode == 0
    for verb, (_, line) in main.VERBS.items():
        assert f"  {verb:<10} {line}\n" in done.stdout
    assert vmdkit("help").stdout == done.stdout
    assert (vmdkit().returncode, vmdkit().stdout) == (2, done.stdout)


@pytest.mark.parametrize("verb", [verb for verb, (module, _) in main.VERBS.items() if find_spec(module)])
def test_each_verb_has_help_and_general_options(verb: str, vmdkit: Any) -> None:
    done = vmdkit(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: vmdkit {verb} ")
    assert all(option in done.stdout for option in ("--quiet", "--verbose", "--json", "--progress"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inf"], "vmdkit: no verb is called 'inf'; did you mean 'info'? ('vmdkit --help' says more)\n"),
        (["\x1b[31m"], "vmdkit: no verb is called '\\x1b[31m' ('vmdkit --help' says more)\n"),
        (
            ["info"],
            "vmdkit: info: the following arguments are required: DISK ('vmdkit info --help' says more)\n",
        ),
        (
            ["info", "--nonsense", "x"],
            "vmdkit: unrecognized arguments: --nonsense ('vmdkit --help' says more)\n",
        ),
        (
            ["--progress", "odd", "info"],
            (
                "vmdkit: argument --progress: invalid choice: 'odd' (choose from 'bar', 'json', 'none') "
                "('vmdkit --help' says more)\n"
            ),
        ),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, vmdkit: Any) -> None:
    done = vmdkit(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.replace("choose from bar, json, none", "choose from 'bar', 'json', 'none'") == message


def test_general_options_before_and_after_the_verb(vmdkit: Any, raw: Any) -> None:
    after = vmdkit("info", "--raw", "--json", raw)
    assert after.stdout.startswith("{")
    assert vmdkit("--json", "info", "--raw", raw).stdout == after.stdout


def test_a_missing_file(vmdkit: Any) -> None:
    done = vmdkit("info", "none.vmdk")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "vmdkit: none.vmdk: No such file or directory\n")


def test_hostile_names_do_not_reach_the_terminal(vmdkit: Any, tmp_path: Any) -> None:
    name = "a\x1b]0;gotcha\x07\n\u202evil\x9b.vmdk"
    done = vmdkit("info", name)
    assert done.stderr == "vmdkit: a\\x1b]0;gotcha\\x07\\x0a\\u202evil\\x9b.vmdk: No such file or directory\n"
    (tmp_path / name).write_bytes(b"x" * 512)
    for words in (["info", name], ["map", "--raw", name], ["hash", "--raw", name], ["info", "--raw", name]):
        done = vmdkit(*words)
        text = done.stdout + done.stderr
        assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}
        assert "gotcha" in text
    assert vmdkit("info", "--raw", "--json", name).stdout.isascii()


def test_names_that_are_no_utf8(vmdkit: Any, tmp_path: Any) -> None:
    name = b"caf\xe9.vmdk"
    done = vmdkit("info", name)
    assert done.stderr == "vmdkit: caf\\xe9.vmdk: No such file or directory\n"


def test_a_terminal_that_knows_only_ascii(vmdkit: Any, tmp_path: Any) -> None:
    (tmp_path / "été.raw").write_bytes(b"x" * 512)
    done = vmdkit("hash", "--raw", "été.raw", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.endswith("  \\xe9t\\xe9.raw\n")


def test_a_reader_that_leaves(vmdkit: Any, raw: Any) -> None:
    command = f"{sys.executable} -m vmdkit.cli.main map --raw {raw} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_full_stdout(vmdkit: Any, raw: Any) -> None:
    with open("/dev/full", "w") as full:
        done = vmdkit("map", "--raw", raw, stdout=full)
    assert (done.returncode, done.stderr) == (1, "vmdkit: standard output: No space left on device\n")


def test_a_bug_is_one_line_and_verbose_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(_: Any) -> int:
        raise KeyError("oops\x1b")

    monkeypatch.setattr(main, "_dispatch", broken)
    assert main.main(["info"]) == 1
    assert capsys.readouterr().err == (
        "vmdkit: this is a bug in vmdkit, please report it: KeyError: 'oops\\x1b' (-v shows where)\n"
    )
    assert main.main(["info", "-v"]) == 1
    assert "in broken" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141), (MemoryError(), 1)])
def test_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", broken)
    assert main.main(["info"]) == code


def test_describe() -> None:
    error: Exception = CorruptError("is 7", structure="grain", path="x.vmdk", offset=512)
    error.add_note("at offset 0x200 of the disk")
    assert describe(error) == "x.vmdk: grain: is 7 (at offset 0x200), at offset 0x200 of the disk"
    assert describe(OSError(28, "No space left on device", b"\xff")) == "\udcff: No space left on device"
    assert describe(OSError("plain")) == "plain"
    assert describe(MemoryError()) == "not enough memory"
