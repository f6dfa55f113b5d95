# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The NBD protocol; knows Devices, never VMDK.

Serve a device from a thread of your own program::

    import subprocess
    import vmdkit
    from vmdkit.nbd import Export, Server

    with vmdkit.open("disk.vmdk") as disk, Server(Export(disk, description="a test")) as server:
        subprocess.run(["nbdinfo", server.uri])

``Server.connect`` gives a connected socket without any address. ``vmdkit serve`` is the same over several processes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmdkit.nbd.client import NbdDevice, connect
    from vmdkit.nbd.client_address import (
        ActivatedAddress,
        CommandAddress,
        SocketAddress,
        TcpAddress,
        UnixAddress,
        VsockAddress,
    )
    from vmdkit.nbd.client_pool import ClientOptions
    from vmdkit.nbd.export import Export
    from vmdkit.nbd.handle import NBD
    from vmdkit.nbd.handle_names import Error
    from vmdkit.nbd.listening import tcp, unix, vsock
    from vmdkit.nbd.server import Options, Server
    from vmdkit.nbd.tls import Tls, with_certificates, with_psk

__all__ = [
    "NBD", "ActivatedAddress", "ClientOptions", "CommandAddress", "Error", "Export", "NbdDevice", "Options", "Server",
    "SocketAddress", "TcpAddress", "Tls", "UnixAddress", "VsockAddress", "connect", "tcp", "unix", "vsock",
    "with_certificates", "with_psk",
]  # fmt: skip

# Where each name lives; imported when it is used, since who serves needs no client, and neither is cheap.
_PLACES = {
    "client": ("NbdDevice", "connect"),
    "client_address": (
        "ActivatedAddress", "CommandAddress", "SocketAddress", "TcpAddress", "UnixAddress", "VsockAddress",
    ),
    "client_pool": ("ClientOptions",),
    "export": ("Export",),
    "handle": ("NBD",),
    "handle_names": ("Error", "package_name"),  # and all its numbers
    "listening": ("tcp", "unix", "vsock"),
    "server": ("Options", "Server"),
    "tls": ("Tls", "with_certificates", "with_psk"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    if name.isupper() and hasattr(numbers := import_module(f"{__name__}.handle_names"), name):
        return getattr(numbers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
