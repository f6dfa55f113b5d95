# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What may be said about a disk besides its name: the keywords of ``vmdkit.open``, for whoever opens it in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a disk is to be opened; ``vmdkit.open`` says what each means.

    The openers in ``opener.SCHEMES`` get it whole and take what concerns them: the same options are given for two
    disks of different kinds.
    """

    writable: bool = False
    raw: bool = False
    salvage: bool = False
    single_link: bool = False
    untrusted: bool = False
    allow_paths: tuple[str, ...] = ()
    directory: str = "primary"
    ignore_cid: bool = False
    ignore_journal: bool = False
    with_children: bool = False
    tls_certificates: str | None = None
    tls_psk: str | None = None
