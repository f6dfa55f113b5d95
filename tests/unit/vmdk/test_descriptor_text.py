# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdkit.errors import UsageError
from vmdkit.vmdk.descriptor import NO_CID, parse
from vmdkit.vmdk.descriptor_text import Edit, NewLine, checked_name, new_long_id, new_uuid, render

LINES = [NewLine(1 << 20, "FLAT", "a-f001.vmdk", 0), NewLine(512, "FLAT", "a-f002.vmdk", 0)]


def test_a_new_text_is_vmwares_line_by_line() -> None:
    text = render("twoGbMaxExtentFlat", LINES, {"uuid": "u", "adapterType": "ide"}, cid=0xABC, parent_cid=1, hint="p")
    assert text.decode().split("\n") == [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        "CID=00000abc",
        "parentCID=00000001",
        'createType="twoGbMaxExtentFlat"',
        'parentFileNameHint="p"',
        "",
        "# Extent description",
        'RW 2048 FLAT "a-f001.vmdk" 0',
        'RW 1 FLAT "a-f002.vmdk" 0',
        "",
        "# The Disk Data Base ",
        "#DDB",
        "",
        'ddb.adapterType = "ide"',
        'ddb.uuid = "u"',
        "",
    ]


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\rb", "a\0b", "a\x7fb", "a\\b", "nbd:x", "C:x", "a\udcff"])
def test_names_that_would_be_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        checked_name(name)
    with pytest.raises(UsageError):
        render("vmfsSparse", LINES, {}, cid=1, hint=name)


@given(st.text(min_size=1, max_size=40))
def test_what_is_not_refused_is_read_back(name: str) -> None:
    try:
        text = parse(render("vmfs", [NewLine(512, "VMFS", name)], {}, cid=1, parent_cid=2, hint=name), "x")
    except UsageError:
        return
    assert (text.extents[0].name, text.parent_hint, len(text.extents)) == (name, name, 1)


def test_identities() -> None:
    assert re.fullmatch(r"60 00 C2 9[0-9a-f]( [0-9a-f]{2}){4}-[0-9a-f]{2}( [0-9a-f]{2}){7}", new_uuid())
    assert re.fullmatch(r"[0-9a-f]{24}00abcdef", new_long_id(0xABCDEF))


OLD = (
    b'# Disk DescriptorFile\r\nversion=3\r\nfuture=1\r\ncid=ABC\r\n parentcid = ffffffff\r\ncreateType="custom"\r\n'
    b'# a remark\r\nRW 8 FLAT "a" 0\r\n  rw 16 FLAT "b" 5 "uuid" "dev"\r\nRW 24 ZERO\r\n'
    b'# Change Tracking File\r\nchangeTrackPath="a-ctk.vmdk"\r\n#DDB\r\nddb.longContentID = "' + b"1" * 32 + b'"'
)


def test_untouched_text_keeps_every_byte() -> None:
    assert Edit(parse(OLD, "x")).result() == OLD


def test_an_edit_concerns_its_lines_only() -> None:
    edit = Edit(parse(OLD, "x"))
    edit.content(0x1234)
    edit.extents([4096, 512], [NewLine(1024, "FLAT", "c", 0)])
    edit.put("parentCID", "00000007")
    edit.put("parentFileNameHint", "p.vmdk")
    edit.put_ddb("uuid", "u")
    new = edit.result()
    text = parse(new, "x")
    assert [(line.length, line.name, line.at) for line in text.extents] == [
        (4096, "a", 0),
        (512, "b", 2560),
        (1024, "c", 0),
    ]
    assert (text.cid, text.parent_cid, text.parent_hint) == (0x1234, 7, "p.vmdk")
    assert (text.header["version"], text.header["future"], text.change_track_path) == ("1", "1", "")
    assert (text.ddb["longcontentid"][24:], text.ddb["uuid"]) == ("00001234", "u")
    assert b'  rw 1 FLAT "b" 5 "uuid" "dev"\r\n' in new
    assert new.count(b"\n") == new.count(b"\r\n")


def test_a_key_is_removed_and_added() -> None:
    edit = Edit(parse(b'RW 8 FLAT "a" 0', "x"))
    edit.put("parentFileNameHint", "p")
    edit.put_ddb("a", "b")
    edit.put("createType", None)
    assert edit.result() == b'parentFileNameHint="p"\nRW 8 FLAT "a" 0\nddb.a = "b"\n'
    edit = Edit(parse(b'createType="x"\nparentFileNameHint="p"\nRW 8 FLAT "a" 0\n', "x"))
    edit.put("parentFileNameHint", None)
    edit.put("parentCID", f"{NO_CID:08x}")
    assert edit.result() == b'createType="x"\nparentCID=ffffffff\nRW 8 FLAT "a" 0\n'


def test_a_name_the_encoding_lacks_is_refused() -> None:
    edit = Edit(parse(b'encoding="windows-1252"\ncreateType="x"\nRW 8 FLAT "a" 0\n', "x"))
    with pytest.raises(UsageError, match="cannot be written in windows-1252"):
        edit.put("parentFileNameHint", "\u65e5.vmdk")
