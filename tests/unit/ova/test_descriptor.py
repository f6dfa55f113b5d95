# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What is read out of an OVF."""

from __future__ import annotations

import pytest

from ovas import STREAM, Ovf, Part
from vmdkit.errors import FormatError
from vmdkit.ova import descriptor
from vmdkit.ova.descriptor import parse, units


def test_a_whole_one() -> None:
    text = Ovf(
        [Part("a.vmdk", b"12345", 10, units="byte * 2^20"), Part("b.vmdk", b"", 7, extra=' ovf:populatedSize="3"')],
        sections="""<AnnotationSection><Info/><Annotation>note</Annotation></AnnotationSection>
        <EulaSection><Info/><License>terms</License></EulaSection>
        <ProductSection><Info/><Product>P</Product><Vendor>V</Vendor><Version>1</Version>
        <Property ovf:key="ip" ovf:type="string" ovf:userConfigurable="true" ovf:value="x"><Label>IP</Label></Property>
        </ProductSection>""",
        hardware='<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>'
        '<vmw:ExtraConfig vmw:key="x" vmw:value="y"/>',
    ).text()
    envelope = parse(text, "x")
    assert envelope.version == "1"
    assert [(file.id, file.href, file.size) for file in envelope.files] == [
        ("file1", "a.vmdk", 5),
        ("file2", "b.vmdk", 0),
    ]
    assert [(disk.id, disk.capacity, disk.populated, disk.format) for disk in envelope.disks] == [
        ("vmdisk1", 10 << 20, None, STREAM),
        ("vmdisk2", 7, 3, STREAM),
    ]
    assert envelope.href_of(envelope.disks[1]) == "b.vmdk"
    assert [network.name for network in envelope.networks] == ["VM Network"]
    (system,) = envelope.systems
    assert (system.id, system.name, system.os_id, system.os_type) == ("box", "box", 94, "ubuntu64Guest")
    assert (system.annotation, system.eulas, system.product["Vendor"]) == ("note", ["terms"], "V")
    assert [(one.key, one.label, one.configurable) for one in system.properties] == [("ip", "IP", True)]
    (hardware,) = system.hardware
    assert (hardware.families, hardware.config, hardware.extra) == (["vmx-13"], {"firmware": "efi"}, {"x": "y"})
    drives = hardware.of_type(descriptor.DISK)
    assert [(item.disk_id(), item.parent, item.on_parent) for item in drives] == [
        ("vmdisk1", "3", "0"),
        ("vmdisk2", "3", "1"),
    ]
    (nic,) = hardware.of_type(descriptor.ETHERNET)
    assert (nic.connections, nic.subtype, nic.required, nic.what) == (
        ["VM Network"], "E1000", True, "network adapter 'Network adapter'",
    )  # fmt: skip


def test_version_2_items_and_collections() -> None:
    text = b"""<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/2" xmlns:s="urn:s"><VirtualSystemCollection>
    <VirtualSystem id="a"><VirtualHardwareSection><StorageItem required="false"><s:InstanceID>7</s:InstanceID>
    <s:HostResource>ovf:/file/f</s:HostResource><s:ResourceType>17</s:ResourceType></StorageItem>
    </VirtualHardwareSection></VirtualSystem><VirtualSystem id="b"/></VirtualSystemCollection></Envelope>"""
    envelope = parse(text, "x")
    assert (envelope.version, [system.id for system in envelope.systems]) == ("2", ["a", "b"])
    (item,) = envelope.systems[0].hardware[0].items
    assert (item.id, item.required, item.file_id(), item.disk_id()) == ("7", False, "f", None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, 1), ("", 1), ("byte", 1), ("byte * 2^30", 1 << 30), ("byte*2^10", 1024), ("byte * 10^9", 10**9),
        ("MegaBytes", 1 << 20), ("GigaBytes", 1 << 30), ("bytes", 1), ("furlongs", None), ("byte * 3^2", None),
        ("byte * 2^999", None), ("hertz * 10^6", None),
    ],
)  # fmt: skip
def test_units(text: str | None, size: int | None) -> None:
    assert units(text) == size


@pytest.mark.parametrize("number", ["", "-1", "1.5", "\u0661", "9" * 20, "${size}", "0x10"])
def test_numbers_that_are_none(number: str) -> None:
    text = Ovf([Part("a", b"", 0)]).text().decode().replace('capacity="0"', f'capacity="{number}"')
    envelope = parse(text.encode(), "x")
    assert (envelope.disks[0].capacity, envelope.disks[0].capacity_text) == (None, number)


def test_what_is_no_envelope() -> None:
    with pytest.raises(FormatError, match="its root is 'a', not an OVF envelope"):
        parse(b"<a/>", "x")


def test_an_empty_envelope() -> None:
    envelope = parse(b"<Envelope/>", "x")
    assert (envelope.version, envelope.files, envelope.disks, envelope.systems) == ("", [], [], [])
