# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How a verb names and opens a disk: one grammar and one set of options everywhere."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmdkit.cli.program import Program

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vmdkit.cli.parser import Parser
    from vmdkit.device import Device

_BLAS = "OPENBLAS_NUM_THREADS"


def add_disk_options(parser: Parser, *, tls: bool = True) -> None:
    """Add the options that say how disks are opened; ``tls`` False where the verb's own say something else."""
    group = parser.add_argument_group("opening disks")
    group.add_argument("--raw", action="store_true", help="the bytes as they are; never guessed from content")
    group.add_argument("--salvage", action="store_true", help="read a stream that was cut off, as far as it goes")
    group.add_argument("--single-link", action="store_true", help="this link only: what its parents hold reads as zero")
    group.add_argument("--untrusted", action="store_true", help="single-file subformats only; no other file is opened")
    group.add_argument(
        "--allow-path",
        metavar="DIR",
        action="append",
        default=[],
        help="extents and parents may lie in DIR too (repeatable)",
    )
    group.add_argument(
        "--directory",
        choices=("primary", "redundant"),
        default="primary",
        help="which grain directory to believe",
    )
    group.add_argument("--ignore-cid", action="store_true", help="open a parent that has changed since the child")
    group.add_argument(
        "--with-children", action="store_true", help="write although other disks were made from this one"
    )
    group.add_argument("--ignore-journal", action="store_true", help="open although a journal was not replayed")
    if tls:
        group.add_argument(
            "--tls-certificates",
            metavar="DIR",
            dest="peer_certificates",
            help="nbds://: holds ca-cert.pem, perhaps client-cert.pem and client-key.pem",
        )
        group.add_argument(
            "--tls-psk", metavar="FILE", dest="peer_psk", help="nbds://: keys shared beforehand, as psktool writes them"
        )
    else:
        parser.set_defaults(peer_certificates=None, peer_psk=None)


def open_disk(args: Namespace, location: str, *, writable: bool = False, raw: bool | None = None) -> Device:
    """Open what the user calls ``location``, as the options in ``args`` say (``raw``: rather than --raw)."""
    from vmdkit import opener

    if isinstance(location, Program):
        from vmdkit.nbd.client import connect
        from vmdkit.nbd.client_address import ActivatedAddress

        return connect(ActivatedAddress(location.command), writable=writable)
    with without_blas_threads():
        return opener.open(
            location,
            writable=writable,
            raw=args.raw if raw is None else raw,
            salvage=args.salvage,
            single_link=args.single_link,
            untrusted=args.untrusted,
            allow_paths=tuple(args.allow_path),
            directory=args.directory,
            ignore_cid=args.ignore_cid,
            ignore_journal=args.ignore_journal,
            with_children=writable and args.with_children,
            tls_certificates=args.peer_certificates,
            tls_psk=args.peer_psk,
        )


@contextmanager
def without_blas_threads() -> Iterator[None]:
    """Spare numpy, if it is imported now, the start of threads for algebra we never do: 50 of its 130 ms of CPU.

    The variable is gone afterwards, so that no program we start inherits it.
    """
    if _BLAS in os.environ or "numpy" in sys.modules:
        yield
        return
    os.environ[_BLAS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS]
