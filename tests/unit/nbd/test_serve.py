# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Command lines that contradict themselves: one sentence each, before anything listens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmdkit.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-s", "-p", "0"], "goes with no address"),
        (["-s", "--run", "true"], "goes with no address and no --run"),
        (["-i", "0.0.0.0", "-p", "0"], "can be reached by others, who could read everything"),
        (["-w", "-i", "0.0.0.0", "-p", "0"], "who could read and write everything"),
        (["-x", "a", "-x", "b"], "1 disks, but -x was given 2 times"),
        (["-D", "a", "-D", "b"], "-D was given 2 times"),
        (["--tls", "require"], "needs --tls-certificates DIR or --tls-psk FILE"),
        (["--tls-verify-peer"], "means nothing without TLS"),
        (["--tls-certificates", "x", "--tls-psk", "y"], "not both"),
        (["-e", "-1"], "not less than 0"),
        (["-p", "70000"], "is no port"),
        (["-x", "n" * 5000], "is no name for NBD"),
    ],
)
def test_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process is pytest's
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    assert main(["serve", "--raw", *arguments, str(disk)]) in (1, 2)
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert told.err.count("\n") == 1


def test_the_status_of_a_command_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    command = 'test -S "$unixsocket" && echo "$exportname $uri" && exit 7'
    assert main(["serve", "--raw", "--processes", "1", "-x", "n", "--run", command, str(disk)]) == 7
    told = capfd.readouterr()
    assert told.out.startswith("n nbd+unix:///n?socket=/")
    assert told.err == ""
