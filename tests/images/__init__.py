# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Write VMDK images of every subformat from a layout or a model, sound or damaged: the oracle of the tests.

::

    image = images.monolithic_sparse(tmp_path, "64k:A 64k:0 64k:-", images.Hosted(grain=4096))
    image.path                      # what a user opens
    image.model.pread(512, 0)       # what must be read
    image.poke("header.grainSize", 7)
    image.poke_entry(3, 1)          # the grain table entry of grain 3
"""

from __future__ import annotations

from images.assemble import (
    VMFS_TYPES,
    Piece,
    assemble,
    custom,
    full_device,
    monolithic_and_more,
    monolithic_flat,
    partitioned_device,
    se_sparse,
    split_flat,
    split_sparse,
    vmfs,
    vmfs_sparse,
)
from images.base import HINTS, PACKED, Common, Field, Image, Part, Run
from images.cowd import Cowd
from images.flat import Flat
from images.hosted import Hosted, monolithic_sparse
from images.recipes import cowd_8m, sesparse_100m
from images.sesparse import SeSparse
from images.stream import STREAMS, Stream, stream_optimized
from images.table import CHILDREN, PATCHED, SUBFORMATS, Row, chain
from images.text import DDB, DDB_SMALL, NAMES, STYLES, Style, Text

__all__ = [
    "CHILDREN",
    "DDB",
    "DDB_SMALL",
    "HINTS",
    "NAMES",
    "PACKED",
    "PATCHED",
    "STREAMS",
    "STYLES",
    "SUBFORMATS",
    "VMFS_TYPES",
    "Common",
    "Cowd",
    "Field",
    "Flat",
    "Hosted",
    "Image",
    "Part",
    "Piece",
    "Row",
    "Run",
    "SeSparse",
    "Stream",
    "Style",
    "Text",
    "assemble",
    "chain",
    "cowd_8m",
    "custom",
    "full_device",
    "monolithic_and_more",
    "monolithic_flat",
    "monolithic_sparse",
    "partitioned_device",
    "se_sparse",
    "sesparse_100m",
    "split_flat",
    "split_sparse",
    "stream_optimized",
    "vmfs",
    "vmfs_sparse",
]
