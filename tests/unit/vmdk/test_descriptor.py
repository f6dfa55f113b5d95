# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The text: read for the loosest writer, and never guessed where data are concerned."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import DDB, NAMES, STYLES, Style, Text
from vmdkit.errors import DescriptorError
from vmdkit.vmdk.descriptor import LARGEST, NO_CID, Descriptor, ExtentLine, looks_like_descriptor, parse

HEAD = b"# Disk DescriptorFile\n"
TEXT = Text(
    create_type="custom",
    lines=('RW 16 FLAT "disk-flat.vmdk" 0', "RW 8 ZERO", 'RDONLY 8 SPARSE "disk-s002.vmdk"'),
    cid=0x1234ABCD,
    ctk="disk-ctk.vmdk",
)


def lines(*rows: str) -> Descriptor:
    """Parse a descriptor of these lines after its title."""
    return parse(HEAD + "\n".join(rows).encode(), "disk.vmdk")


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", STYLES)
def test_every_style_says_the_same(style: str) -> None:
    raw = TEXT.but(hint="base.vmdk", parent_cid=0xCAFE).render(STYLES[style])
    assert looks_like_descriptor(raw)
    text = parse(raw, "disk.vmdk")
    assert [(line.access, line.length, line.type, line.name, line.at) for line in text.extents] == [
        ("RW", 8192, "FLAT", "disk-flat.vmdk", 0),
        ("RW", 4096, "ZERO", None, 0),
        ("RDONLY", 4096, "SPARSE", "disk-s002.vmdk", 0),
    ]
    assert text.size == 16384
    assert (text.cid, text.parent_cid) == (0x1234ABCD, 0xCAFE)
    assert (text.parent_hint, text.change_track_path) == ("base.vmdk", "disk-ctk.vmdk")
    assert text.create_type.lower() == "custom"
    assert len(text.ddb) == len(DDB)
    assert text.ddb["adaptertype"] == "lsilogic"
    assert text.ddb["uuid"].startswith("60 00 C2 9")
    assert not text.is_encrypted
    assert text.doubts == []


@pytest.mark.parametrize("encoding", NAMES)
def test_names_in_every_encoding(encoding: str) -> None:
    name = f"{NAMES[encoding]}-flat.vmdk"
    raw = TEXT.but(lines=(f'RW 16 FLAT "{name}" 0',)).render(Style(encoding=encoding))
    text = parse(raw, "disk.vmdk")
    assert text.encoding == encoding.lower()
    assert text.extents[0].name == name
    assert text.raw_names == {name: name.encode(encoding)}
    assert text.doubts == []


@pytest.mark.parametrize(
    ("says", "codec"),
    [("windows-31j", "cp932"), ("Windows-932", "cp932"), ("windows-936", "gbk"), ("windows-949", "cp949")],
)
def test_names_of_encodings_that_only_windows_knows(says: str, codec: str) -> None:
    name = {"cp932": "表.vmdk", "gbk": "磁盘.vmdk", "cp949": "디스크.vmdk"}[codec]
    text = parse(TEXT.but(lines=(f'RW 16 FLAT "{name}" 0',)).render(Style(encoding=says, codec=codec)), "x")
    assert text.extents[0].name == name
    assert text.doubts == []


@pytest.mark.parametrize(
    "says", ["utf-16", "utf-7", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "hz", "cp037", "undefined"]
)
def test_encodings_that_hide_text_are_not_followed(says: str) -> None:
    text = lines(f'encoding="{says}"', 'RW 16 FLAT "+2AA-\\ud800.vmdk" 0')
    assert text.extents[0].name == "+2AA-\\ud800.vmdk"
    assert text.encoding == "utf-8"
    assert f"the encoding {says!r} is unknown here" in str(text.doubts[0])


