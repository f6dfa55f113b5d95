# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Images that are sound but must be refused, with a reason: what no reader outside VMware can or should read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from images.assemble import Piece, assemble, monolithic_flat, se_sparse, vmfs
from images.hosted import Hosted, monolithic_sparse
from images.sesparse import SeSparse
from images.stream import Stream, stream_optimized
from images.text import DDB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from images.base import Image

LAYOUT: Final = "64k:A 64k:-"


def _rdm(directory: Path, create_type: str, file: str) -> Image:
    return assemble(directory, LAYOUT, [Piece("VMFSRDM", file=file)], create_type)


def _named(directory: Path, create_type: str, line: str) -> Image:
    """Build a flat disk, then let its descriptor say something else."""
    image = monolithic_flat(directory, LAYOUT)
    image.put_text(image.text.but(create_type=create_type, lines=(line,)).render(image.style))
    return image


def _encrypted(directory: Path) -> Image:
    keys = 'encryptionKeys="vmware:key/list/(pair/(phrase/AbCdEf/pass2key=PBKDF2%2dHMAC%2dSHA%2d1))"'
    return monolithic_sparse(directory, LAYOUT, version="2", extra=(keys,))


def _key_id(directory: Path) -> Image:
    return vmfs(directory, LAYOUT, extra=('keyID="vmware:key/fqid/<VMWARE%2dNULL>/server/key"',))


def _filtered(directory: Path) -> Image:
    return vmfs(directory, LAYOUT, ddb=(*DDB, ("iofilters", "vmwarevmcrypt"), ("sidecars", "disk_1.vmfd")))


def _poked(directory: Path, field: str, value: int | bytes) -> Image:
    image = monolithic_sparse(directory, LAYOUT)
    image.poke(field, value)
    return image


def _algorithm(directory: Path) -> Image:
    image = stream_optimized(directory, LAYOUT, Stream(footer=False))
    image.poke("header.compressAlgorithm", 2)
    return image


_VSAN = 'RW 256 VMFS "vsan://5d1b2c57-0d1e-4a7c-8f0a-246e962f4850"'
_RAW = 'RW 256 VMFSRAW "/vmfs/devices/disks/naa.600508b1001c1234"'

REFUSED: Final[dict[str, Callable[[Path], Image]]] = {
    "rdm": partial(_rdm, create_type="vmfsRDM", file="disk-rdm.vmdk"),
    "rdmp": partial(_rdm, create_type="vmfsRDMP", file="disk-rdmp.vmdk"),
    "raw-device-map": partial(_rdm, create_type="vmfsRawDeviceMap", file="disk-rdm.vmdk"),
    "passthrough-map": partial(_rdm, create_type="vmfsPassthroughRawDeviceMap", file="disk-rdmp.vmdk"),
    "vmfs-raw": partial(_named, create_type="vmfsRaw", line=_RAW),
    "vsan-sparse": partial(_named, create_type="vsanSparse", line='RW 256 VSANSPARSE "disk-flat.vmdk"'),
    "vsan-name": partial(_named, create_type="vmfs", line=_VSAN),
    "unknown-extent-type": partial(_named, create_type="custom", line='RW 256 HOLOGRAM "disk-flat.vmdk"'),
    "encrypted": _encrypted,
    "encrypted-key-id": _key_id,
    "encrypted-by-filter": _filtered,
    "incompatible-flag": partial(_poked, field="header.flags", value=3 | 1 << 20),
    "unfinished": partial(_poked, field="header.magic", value=b"kdmv"),
    "version-4": partial(_poked, field="header.version", value=4),
    "version-0": partial(_poked, field="header.version", value=0),
    "compression-2": _algorithm,
    "journal-to-replay": partial(se_sparse, what=LAYOUT, knobs=SeSparse(replay=1)),
}
# Low flag bits are "compatible": such an image must open for reading, and must not open for writing.
READ_ONLY: Final[dict[str, Callable[[Path], Image]]] = {
    "compatible-flag": partial(monolithic_sparse, what=LAYOUT, knobs=Hosted(flags=1 << 9)),
    "version-3": partial(monolithic_sparse, what=LAYOUT, knobs=Hosted(version=3)),
    "stream": partial(stream_optimized, what=LAYOUT),
    "seSparse": partial(se_sparse, what=LAYOUT),
}
