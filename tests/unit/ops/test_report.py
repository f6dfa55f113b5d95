# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import vmdkit
from vmdkit.errors import FormatError
from vmdkit.ops import report as reports
from vmdkit.ops.tree import Shape
from vmdkit.ops.tree_hash import tree_hash
from vmdkit.storage.memory import MemoryDevice

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = Shape(block=4096)
DISK = MemoryDevice(b"A" * 10000 + bytes(30000))


def made(**changes: Any) -> dict[str, Any]:
    digest = tree_hash(DISK, SHAPE)
    report: dict[str, Any] = {
        "operation": "convert",
        "verdict": reports.EQUAL,
        "source": reports.describe(DISK, "a.raw"),
        "destination": reports.describe(DISK, "b.raw"),
        "digests": reports.digests(digest, digest),
        "reading": {"reader": "vmdkit", "trust": "every byte was read"},
        "times": {"started": reports.now(), "finished": reports.now(), "copy_ms": 10, "verify_ms": 0},
        **reports.surroundings({"vmdkit": "1"}),
    }
    return reports.sealed(report | changes)


def test_there_and_back() -> None:
    report = made()
    assert reports.parse(reports.as_json(report), "x") == report
    assert reports.source_digest(report) == tree_hash(DISK, SHAPE)


def test_any_change_breaks_the_seal() -> None:
    text = reports.as_json(made())
    for old, new in (
        ("equal", "EQUAL"),
        ("a.raw", "c.raw"),
        ("10", "11"),
        ('"vmdkit_report": 1', '"vmdkit_report": 2'),
    ):
        assert old in text
        with pytest.raises(FormatError, match=r"its seal is broken|of version 2; 1 is known"):
            reports.parse(text.replace(old, new, 1), "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 100000, "it is no JSON"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "it is no JSON"),
        ("[]", "no report of vmdkit"),
        ("{}", "no report of vmdkit"),
        ('{"vmdkit_report": {}}', "a report of version {}; 1 is known"),
        ('{"vmdkit_report": 1}', "its seal is broken"),
        ('{"vmdkit_report": 1, "sha256": 7}', "its seal is broken"),
        ('{"vmdkit_report": ' + "9" * 5000 + "}", "it is no JSON"),
        (" " * (5 << 20), "too large for a report"),
    ],
)
def test_what_is_no_report(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        reports.parse(text, "x")


@pytest.mark.parametrize(
    "digests",
    [
        None,
        [],
        {},
        {"source": 7},
        {"source": "tree-sha256-4k:" + "0" * 64},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": [], "span": 4096},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {"-1": "00" * 32}, "span": 4096},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {"9999999999999": "00" * 32}, "span": 4096},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {"0": "0g"}, "span": 4096},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {"0": 0}, "span": 4096},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {}, "span": 5000},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {}, "span": 1 << 62},
        {"source": "tree-sha256-4k:" + "0" * 64, "spans": {}, "span": True},
    ],
)
def test_digests_that_cannot_be_used(digests: Any) -> None:
    report = reports.parse(reports.as_json(made(digests=digests)), "x")
    with pytest.raises(FormatError):
        reports.source_digest(report)


def test_spans_that_do_not_make_the_digest() -> None:
    digests = made()["digests"]
    digests["spans"]["1"] = "00" * 32
    with pytest.raises(FormatError, match="the report's spans do not make its digest"):
        reports.source_digest(made(digests=digests))


def test_the_text_of_a_report_of_rubbish_is_an_error_or_text() -> None:
    rubbish: Any
    for key in made():
        for rubbish in (None, 7, [], {}, "x"):
            try:
                lines = reports.as_text(made(**{key: rubbish}))
            except FormatError:
                continue
            assert all(isinstance(line, str) for line in lines)


def test_a_chain(tmp_path: Path) -> None:
    base, child = str(tmp_path / "base.vmdk"), str(tmp_path / "child.vmdk")
    vmdkit.create(base, 1 << 20, subformat="vmfs")
    vmdkit.create(child, parent=base, subformat="vmfsSparse")
    with vmdkit.open(child) as disk:
        found = reports.describe(disk, child)
    assert (found["format"], found["subformat"], found["parents"]) == ("vmdk", "vmfsSparse", [base])
    assert [file["name"].rsplit("/")[-1] for file in found["files"]] == ["child-delta.vmdk", "base-flat.vmdk"]
    assert json.loads(json.dumps(found)) == found
