# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Every class of the tree raised once, its text and its errno pinned."""

from __future__ import annotations

import errno

import pytest

from vmdkit import errors
from vmdkit.errors import (
    ChainError,
    ConnectionLostError,
    CorruptError,
    DescriptorError,
    DifferenceError,
    FormatError,
    GateError,
    LocalProtocolError,
    OutOfRangeError,
    ReadOnlyError,
    RemoteProtocolError,
    ReplyError,
    UnsupportedError,
    UsageError,
    VmdkitError,
)

CASES: list[tuple[VmdkitError, str, int]] = [
    (VmdkitError("broken"), "broken", errno.EIO),
    (VmdkitError("broken", path="a.vmdk"), "a.vmdk: broken", errno.EIO),
    (VmdkitError("broken", path="a.vmdk", offset=0), "a.vmdk: broken (at offset 0x0)", errno.EIO),
    (UsageError("no such unit"), "no such unit", errno.EINVAL),
    (OutOfRangeError("too far", offset=512), "too far (at offset 0x200)", errno.EINVAL),
    (ReadOnlyError("opened for reading only", path="d"), "d: opened for reading only", errno.EPERM),
    (UnsupportedError("version 9"), "version 9", errno.ENOTSUP),
    (FormatError("no VMDK", path="x", offset=16), "x: no VMDK (at offset 0x10)", errno.EIO),
    (DescriptorError("no extent", path="x", line=7), "x: no extent (descriptor line 7)", errno.EIO),
    (DescriptorError("no extent", path="x"), "x: no extent", errno.EIO),
    (CorruptError("cut off", structure="Marker", path="x", offset=1), "x: Marker: cut off (at offset 0x1)", errno.EIO),
    (CorruptError("cut off"), "cut off", errno.EIO),
    (DifferenceError("it differs", path="c", offset=9), "c: it differs (at offset 0x9)", errno.EIO),
    (ChainError("the parent is lost", path="c"), "c: the parent is lost", errno.EIO),
    (GateError("outside", path="c"), "c: outside", errno.EACCES),
    (LocalProtocolError("we would break it"), "we would break it", errno.EPROTO),
    (RemoteProtocolError("they broke it"), "they broke it", errno.EPROTO),
    (ConnectionLostError("it is gone", path="nbd://h"), "nbd://h: it is gone", errno.ENOTCONN),
    (ReplyError("no space", errno.ENOSPC), "no space", errno.ENOSPC),
]


@pytest.mark.parametrize(("error", "text", "number"), CASES, ids=[repr(case[0]) for case in CASES])
def test_text_and_errno(error: VmdkitError, text: str, number: int) -> None:
    with pytest.raises(type(error)) as caught:
        raise error
    assert str(caught.value) == text
    assert caught.value.errno == number


def test_every_class_is_raised_above() -> None:
    ours = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, VmdkitError)}
    assert ours == {type(error) for error, _, _ in CASES}


def test_every_class_is_in_the_drawing() -> None:
    assert errors.__doc__ is not None
    for error, _, _ in CASES:
        assert type(error).__name__ in errors.__doc__


def test_descriptor_error_has_the_line_and_corrupt_error_the_structure() -> None:
    assert DescriptorError("x", line=3).line == 3
    assert CorruptError("x", structure="Marker").structure == "Marker"
    assert VmdkitError("x", path="p").message == "x"
