# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from images import chain
from vmdkit.cli.map import Row
from vmdkit.cli.map_html import CELLS, EXACT, Drawing

if TYPE_CHECKING:
    from pathlib import Path

RAW_TABLE = """\
         OFFSET          LENGTH DEPTH  KIND                    AT  FILE
              0           65536     0  hole
          65536           65536     0  data                 65536  disk.raw
         131072          131072     0  hole
         262144            4096     0  data                262144  disk.raw
         266240          782336     0  hole
"""
NBD_JSON = """\
[
{ "offset": 0, "length": 65536, "type": 3, "description": "hole,zero"},
{ "offset": 65536, "length": 65536, "type": 0, "description": "data"},
{ "offset": 131072, "length": 131072, "type": 3, "description": "hole,zero"},
{ "offset": 262144, "length": 4096, "type": 0, "description": "data"},
{ "offset": 266240, "length": 782336, "type": 3, "description": "hole,zero"}
]
"""
TOTALS = """\
     69632   6.6%   0 data
    978944  93.4%   3 hole,zero
"""


def test_table(vmdkit: Any, raw: Path) -> None:
    assert vmdkit("map", "--raw", raw.name).stdout == RAW_TABLE


def test_nbd_json_and_totals(vmdkit: Any, raw: Path) -> None:
    assert vmdkit("map", "--raw", "--nbd-json", raw.name).stdout == NBD_JSON
    assert vmdkit("map", "--raw", "--totals", raw.name).stdout == TOTALS
    assert json.loads(vmdkit("map", "--raw", "--totals", "--json", raw.name).stdout) == [
        {"size": 69632, "percent": 6.640625, "type": 0, "description": "data"},
        {"size": 978944, "percent": 93.359375, "type": 3, "description": "hole,zero"},
    ]


def test_json(vmdkit: Any, raw: Path) -> None:
    found = json.loads(vmdkit("map", "--raw", "--json", raw.name).stdout)
    hole = {"depth": 0, "present": False, "zero": True, "data": False, "compressed": False}
    data = {"depth": 0, "present": True, "zero": False, "data": True, "compressed": False, "filename": "disk.raw"}
    assert found == [
        {"start": 0, "length": 65536, **hole},
        {"start": 65536, "length": 65536, **data, "offset": 65536},
        {"start": 131072, "length": 131072, **hole},
        {"start": 262144, "length": 4096, **data, "offset": 262144},
        {"start": 266240, "length": 782336, **hole},
    ]


def test_nothing(vmdkit: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert json.loads(vmdkit("map", "--raw", "--json", "empty").stdout) == []
    assert json.loads(vmdkit("map", "--raw", "--nbd-json", "empty").stdout) == []
    assert vmdkit("map", "--raw", "--totals", "empty").stdout == ""
    assert vmdkit("map", "--raw", "--html", "-", "empty").returncode == 0


def test_a_chain(vmdkit: Any, tmp_path: Path) -> None:
    image = chain(tmp_path, [("flat", "64k:A 64k:A 64k:B"), ("hosted", "64k:- 64k:C 64k:-")])
    found = json.loads(vmdkit("map", "--json", image.path).stdout)
    assert [(run["start"], run["length"], run["depth"], run["data"]) for run in found] == [
        (0, 65536, 1, True),
        (65536, 65536, 0, True),
        (131072, 65536, 1, True),
    ]
    assert [os.path.basename(run["filename"]) for run in found][1] == image.path.name


def test_compressed(vmdkit: Any, build: Any) -> None:
    image = build("stream-A", "64k:A 64k:- 64k:B")
    found = json.loads(vmdkit("map", "--json", image.path).stdout)
    assert [(run["data"], run["compressed"], "offset" in run) for run in found] == [
        (True, True, False),
        (False, False, False),
        (True, True, False),
    ]


def test_a_tebibyte_is_quick(vmdkit: Any, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    begun = time.perf_counter()
    for form in ("--json", "--nbd-json", "--totals"):
        assert vmdkit("map", "--raw", form, "huge").returncode == 0
    assert vmdkit("map", "--raw", "--html", "huge.html", "huge").returncode == 0
    assert time.perf_counter() - begun < 5


def test_html(vmdkit: Any, tmp_path: Path, raw: Path) -> None:
    name = "<b>&\"'\x1b.raw"
    raw.rename(tmp_path / name)
    assert vmdkit("map", "--raw", "--html", "map.html", name).stderr == ""
    page = (tmp_path / "map.html").read_text()
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "&lt;b&gt;&amp;&quot;&#x27;\\x1b.raw" in page
    assert "default-src 'none'; style-src 'sha256-" in page
    assert not re.search(r"<script|<link|<img|href|src=|style=|@import|url\(|http:|https:", page)
    assert "65536 + 65536 (64 KiB): data, in " in page
    Balanced().feed(page)
    again = vmdkit("map", "--raw", "--html", "map.html", name)
    assert (again.returncode, again.stderr) == (1, "vmdkit: map.html: it exists; -f overwrites it\n")
    assert vmdkit("map", "--raw", "--html", "map.html", "-f", name).returncode == 0
    assert vmdkit("map", "--raw", "--html", "-", name).stdout == page


def test_html_of_very_many_runs_stays_small() -> None:
    count, length = 20_000, 4096
    drawing = Drawing(count * length)
    for number in range(count):
        even = number % 2 == 0
        at = number * length if even else -1
        drawing.add(Row(number * length, length, number % 3, even, not even, even, False, at, "f" if even else ""))
    page = "".join(drawing.page("disk"))
    assert len(drawing.first) == EXACT
    assert page.count("<rect") <= 3 * CELLS + 4
    assert len(page) < 1_000_000
    assert f"{count} runs" in page
    assert drawing.totals == {"data": count * length // 2, "compressed": 0, "zero": 0, "hole": count * length // 2}
    Balanced().feed(page)


def test_cells_hold_every_byte() -> None:
    drawing = Drawing(1003 * 7)
    for start in range(0, 1003 * 7, 1003):
        drawing.add(Row(start, 1003, 0, True, False, True, False, start, "f"))
    assert sum(drawing.cells[0][0]) == 1003 * 7


class Balanced(HTMLParser):
    """Asserts that every tag is closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
