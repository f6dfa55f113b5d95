# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Appliances: an OVF descriptor, a manifest and disks in one tar, the OVA."""

from __future__ import annotations
