# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from vmdkit.errors import UsageError
from vmdkit.storage.file import open_file
from vmdkit.storage.target import in_place, new_file, refuse_own_files

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with new_file(str(path), 8192) as file:
        file.pwrite(b"abc", 5000)
        assert not path.exists()
        assert file.name == str(path)
    assert path.read_bytes() == bytes(5000) + b"abc" + bytes(3189)
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_error_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_file(str(tmp_path / "new"), 10):
        raise error
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(ValueError), new_file(str(path), 10, overwrite=True):  # noqa: PT011
        raise ValueError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["old"]


def test_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="it exists; -f overwrites it"), new_file(str(path), 10):
        pass
    assert path.read_bytes() == b"old"


def test_a_file_that_comes_meanwhile_is_not_harmed(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(UsageError, match="it exists now"), new_file(str(path), 10):
        path.write_bytes(b"other")
    assert path.read_bytes() == b"other"
    assert names(tmp_path) == ["new"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with new_file(str(tmp_path / "new"), 10):
        pass
    with pytest.raises(UsageError, match="it exists now"), new_file(str(tmp_path / "other"), 10):
        (tmp_path / "other").touch()
    assert names(tmp_path) == ["new", "other"]


def test_overwriting_keeps_mode_and_link(tmp_path: Path) -> None:
    path, link = tmp_path / "old", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to("old")
    with new_file(str(link), 3, overwrite=True) as file:
        file.pwrite(b"new", 0)
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_heeds_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_file(str(tmp_path / "new"), 1):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null"):
        with pytest.raises(UsageError, match="no regular file"), new_file(str(path), 1, overwrite=True):
            pass


def test_errors_name_the_file_the_user_knows(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "new")
    with pytest.raises(FileNotFoundError) as caught, new_file(path, 1):
        pass
    assert caught.value.filename == path


def test_a_size_that_no_file_has(tmp_path: Path) -> None:
    path = str(tmp_path / "new")
    with pytest.raises(OSError, match=r"too large|Invalid") as caught, new_file(path, (1 << 63) - 1):
        pass
    assert caught.value.filename == path
    assert names(tmp_path) == []


def test_in_place(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"x" * 10)
    with in_place(str(path), 5) as file:
        file.pwrite(b"abc", 0)
    assert path.read_bytes() == b"abcxxxxxxx"
    with pytest.raises(UsageError, match="it holds 10 bytes, 11 are needed"), in_place(str(path), 11):
        pass
    with pytest.raises(FileNotFoundError), in_place(str(tmp_path / "none"), 1):
        pass


def test_the_source_is_not_the_target(tmp_path: Path, build: Any) -> None:
    from vmdkit import opener

    path, other, link = tmp_path / "disk", tmp_path / "other", tmp_path / "link"
    path.write_bytes(b"x" * 512)
    other.touch()
    os.link(path, link)
    with open_file(str(path)) as source:
        refuse_own_files(source, str(other), "other")
        refuse_own_files(source, str(tmp_path / "none"), "none")
        for same in (path, link):
            with pytest.raises(UsageError, match="read from this very file"):
                refuse_own_files(source, str(same), "same")
    image = build("split-flat", "128k:A")
    with opener.open(image.path) as disk:
        for file in image.files:
            with pytest.raises(UsageError, match="read from this very file"):
                refuse_own_files(disk, str(file), "file")
