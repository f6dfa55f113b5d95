# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from vmdkit import opener
from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.parser import Parser
from vmdkit.storage.memory import MemoryDevice


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {}),
        (["--raw"], {"raw": True}),
        (["--salvage", "--single-link", "--untrusted"], {"salvage": True, "single_link": True, "untrusted": True}),
        (["--allow-path", "a", "--allow-path", "b"], {"allow_paths": ("a", "b")}),
        (["--directory", "redundant"], {"directory": "redundant"}),
        (["--with-children"], {"with_children": True}),
        (["--ignore-cid", "--ignore-journal"], {"ignore_cid": True, "ignore_journal": True}),
        (["--tls-certificates", "d", "--tls-psk", "k"], {"tls_certificates": "d", "tls_psk": "k"}),
    ],
)
def test_options_reach_the_opener(words: list[str], changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(location: str, **options: Any) -> MemoryDevice:
        seen.update(options, location=location)
        return MemoryDevice(1)

    monkeypatch.setattr(opener, "open", fake)
    parser = Parser("x")
    add_disk_options(parser)
    open_disk(parser.parse_args(words), "disk.vmdk", writable=True)
    expected = {
        "raw": False,
        "salvage": False,
        "single_link": False,
        "untrusted": False,
        "allow_paths": (),
        "directory": "primary",
        "ignore_cid": False,
        "ignore_journal": False,
        "with_children": False,
        "tls_certificates": None,
        "tls_psk": None,
    }
    assert seen == {**expected, **changed, "location": "disk.vmdk", "writable": True}