@pytest.mark.parametrize(
    ("says", "is_in", "doubt"),
    [
        (None, "windows-1252", "the text is not utf-8"),
        ("UTF-8", "windows-1252", "the text is not utf-8"),
        ("GBK", "UTF-8", ""),  # decodes, as other characters: nothing can be noticed
        ("klingon", "UTF-8", "the encoding 'klingon' is unknown here"),
        ("base64", "UTF-8", "the encoding 'base64' is unknown here"),
    ],
)
def test_a_text_that_is_not_what_it_says(says: str | None, is_in: str, doubt: str) -> None:
    raw = TEXT.but(lines=('RW 16 FLAT "däsk-flat.vmdk" 0',)).render(Style(encoding=says, codec=is_in))
    text = parse(raw, "disk.vmdk")
    assert text.size == 8192
    assert doubt in "".join(str(one) for one in text.doubts)
    if says != "GBK":
        assert text.extents[0].name == "däsk-flat.vmdk"
    assert list(text.raw_names.values()) == ["däsk-flat.vmdk".encode(is_in)]


def test_a_byte_order_mark_is_not_a_part_of_the_first_key() -> None:
    text = parse(b"\xef\xbb\xbfversion=1\nCID=5\n", "x")
    assert text.header == {"version": "1", "cid": "5"}


def test_the_text_ends_at_the_first_nul() -> None:
    text = parse(b"version=1\nCID=5\n\0" + bytes(400), "x")
    assert text.header == {"version": "1", "cid": "5"}
    assert text.doubts == []


def test_keys_keep_their_values_and_unknown_ones_are_kept() -> None:
    text = lines(
        "a=1",
        'b = "two words"',
        "c=",
        'd=""',
        'e="quote " inside"',
        "f = x = y",
        "Some.Key-2_x=7",
        'ddb.Strange.Thing = "8"',
        'g="half',
    )
    assert text.header == {
        "a": "1",
        "b": "two words",
        "c": "",
        "d": "",
        "e": 'quote " inside',
        "f": "x = y",
        "some.key-2_x": "7",
        "g": '"half',
    }
    assert text.ddb == {"strange.thing": "8"}


def test_of_two_values_the_first_is_used_and_doubted() -> None:
    text = lines("CID=1", "cid=2", "version=1", "version=1", 'ddb.uuid = "a"', 'ddb.UUID = "b"')
    assert text.cid == 1
    assert text.ddb == {"uuid": "a"}
    assert [str(one) for one in text.doubts] == [
        "disk.vmdk: cid stands twice (line 3); the first is used",
        "disk.vmdk: ddb.UUID stands twice (line 7); the first is used",
    ]


# ── extent lines ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "extent"),
    [
        ('RW 1 FLAT "a" 0', ExtentLine("RW", 512, "FLAT", "a", 0, 2, has_offset=True)),
        ('RW 1 FLAT "a" 63', ExtentLine("RW", 512, "FLAT", "a", 63 * 512, 2, has_offset=True)),
        ('RW 1 FLAT "a"', ExtentLine("RW", 512, "FLAT", "a", 0, 2)),
        ('rdonly 2 sparse "b c.vmdk"', ExtentLine("RDONLY", 1024, "SPARSE", "b c.vmdk", 0, 2)),
        ("NOACCESS 3 ZERO", ExtentLine("NOACCESS", 1536, "ZERO", None, 0, 2)),
        ("NOACCESS 0 ZERO ", ExtentLine("NOACCESS", 0, "ZERO", None, 0, 2)),
        ('  RW\t4   VMFS  "x"\t', ExtentLine("RW", 2048, "VMFS", "x", 0, 2)),
        ('RW 5 FLAT ""', ExtentLine("RW", 2560, "FLAT", "", 0, 2)),
        (
            r'RW 63 FLAT "\\.\PhysicalDrive0" 0 "partUUID" "\\?\ide#disk"',
            ExtentLine("RW", 63 * 512, "FLAT", r"\\.\PhysicalDrive0", 0, 2, has_offset=True),
        ),
        ('RW 6 HOLOGRAM "x"', ExtentLine("RW", 3072, "HOLOGRAM", "x", 0, 2)),
        ('RW 7 FLAT "a=b" 0', ExtentLine("RW", 3584, "FLAT", "a=b", 0, 2, has_offset=True)),
    ],
)
def test_extent_lines(row: str, extent: ExtentLine) -> None:
    assert lines(row).extents == [extent]


