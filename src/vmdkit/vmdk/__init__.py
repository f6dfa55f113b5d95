# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The VMDK format: a descriptor, its extent files, and the disk they make."""

from __future__ import annotations
