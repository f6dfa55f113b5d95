# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A Device in front of a Device, one idea per file."""

from __future__ import annotations
