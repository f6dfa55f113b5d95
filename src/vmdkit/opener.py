# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Turn what a user names into a Device: the one door of the library, ``vmdkit.open``.

A path is opened as a VMDK; raw bytes have to be asked for, never guessed: what a guest can write into a raw disk
would otherwise choose how its host reads it (users spec, A5). An address is opened by what ``SCHEMES`` names for it,
and so is a disk inside an archive, ``box.ova#disk.vmdk``.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.options import OpenOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmdkit.device import Device
    from vmdkit.gate import Gate
    from vmdkit.vmdk.descriptor import Descriptor
    from vmdkit.vmdk.files import Files
    from vmdkit.vmdk.image import Options

# scheme -> "module:function" or "module:function [extra]", as entry points are written. The module is imported on use,
# so that a floor above this one may be named and a missing extra costs nothing; the function is called with the
# location as it was given and the OpenOptions, and returns a Device.
SCHEMES: Final[dict[str, str]] = {
    "ova": "vmdkit.ova.disk:open_disk",  # also what is named box.ova, or box.ova#member
    "nbd": "vmdkit.nbd.client:open_uri",
    "nbds": "vmdkit.nbd.client:open_uri",
    "nbd+unix": "vmdkit.nbd.client:open_uri",
    "nbds+unix": "vmdkit.nbd.client:open_uri",
    "nbd+vsock": "vmdkit.nbd.client:open_uri",
    "nbds+vsock": "vmdkit.nbd.client:open_uri",
}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_OVA = re.compile(r".*?\.ova(#.*)?", re.IGNORECASE | re.DOTALL)
_DIRECTORIES = ("primary", "redundant")


def open(  # noqa: A001  # the library's own verb, used as vmdkit.open
    location: str | os.PathLike[str],
    *,
    writable: bool = False,
    raw: bool = False,
    salvage: bool = False,
    single_link: bool = False,
    untrusted: bool = False,
    allow_paths: Sequence[str] = (),
    directory: str = "primary",
    ignore_cid: bool = False,
    ignore_journal: bool = False,
    with_children: bool = False,
    tls_certificates: str | None = None,
    tls_psk: str | None = None,
) -> Device:
    """Open a disk and return it as a Device.

    ``raw`` takes the file as plain bytes. ``salvage`` reads a cut-off stream by walking its grains; ``single_link``
    leaves parents out; ``untrusted`` allows single-file images only; ``allow_paths`` are directories, besides its
    own, whose files an image may name; ``directory`` chooses the copy of the grain tables (``primary`` or
    ``redundant``); ``ignore_cid`` and ``ignore_journal`` accept what is otherwise refused. ``with_children`` writes
    to a disk although others in its directory were made from it, which are broken by that. ``tls_certificates`` (a
    directory) and ``tls_psk`` (a file of keys) are for servers at addresses.

    What is opened for writing is locked, until it is closed, against other programs; its parents too.

    Raises FormatError for damage, UnsupportedError for what cannot be read, ChainError for parents, GateError for
    names that lead elsewhere, LockedError (a VmdkitError) where somebody else has it, OSError for files; each says
    which file and where.
    """
    path = os.fspath(location)
    if directory not in _DIRECTORIES:
        raise UsageError(f"directory is {directory!r}; 'primary' or 'redundant' are the copies there are")
    scheme = scheme_of(path) or ("ova" if names_archive(path, raw=raw) else None)
    if scheme is not None:
        wishes = OpenOptions(
            writable=writable,
            raw=raw,
            salvage=salvage,
            single_link=single_link,
            untrusted=untrusted,
            allow_paths=tuple(allow_paths),
            directory=directory,
            ignore_cid=ignore_cid,
            ignore_journal=ignore_journal,
            with_children=with_children,
            tls_certificates=tls_certificates,
            tls_psk=tls_psk,
        )
        return _opener(scheme, path)(path, wishes)
    if raw:
        from vmdkit.storage.file import open_file  # on use: importing vmdkit has to stay cheap

        device = open_file(path, writable=writable)
        return _locked_raw(device) if writable else device
    from vmdkit.finder import find, gate_for
    from vmdkit.vmdk.image import Options, open_image

    options = Options(
        salvage=salvage,
        single_link=single_link,
        redundant=directory == "redundant",
        ignore_cid=ignore_cid,
        ignore_journal=ignore_journal,
        untrusted=untrusted,
        writable=writable,
    )
    storage, text = find(path, untrusted=untrusted, writable=writable)
    gate = gate_for(untrusted=untrusted, allow_paths=allow_paths)
    if not writable:
        return open_image(storage, text, gate, options)
    return _locked(storage, text, gate, options, with_children=with_children)


def scheme_of(location: str) -> str | None:
    """Return the key of SCHEMES that opens ``location``; None for what is opened as a path.

    A scheme that is no key is returned too: an address is never taken for a path.
    """
    address = _SCHEME.match(location)
    return address[1].lower() if address is not None else None


def names_archive(path: str, *, raw: bool = False) -> bool:
    """Tell whether a path means a disk inside an OVA; ``raw`` without a member means the bytes of the OVA itself."""
    match = _OVA.fullmatch(path)
    if match is None or (raw and match[1] is None):
        return False
    return match[1] is None or not os.path.lexists(path)  # a file may have such a name


def _opener(scheme: str, location: str) -> Callable[[str, OpenOptions], Device]:
    """Import what opens ``scheme``. Raises UnsupportedError for no such scheme, and for an extra that is missing."""
    if scheme not in SCHEMES:
        known = f"known are {', '.join(f'{name}://' for name in SCHEMES)}" if SCHEMES else "give a path"
        raise UnsupportedError(f"no disks are opened by {scheme}:// addresses; {known}", path=location)
    place, _, extra = SCHEMES[scheme].partition(" ")
    module, _, function = place.partition(":")
    try:
        found = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if not extra:
            raise
        raise UnsupportedError(
            f"the package {error.name} is needed and not installed; python3 -m pip install 'vmdkit{extra}' adds it",
            path=location,
        ) from error
    return cast("Callable[[str, OpenOptions], Device]", found)


def _locked(storage: Device, text: Descriptor, gate: Gate, options: Options, *, with_children: bool) -> Device:
    """Open for writing: locked, and only if nobody was made from it."""
    from dataclasses import replace

    from vmdkit.storage.directory import LocalFiles
    from vmdkit.vmdk.children import children
    from vmdkit.vmdk.image import open_image
    from vmdkit.vmdk.locks import LockSet

    locks = LockSet()
    try:
        disk = open_image(storage, text, gate, replace(options, locks=locks))
    except BaseException:
        locks.release()
        raise
    try:
        if not with_children:
            _refuse_children(disk, [child.path for child in children(cast("Files", LocalFiles()), disk)])
    except BaseException:
        disk.close()
        raise
    return disk


def _refuse_children(disk: Device, found: list[str]) -> None:
    if found:
        names = ", ".join(os.path.basename(path) for path in found[:3]) + (" and others" if len(found) > 3 else "")
        raise UsageError(
            f"writing to it would break {names}, made from it as it is now; "
            "write to the child, or say --with-children (with_children=True)", path=disk.name,
        )  # fmt: skip


def _locked_raw(device: Device) -> Device:
    """Lock raw bytes as qemu does; there is nothing of VMware's beside them."""
    from vmdkit.vmdk.locks import take_bytes

    try:
        take_bytes(device)
    except BaseException:
        device.close()
        raise
    return device
