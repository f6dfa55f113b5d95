# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Files of keys and certificates that cannot be used: what is said names the line, never the key."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import UsageError
from vmdkit.nbd import tls
from vmdkit.nbd.negotiation import TlsMode

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef" * 4


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# made by hand\nalice:{KEY}\n\nbob:{KEY[:32]}\n")
    path.chmod(0o600)
    keys = tls.read_psk(str(path))
    assert keys == {"alice": bytes.fromhex(KEY), "bob": bytes.fromhex(KEY[:32])}
    assert tls._find(keys, b"alice") == bytes.fromhex(KEY)
    assert tls._find(keys, b"mallory") == b""
    assert tls._find(keys, b"") == b""


@pytest.mark.parametrize("line", ["alice", ":" + KEY, "alice:", "alice:xyz", "alice:" + KEY[:30], "alice:" + KEY * 17])
def test_bad_lines_are_named_by_number_only(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"bob:{KEY}\n{line}\n")
    with pytest.raises(UsageError, match="line 2 is not user:key") as caught:
        tls.read_psk(str(path))
    assert KEY[:16] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# nothing yet\n")
    with pytest.raises(UsageError, match="holds no keys"):
        tls.with_psk(str(path))
    with pytest.raises(FileNotFoundError):
        tls.with_psk(str(tmp_path / "nowhere"))


def test_keys_that_everybody_can_read_are_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice:{KEY}\n")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "vmdkit.nbd"):
        tls.read_psk(str(path))
    assert "chmod 600" in caplog.text
    assert KEY[:16] not in caplog.text


def test_psk_is_required_unless_said_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice:{KEY}\n")
    path.chmod(0o600)
    assert tls.with_psk(str(path)).required
    assert not tls.with_psk(str(path), mode=TlsMode.ON).required
    assert not tls.Tls().required


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"server-cert\.pem: not found"):
        tls.with_certificates(str(tmp_path))
    for name in ("server-cert.pem", "server-key.pem"):
        (tmp_path / name).write_text("nonsense")
    with pytest.raises(UsageError, match="cannot be used"):
        tls.with_certificates(str(tmp_path))
