# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The tree: what is refused, what is kept, what comes out again."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from vmdkit.errors import FormatError, UsageError
from vmdkit.ova import xml
from vmdkit.ova.xml import Element

TEXT = b"""<?xml version='1.0'?>
<!-- first -->
<o:a xmlns:o="urn:o" xmlns="urn:d" o:k='1 &lt; "2"&#10;' k="plain">
  <b>x &amp; y</b><!-- kept --><?pi data?>
  <c xmlns="urn:c"><d/></c>
  <b><![CDATA[<z>]]></b>
</o:a>"""


def test_names_lines_and_namespaces() -> None:
    root = xml.parse(TEXT, "x")
    assert (root.local, root.namespace, root.line) == ("a", "urn:o", 3)
    first, other, last = root.elements()
    assert (first.text, first.namespace, first.line) == ("x & y", "urn:d", 4)
    assert [(element.local, element.namespace) for element in other.walk()] == [("c", "urn:c"), ("d", "urn:c")]
    assert last.text == "<z>"
    assert root.value("b") == "x & y"
    assert root.value("nothing") is None


def test_attributes() -> None:
    root = xml.parse(TEXT, "x")
    assert root.get("k", "urn:o") == '1 < "2"\n'
    assert root.get("k", "urn:other") == "plain"
    assert root.get("missing") is None
    root.set("k", "new", "urn:o")
    root.set("m", "3", "urn:o")
    assert (root.attributes["o:k"], root.attributes["k"], root.attributes["o:m"]) == ("new", "plain", "3")
    root.set("k", None, "urn:o")
    assert "o:k" not in root.attributes


def test_it_comes_out_with_the_same_meaning() -> None:
    once = xml.render(xml.parse(TEXT, "x"))
    assert xml.render(xml.parse(once, "x")) == once
    assert b"<!-- kept --><?pi data?>" in once
    assert ElementTree.canonicalize(once.decode()) == ElementTree.canonicalize(
        TEXT.decode().replace("<!-- first -->", "")
    )


def test_changing() -> None:
    root = xml.parse(TEXT, "x")
    first = next(root.elements("b"))
    first.text = "<new>"
    root.remove(next(root.elements("c")))
    assert b"<b>&lt;new&gt;</b>" in xml.render(root)
    assert b"urn:c" not in xml.render(root)


def test_a_new_tree_is_indented() -> None:
    root = Element("a", {}, [Element("b", {}, [Element("c", {}, ["text"]), Element("d")])])
    xml.indent(root)
    assert xml.render(root).decode().splitlines()[1:] == [
        "<a>",
        "  <b>",
        "    <c>text</c>",
        "    <d/>",
        "  </b>",
        "</a>",
    ]


@pytest.mark.parametrize("text", ["a\0b", "\x0b", "\ud800", "\uffff"])
def test_characters_that_xml_cannot_hold(text: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in XML"):
        xml.render(Element("a", {}, [text]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no element found"),
        (b"<a>", "no element found, in line 1"),
        (b"<a/><b/>", "junk after document element"),
        (b"\n\n<a b='1' b='2'/>", "duplicate attribute, in line 3"),
        (b"<a>&nbsp;</a>", "undefined entity"),
        (b"<x:a/>", "the prefix 'x' is declared nowhere, in line 1"),
        (b"<a x:b='1'/>", "the prefix 'x' is declared nowhere"),
        (b"<!DOCTYPE a><a/>", "a document type declaration.*in line 1"),
        (b"<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>", "a document type declaration"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "a document type declaration"),
        (b"<a>" * 65 + b"</a>" * 65, "more than 64 elements in one another"),
        (b"<a>" + b"<b/>" * 50_000 + b"</a>", "50000 in all"),
        (b"<a " + b" ".join(b"b%d=''" % at for at in range(257)) + b"/>", "256 attributes"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "no XML that can be read|unknown encoding"),
        (b"<?xml version='1.0' encoding='utf-16'?><a/>", "no well-formed XML"),
        (b"\xff\xfe<\0a", "no well-formed XML"),
        (b"<a>\xff</a>", "not well-formed"),
        (b"<a>" + b" " * xml.LARGEST, "a descriptor has at most"),
    ],
)
def test_what_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        xml.parse(data, "box.ova#box.ovf")
    assert caught.value.path == "box.ova#box.ovf"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings(encoding: str) -> None:
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    data = f"<?xml version='1.0' encoding='{name}'?><a>é</a>".encode(encoding)
    assert xml.parse(data, "x").text == "é"
