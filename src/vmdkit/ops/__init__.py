# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Programs over Devices: copy, compare, hash."""

from __future__ import annotations