MALFORMED = [
    "RW",
    "RW 16",
    "RW 16 ",
    "RW FLAT 16",
    'RW 16 "x"',
    'RW 16 FLAT "x',
    'RW 16 FLAT x"',
    "RW 16 FLAT x",
    'RW 16 FLAT "x" y',
    'RW 16 FLAT "x" -1',
    'RW 16 FLAT "x" 0x10',
    'RW 16 FLAT "x" 1.5',
    'RW 16 FLAT "x" 1"2"',
    'RW -16 FLAT "x" 0',
    'RW +16 FLAT "x" 0',
    'RW 0x10 FLAT "x" 0',
    'RW 1_6 FLAT "x" 0',
    'RW １６ FLAT "x" 0',  # noqa: RUF001
    'RW 16 FLAT "x" ٠',  # noqa: RUF001
    'RW 16 ſPARSE "x"',  # noqa: RUF001
    'RW 1e3 FLAT "x" 0',
    'RW 16.0 FLAT "x" 0',
    f'RW {"9" * 21} FLAT "x" 0',
    'RW 16 FL-AT "x" 0',
    'RW,16,FLAT,"x",0',
    'RWX 16 FLAT "x" 0',
    'R 16 FLAT "x" 0',
    '16 FLAT "x" 0',
    'W 16 FLAT "x" 0',
    "RDONLY 16",
    "NOACCESS",
    "NOACCESS ZERO",
    'RW 16 FLAT "x" = 0',
    "RW 16 FLAT = 0",
    "just words",
    "=1",
    "key",
    "two words = 1",
    'ddb."x" = 1',
    "\x01",
    "[section]",
]


@pytest.mark.parametrize("row", MALFORMED)
@pytest.mark.parametrize("before", [0, 3])
def test_what_cannot_be_understood_is_refused_with_its_line(row: str, before: int) -> None:
    with pytest.raises(DescriptorError) as caught:
        lines(*["# a comment"] * before, row, "RW 1 ZERO")
    assert caught.value.line == before + 2
    assert f"(descriptor line {before + 2})" in str(caught.value)
    assert caught.value.path == "disk.vmdk"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_lines_are_counted_by_any_end(newline: bytes) -> None:
    with pytest.raises(DescriptorError) as caught:
        parse(newline.join([b"version=1", b"", b"# x", b"", b"RW 16"]), "x")
    assert caught.value.line == 5


@pytest.mark.parametrize("number", [(1 << 53) + 1, 1 << 63, (1 << 64) - 1, 99999999999999999999])
def test_no_disk_is_that_large(number: int) -> None:
    for row in (f"RW {number} ZERO", f'RW 1 FLAT "x" {number}'):
        with pytest.raises(DescriptorError, match="than any disk has"):
            lines(row)


def test_no_sum_of_lines_is_larger_than_a_file_can_be() -> None:
    row = f"RW {(1 << 53) - 1} ZERO"
    assert lines(row).size == (1 << 62) - 512
    with pytest.raises(DescriptorError, match="than any disk has") as caught:
        lines(row, "RW 2 ZERO", row)
    assert caught.value.line == 3


def test_as_many_lines_as_a_disk_can_have_and_one_more() -> None:
    rows = b"RW 1 ZERO\n" * 32768  # 64 TiB in pieces of 2 GiB
    assert parse(rows, "x").size == 32768 * 512
    with pytest.raises(DescriptorError, match="more extents") as caught:
        parse(rows + b"RW 1 ZERO", "x")
    assert caught.value.line == 32769


# ── limits and other keys ────────────────────────────────────────────────────────────────────────────────────────


def test_one_mebibyte_and_no_more() -> None:
    body = b"RW 1 ZERO\n" + b"#" * (LARGEST - 10)
    assert parse(body, "x").size == 512
    assert parse(body + b"\0" * 9, "x").size == 512
    with pytest.raises(DescriptorError, match="the descriptor has more than 1048576 bytes"):
        parse(body + b"#", "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("fffffffe", 0xFFFFFFFE), ("FFFFFFFF", NO_CID), ("0x12", 0x12), ("1234abcd", 0x1234ABCD)],
)
def test_content_ids(text: str, value: int) -> None:
    assert lines(f"CID={text}").cid == value
    assert lines(f"parentCID={text}").parent_cid == value


@pytest.mark.parametrize("text", ["", "xyz", "123456789", "-1", "1 2", "0x"])
def test_wrong_content_ids(text: str) -> None:
    for key in ("cid", "parentcid"):
        found = lines(f"{key}={text}")
        with pytest.raises(DescriptorError, match=f"{key} is {text!r}; eight hexadecimal digits expected"):
            _ = found.cid, found.parent_cid


