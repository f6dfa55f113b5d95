# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The public names, pinned: adding one is a decision, losing one breaks somebody."""

from __future__ import annotations

import vmdkit

NAMES = [
    "BlockSize",
    "Can",
    "ChainError",
    "CorruptError",
    "DescriptorError",
    "Device",
    "Extent",
    "ExtentFlags",
    "FormatError",
    "GateError",
    "Kind",
    "Location",
    "OutOfRangeError",
    "ReadOnlyError",
    "UnsupportedError",
    "UsageError",
    "VmdkitError",
    "create",
    "open",
]


def test_names() -> None:
    assert vmdkit.__all__ == NAMES


def test_each_is_there_and_says_what_it_is() -> None:
    for name in NAMES:
        assert getattr(vmdkit, name).__doc__


def test_the_version_is_the_distributions() -> None:
    import importlib.metadata  # only this test needs it

    assert importlib.metadata.version("vmdkit") == vmdkit.__version__
