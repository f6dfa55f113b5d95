# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Where bytes live: files, memory, nothing, HTTP."""

from __future__ import annotations
