# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Cut the power of a writer at every moment, and hold what is left against what it had promised."""

from __future__ import annotations
