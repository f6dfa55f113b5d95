# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A descriptor is changed without moving a byte."""

from __future__ import annotations

import pytest

from vmdkit.errors import DescriptorError
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk import descriptor, descriptor_edit

TEXT = b"""# Disk DescriptorFile
version=3
CID=0000abcd
parentCID=ffffffff
createType="vmfs"
RW 8 VMFS "x-flat.vmdk"
changeTrackPath="x-ctk.vmdk"
ddb.longContentID = "0123456789abcdef0123456789abcdef"
"""


def test_the_content_id_changes_and_the_long_one_follows() -> None:
    new, cid = descriptor_edit.change_content(TEXT)
    parsed = descriptor.parse(new, "x.vmdk")
    assert len(new) == len(TEXT)
    assert parsed.cid == cid != 0xABCD
    assert parsed.ddb["longcontentid"][24:] == f"{cid:08x}"
    assert parsed.parent_cid == 0xFFFFFFFF


def test_tracking_is_switched_off() -> None:
    parsed = descriptor.parse(descriptor_edit.change_content(TEXT)[0], "x.vmdk")
    assert parsed.change_track_path == ""
    assert parsed.header["version"] == "1"


def test_a_short_content_id_keeps_its_width() -> None:
    text = b"# Disk DescriptorFile\nversion=1\nCID=abc\nparentCID=ffffffff\n"
    new, cid = descriptor_edit.change_content(text)
    assert len(new) == len(text)
    assert 0 < cid < 0x1000


def test_parent_cid_is_never_taken_for_the_cid() -> None:
    text = b"parentCID=11111111\nCID=22222222\n"
    new, _ = descriptor_edit.change_content(text)
    assert new.startswith(b"parentCID=11111111\n")


def test_without_a_content_id_nothing_is_written() -> None:
    with pytest.raises(DescriptorError, match="no CID to change"):
        descriptor_edit.change_content(b"# Disk DescriptorFile\nversion=1\n")


def test_reserved_content_ids_are_never_made() -> None:
    assert all(descriptor_edit.new_content_id(5, 1) not in (0, 5) for _ in range(200))


def test_only_changed_sectors_are_written() -> None:
    old = b"a" * 300 + b"b" * 512 + b"c" * 700
    new = old[:400] + b"X" + old[401:]

    class Counting(MemoryDevice):
        wrote: list[tuple[int, int]] = []  # noqa: RUF012  # one instance

        def _pwrite(self, view: memoryview, offset: int) -> None:
            self.wrote.append((offset, len(view)))
            super()._pwrite(view, offset)

    device = Counting(b"." * 100 + old + b"." * 100)
    descriptor_edit.write_changed(device, 100, old, new)
    assert device.wrote == [(100, 412)]
    assert device.pread(len(new), 100) == new
