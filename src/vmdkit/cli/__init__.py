# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: the only place that prints, reads the environment and handles signals."""

from __future__ import annotations