def test_content_ids_that_are_not_there() -> None:
    assert lines("version=1").cid == 0
    assert lines("version=1").parent_cid == NO_CID


@pytest.mark.parametrize(
    "row",
    [
        'encryptionKeys="vmware:key/list"',
        'keyID="vmware:key/fqid"',
        'ddb.iofilters = "vmwarevmcrypt"',
        'ddb.iofilters = "other,VMWareVMCrypt"',
    ],
)
def test_encrypted(row: str) -> None:
    assert lines(row).is_encrypted
    assert not lines('ddb.iofilters = "vmwarelwd"').is_encrypted


# ── what is a descriptor at all ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "head",
    [
        b"# Disk DescriptorFile",
        b"#DISK DESCRIPTORFILE\r\n",
        b"# Disk Descriptor File\n",
        b"\n\n# Disk DescriptorFile\n",
        b'  createType = "vmfs"\n',
        b"# made by hand\nparentCID=ffffffff\n",
        b"version=1\nCID=1\ncreatetype=x",
        b"# Disk DescriptorFile\n\0\0\0\xff\xfe",
        b"# Disk DescriptorFile\n\x1b[2J",  # so that its line is refused, not the file
    ],
)
def test_descriptors(head: bytes) -> None:
    assert looks_like_descriptor(head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0# Disk DescriptorFile",
        b"KDMV",
        b"# a shell script\n",
        b"version=1\n",
        b"the text # Disk DescriptorFile\n",
        b"x createType=1",
        bytes(512),
        bytes(range(256)),
    ],
)
def test_other_files(head: bytes) -> None:
    assert not looks_like_descriptor(head)


@given(st.binary(max_size=300))
def test_any_bytes_after_a_title_parse_or_are_refused(body: bytes) -> None:
    try:
        text = parse(HEAD + body, "x")
    except DescriptorError:
        return
    assert text.size == sum(line.length for line in text.extents)


KEYS = st.from_regex(r"\A[a-z][a-z0-9._]{0,9}\Z").filter(lambda key: not key.startswith("ddb.") and key != "encoding")
VALUES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12)


@given(st.dictionaries(KEYS, VALUES, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_is_written_is_read(pairs: dict[str, str], newline: str, blanks: bool) -> None:
    sign = " = " if blanks else "="
    raw = newline.join(f'{key}{sign}"{value}"' for key, value in pairs.items()).encode()
    assert parse(raw, "x").header == pairs


# ── hostile text ─────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 500_000
SLOW = {
    "empty lines": b"\n" * MANY,
    "returns": b"\r" * MANY,
    "blank lines": b" \n" * (MANY // 2),
    "blanks in a value": b"a=x" + b" " * MANY + b"x",
    "blanks in a key": b"a" + b" " * MANY + b"x",
    "blanks in a quoted value": b'a="x' + b" " * MANY + b'x" "',
    "blanks in an extent": b"RW" + b" " * MANY + b"x",
    "blanks behind an extent": b"RW 1 ZERO" + b" " * MANY + b"x",
    "blanks behind a name": b'RW 1 FLAT "x"' + b" " * MANY + b"x",
    "digits": b"RW " + b"1" * MANY + b" ZERO",
    "quotes": b"a=" + b'"' * MANY + b"x",
    "one key": b"a" * MANY,
    "hashes": b"#" * MANY,
    "punycode": b'encoding="punycode"\n#-' + b"z9" * (MANY // 2),
    "idna": b'encoding="idna"\n#' + b"z9" * (MANY // 2),
}


@pytest.mark.timeout(5)
@pytest.mark.parametrize("body", SLOW.values(), ids=SLOW)
def test_no_text_is_slow_to_read(body: bytes) -> None:
    for raw in (body, HEAD + body):
        looks_like_descriptor(raw)
        with contextlib.suppress(DescriptorError):
            parse(raw, "x")


def test_doubts_are_few_whatever_the_text() -> None:
    rows = b"".join(b"k%d=1\nk%d=2\n" % (number, number) for number in range(40_000))
    text = parse(HEAD + rows, "x")
    assert len(text.header) == 40_000
    assert len(text.doubts) <= 101
    assert "39900 more keys stand twice" in str(text.doubts[-1])
