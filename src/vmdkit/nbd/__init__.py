# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The NBD protocol; knows Devices, never VMDK."""

from __future__ import annotations
