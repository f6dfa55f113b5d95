# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

from images import chain

GROUND, TOP = "64k:A 64k:- 128k:B", "64k:- 64k:C 128k:-"


def test_raw(vmdkit: Any, raw: Any) -> None:
    done = vmdkit("info", "--raw", "disk.raw")
    assert done.stdout == (
        "file:      disk.raw\nformat:    raw\nsize:      1 MiB (1048576 bytes)\n"
        "allocated: 68 KiB (69632 bytes)\nlinks:     1\n"
    )
    known = json.loads(vmdkit("info", "--raw", "--json", "disk.raw").stdout)
    assert known == {"file": "disk.raw", "format": "raw", "size": 1 << 20, "allocated": 69632, "links": 1}


def test_a_disk(vmdkit: Any, build: Any) -> None:
    image = build("hosted", GROUND)
    done = vmdkit("info", image.path)
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "format:           vmdk",
        "subformat:        monolithicSparse",
        "size:             256 KiB (262144 bytes)",
    ):
        assert line in done.stdout.splitlines()
    assert "None" not in done.stdout
    assert "False" not in done.stdout
    known = json.loads(vmdkit("info", "--json", image.path).stdout)
    assert known["links"] == 1
    assert known["size"] == image.size


def test_the_chain(vmdkit: Any, tmp_path: Any) -> None:
    image = chain(tmp_path, [("flat", GROUND), ("hosted", TOP)])
    known = json.loads(vmdkit("info", "--chain", "--json", image.path).stdout)
    assert [link["subformat"] for link in known] == ["monolithicSparse", "monolithicFlat"]
    assert known[0]["parent_cid"] == known[1]["cid"]
    text = vmdkit("info", "--chain", image.path).stdout
    assert text.index("monolithicSparse") < text.index("parent 1:") < text.index("monolithicFlat")
    assert "links:            2" in vmdkit("info", image.path).stdout


def test_what_is_no_vmdk(vmdkit: Any, raw: Any) -> None:
    done = vmdkit("info", raw)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"vmdkit: {raw}: ")
    assert done.stderr.count("\n") == 1
