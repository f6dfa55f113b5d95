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

from vmdkit.nbd.export import Export
from vmdkit.nbd.listening import tcp, unix, vsock
from vmdkit.nbd.server import Options, Server
from vmdkit.nbd.tls import Tls, with_certificates, with_psk

__all__ = ["Export", "Options", "Server", "Tls", "tcp", "unix", "vsock", "with_certificates", "with_psk"]
