# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit ova`` as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import images
from images.stream import STREAMS
from ovas import Ovf, Part, ova

if TYPE_CHECKING:
    from pathlib import Path

    from unit.cli.conftest import Command


@pytest.fixture
def box(tmp_path: Path) -> Path:
    image = images.stream_optimized(tmp_path, "64k:A 64k:- 64k:b", name="one")
    return ova(
        tmp_path / "box.ova",
        Ovf(
            [Part("one.vmdk", image.path.read_bytes(), image.size)],
            sections="<AnnotationSection><Info/><Annotation>from \x9b31m afar</Annotation></AnnotationSection>"
            "<ProductSection><Info/><Product>Box</Product><Vendor>Makers</Vendor><Version>2</Version></ProductSection>",
        ),
    )


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    image = images.stream_optimized(tmp_path, "64k:A", STREAMS["QEMU"], name="bad")
    return ova(tmp_path / "bad.ova", Ovf([Part("bad.vmdk", image.path.read_bytes(), image.size)]))


def test_info(vmdkit: Command, box: Path) -> None:
    done = vmdkit("ova", "info", "box.ova")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:6] == [
        "machine:    box",
        "product:    Makers Box 2",
        "os:         ubuntu64Guest",
        "hardware:   1 CPU, 1 GiB, vmx-13, bios",
        "drives:     vmdisk1 on lsilogic:0",
        "adapters:   E1000 to VM Network",
    ]
    assert "annotation: from \\x9b31m afar" in done.stdout
    assert "manifest:   box.mf, SHA256 of 2 files" in done.stdout
    found = json.loads(vmdkit("--json", "ova", "info", "box.ova").stdout)
    assert found["disks"] == [
        {
            "id": "vmdisk1", "file": "one.vmdk", "capacity": 196608, "populated": 131072,
            "size": found["disks"][0]["size"], "what": "streamOptimized",
        }
    ]  # fmt: skip
    assert found["machines"][0]["memory"] == 1 << 30


def test_info_of_no_ova(vmdkit: Command, tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(b"")
    done = vmdkit("ova", "info", "x.ova")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vmdkit: x.ova: this is no OVA: no tar header (at offset 0x0)\n"


def test_extract(vmdkit: Command, box: Path, tmp_path: Path) -> None:
    done = vmdkit("-v", "ova", "extract", "box.ova", "out", "--disk", "1", "--raw")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out/one.raw\n", "")
    assert (tmp_path / "out" / "one.raw").stat().st_size == 196608
    done = vmdkit("ova", "extract", "box.ova", "out", "--raw")
    assert done.returncode == 1
    assert done.stderr == "vmdkit: out/one.raw: it exists; -f overwrites it\n"
    assert vmdkit("ova", "extract", "box.ova", "out", "--raw", "-f").returncode == 0
    assert json.loads(vmdkit("ova", "extract", "box.ova", "all", "--json").stdout) == {
        "files": ["all/box.ovf", "all/box.mf", "all/one.vmdk"]
    }


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["box.ova"], 0), (["bad.ova", "--for", "esxi8"], 2), (["bad.ova", "--for", "aws"], 3),
        (["box.ova", "bad.ova", "--for", "aws"], 3), (["box.ova", "bad.ova"], 2), (["absent.ova"], 1),
        (["absent.ova", "bad.ova"], 1), (["box.ova", "--for", "nowhere"], 1), (["--nonsense"], 1), ([], 1),
        (["box.ova", "--threads", "x"], 1),
    ],
)  # fmt: skip
def test_exit_codes_of_lint(vmdkit: Command, box: Path, bad: Path, words: list[str], code: int) -> None:
    done = vmdkit("ova", "lint", *words)
    assert done.returncode == code
    assert bool(done.stderr) is (code == 1)


def test_lint(vmdkit: Command, bad: Path) -> None:
    done = vmdkit("ova", "lint", "bad.ova")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error    vmdk-no-eos: bad.vmdk at 0x")
    assert lines[0].endswith("[esxi7, esxi8, esxi9, workstation]")
    assert lines[-1].startswith("bad.ova: 1 error, 1 warning for esxi7, esxi8, esxi9, workstation, vbox7, proxmox, aws")
    assert vmdkit("-q", "ova", "lint", "bad.ova").stdout == ""


def test_lint_as_json(vmdkit: Command, bad: Path, box: Path) -> None:
    found = json.loads(vmdkit("ova", "lint", "bad.ova", "--json", "--for", "esxi8").stdout)
    assert (found["exit"], found["counts"]["error"], found["targets"]) == (2, 1, ["esxi8"])
    assert found["findings"][0]["rule"] == "vmdk-no-eos"
    assert len(json.loads(vmdkit("ova", "lint", "bad.ova", "box.ova", "--json").stdout)) == 2


def test_sarif(vmdkit: Command, bad: Path, tmp_path: Path) -> None:
    done = vmdkit("ova", "lint", "bad.ova", "--sarif", "out.sarif")
    assert done.returncode == 2
    log: dict[str, Any] = json.loads((tmp_path / "out.sarif").read_text())
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        artifact = location["physicalLocation"]["artifactLocation"]
        assert artifact["uri"] == run["artifacts"][artifact["index"]]["location"]["uri"] == "bad.ova"
    assert {"vmdk-no-eos", "vmdk-rgd"} <= {result["ruleId"] for result in run["results"]}
    assert json.loads(vmdkit("ova", "lint", "bad.ova", "--sarif", "-").stdout) == log


def test_words_that_are_none(vmdkit: Command) -> None:
    for words in (["ova"], ["ova", "bild"], ["ova", "info"], ["ova", "info", "--bogus", "x"]):
        done = vmdkit(*words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("vmdkit: ova"), words
