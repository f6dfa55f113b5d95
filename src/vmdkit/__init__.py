# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""vmdkit: read and serve VMware .vmdk disks at the block level."""

from __future__ import annotations
