# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unicodedata

import pytest

from vmdkit.cli.render import out, safe_text, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text 7", "plain text 7"),
        ("été 日本", "été 日本"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r\0", "a\\x0ab\\x09c\\x0d\\x00"),
        ("\x7f\x80\x9f", "\\x7f\\x80\\x9f"),
        ("\u200b\u202a\u202e\u2066\ufeff", "\\u200b\\u202a\\u202e\\u2066\\ufeff"),
        ("\u2028\u2029\xa0", "\\u2028\\u2029\\xa0"),
        ("\U000e0041", "\\U000e0041"),
        ("caf\udce9", "caf\\xe9"),
        ("[bold]markup[/bold]", "[bold]markup[/bold]"),
        (7, "7"),
    ],
)
def test_safe_text(text: object, shown: str) -> None:
    assert safe_text(text) == shown


def test_no_control_or_format_character_passes() -> None:
    passed = [chr(code) for code in [*range(0x30000), *range(0xE0000, 0xE0200)] if safe_text(chr(code)) == chr(code)]
    assert not {unicodedata.category(char) for char in passed} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_out_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out("two\nlines")
    assert capsys.readouterr().out == "two\\x0alines\n"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    table([["name", "bytes"], ["a", 1000], ["bc\x1b", 7]], right=[1])
    assert capsys.readouterr().out == ("name    bytes\n------  -----\na        1000\nbc\\x1b      7\n")
    table([])
    assert capsys.readouterr().out == ""
