# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Each rule: an OVA that breaks it. What breaks none is clean for everybody."""

from __future__ import annotations

import gzip
import tarfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

import images
import ovas
from images.stream import STREAMS, Stream
from ovas import END, Ovf, Part, block, manifest, pack, padded
from vmdkit.errors import FormatError, UsageError
from vmdkit.ova.lint import lint
from vmdkit.ova.rules import RULES, Level
from vmdkit.ova.targets import EVERYWHERE, TARGETS, hardware_for, parse_targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmdkit.ova.report import Report

LAYOUT: Final = "64k:A 64k:0 1M:- 64k:b 64k:c"
SIZE: Final = 64 * 1024 * 4 + (1 << 20)


def stream(directory: Path, knobs: Stream | None = None, layout: str = LAYOUT, **common: Any) -> Part:
    image = images.stream_optimized(directory, layout, knobs, name=f"disk-{len(list(directory.iterdir()))}", **common)
    return Part("disk.vmdk", image.path.read_bytes(), image.size)


@dataclass
class Made:
    """An OVA to be written: its descriptor, and how."""

    ovf: Ovf
    text: Callable[[bytes], bytes] = bytes
    members: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]] = list
    manifest: Callable[[bytes], bytes] = bytes
    dialect: int = tarfile.USTAR_FORMAT
    whole: Callable[[bytes], bytes] = lambda body: body + END  # of the archive without its end
    more: list[tuple[str, bytes]] = field(default_factory=list)

    def write(self, path: Path) -> Path:
        text = self.text(self.ovf.text())
        files = {part.name: part.data for part in self.ovf.parts} | dict(self.more)
        listed = self.manifest(manifest({"box.ovf": text, **files}))
        members = [("box.ovf", text), ("box.mf", listed), *files.items()]
        members = self.members(members)
        pack(path, members, dialect=self.dialect)
        end = sum(512 + len(padded(data)) for _, data in members)
        path.write_bytes(self.whole(path.read_bytes()[:end]))
        return path


def look_at(path: Path, *targets: str) -> Report:
    return lint(str(path), parse_targets(targets))


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return stream(tmp_path)


def test_a_sound_one_is_clean_for_everybody(tmp_path: Path, part: Part) -> None:
    report = look_at(Made(Ovf([part])).write(tmp_path / "box.ova"), "all", "esxi6")
    assert report.findings == []
    assert report.exit_code == 0
    assert [target.name for target in report.targets] == [*EVERYWHERE, "esxi6"]


def test_a_directory_is_looked_at_too(tmp_path: Path, part: Part) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = Ovf([part]).text()
    (home / "box.ovf").write_bytes(text)
    (home / "disk.vmdk").write_bytes(part.data)
    (home / "box.mf").write_bytes(manifest({"box.ovf": text, "disk.vmdk": part.data}))
    for path in (home, home / "box.ovf"):
        assert look_at(path).findings == []
    (home / "disk.vmdk").unlink()
    (home / "disk.vmdk").symlink_to("/etc/passwd")
    assert {"ref-missing"} <= look_at(home).rules()
    (home / "second.ovf").write_bytes(text)
    with pytest.raises(UsageError, match=r"2 \.ovf files in it; name one"):
        look_at(home)


def swap(old: str, new: str) -> Callable[[bytes], bytes]:
    """Return a change of text that must change something."""

    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


ITEM = (
    "<Item{more}><rasd:AddressOnParent>{at}</rasd:AddressOnParent><rasd:ElementName>More</rasd:ElementName>"
    "<rasd:HostResource>{host}</rasd:HostResource><rasd:InstanceID>{id}</rasd:InstanceID><rasd:Parent>{parent}"
    "</rasd:Parent><rasd:ResourceSubType>{sub}</rasd:ResourceSubType><rasd:ResourceType>{type}</rasd:ResourceType></Item>"
)


def item(
    type_: int, *, sub: str = "", id_: str = "90", parent: str = "3", at: str = "5", host: str = "", more: str = ""
) -> str:
    """Return one more item."""
    return ITEM.format(type=type_, sub=sub, id=id_, parent=parent, at=at, host=host, more=more)


def product(*properties: str) -> str:
    return f"<ProductSection><Info/>{''.join(properties)}</ProductSection>"


def sha(algorithm: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return b"".join(
            f"{algorithm}({line.split('(')[1].split(')')[0]})= {'0' * 32}\n".encode()
            for line in data.decode().splitlines()
        )

    return change


def with_spaces(data: bytes) -> bytes:
    return data.replace(b"(", b" (").replace(b")= ", b") = ")


def twice(items: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*items, items[-1]]


def reordered(*order: int) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    return lambda items: [items[at] for at in order]


def renamed(at: int, name: str) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    return lambda items: [(name if at == number else old, data) for number, (old, data) in enumerate(items)]


def before_end(more: bytes) -> Callable[[bytes], bytes]:
    """Return a change of the archive: blocks before its end."""
    return lambda body: body + more + END


# rule -> what makes an OVA that breaks it, of the sound descriptor and the sound disk
CASES: Final[dict[str, Callable[[Path, Ovf, Part], Made]]] = {
    "tar-header": lambda d, o, p: Made(o, whole=before_end(b"?" * 512)),
    "tar-truncated": lambda d, o, p: Made(o, whole=lambda body: body[:-12000]),
    "tar-end": lambda d, o, p: Made(o, whole=bytes),
    "tar-trailing": lambda d, o, p: Made(o, whole=lambda body: body + END + b"x"),
    "tar-ambiguous": lambda d, o, p: Made(o, whole=before_end(block(b"l", 512, b"1") + bytes(512))),
    "tar-bomb": lambda d, o, p: Made(o, whole=before_end(block(b"x", 1 << 17, b"x") + bytes(1 << 17))),
    "tar-sparse": lambda d, o, p: Made(o, whole=before_end(block(b"s", 0, b"S"))),
    "tar-type": lambda d, o, p: Made(o, whole=before_end(block(b"l", 0, b"2", link=b"/etc/passwd"))),
    "tar-directory": lambda d, o, p: Made(o, whole=before_end(block(b"d/", 0, b"5"))),
    "tar-name-unsafe": lambda d, o, p: Made(o, whole=before_end(block(b"../x"))),
    "tar-name-dot": lambda d, o, p: Made(o, members=renamed(2, "./disk.vmdk")),
    "tar-name-twice": lambda d, o, p: Made(o, members=twice),
    "tar-name-case": lambda d, o, p: Made(o, members=lambda items: [*items, ("DISK.vmdk", b"")]),
    "tar-name-characters": lambda d, o, p: Made(o, members=lambda items: [*items, ("a b", b"")]),
    "tar-pax": lambda d, o, p: Made(o, whole=before_end(block(b"x", 10, b"x") + padded(b"10 path=z\n") + block(b"y"))),
    "tar-gnu": lambda d, o, p: Made(o, dialect=tarfile.GNU_FORMAT),
    "tar-ovf-first": lambda d, o, p: Made(o, members=reordered(1, 0, 2)),
    "tar-order": lambda d, o, p: Made(
        Ovf([p, replace(p, name="b.vmdk")]), members=lambda items: [*items[:2], items[3], items[2]]
    ),
    "tar-manifest-place": lambda d, o, p: Made(Ovf([p, replace(p, name="b.vmdk")]), members=reordered(0, 2, 1, 3)),
    "tar-extra": lambda d, o, p: Made(o, members=lambda items: [*items, ("more", b"")]),
    "ovf-missing": lambda d, o, p: Made(o, members=renamed(0, "box.txt")),
    "ovf-several": lambda d, o, p: Made(o, members=lambda items: [*items, ("b.ovf", items[0][1])]),
    "ovf-xml": lambda d, o, p: Made(o, text=swap("<?xml", "<!DOCTYPE a><?xml")),
    "ovf-version": lambda d, o, p: Made(o, text=swap("ovf/envelope/1", "ovf/envelope/2")),
    "ovf-section": lambda d, o, p: Made(replace(o, sections='<x:Own xmlns:x="urn:x"/>')),
    "ovf-no-system": lambda d, o, p: Made(o, text=_without_system),
    "ovf-several-systems": lambda d, o, p: Made(o, text=swap("</Envelope>", '<VirtualSystem ovf:id="b"/></Envelope>')),
    "ref-id": lambda d, o, p: Made(replace(o, references='<File ovf:id="file1" ovf:href="disk.vmdk"/>')),
    "ref-missing": lambda d, o, p: Made(replace(o, references='<File ovf:id="f" ovf:href="gone"/>')),
    "ref-address": lambda d, o, p: Made(replace(o, references='<File ovf:id="f" ovf:href="http://h/x"/>')),
    "ref-size": lambda d, o, p: Made(Ovf([replace(p, size=17)])),
    "ref-size-missing": lambda d, o, p: Made(o, text=swap(f' ovf:size="{len(p.data)}"', "")),
    "ref-compressed": lambda d, o, p: Made(Ovf([replace(p, data=gzip.compress(p.data), compression="gzip")])),
    "ref-chunked": lambda d, o, p: Made(o, text=swap("<File ", '<File ovf:chunkSize="1000" ')),
    "ref-unused": lambda d, o, p: Made(
        replace(o, references='<File ovf:id="f" ovf:href="more" ovf:size="0"/>'), more=[("more", b"")]
    ),
    "disk-file": lambda d, o, p: Made(o, text=swap('fileRef="file1"', 'fileRef="file9"')),
    "disk-format": lambda d, o, p: Made(Ovf([replace(p, format="http://example.com/raw")])),
    "disk-capacity": lambda d, o, p: Made(Ovf([replace(p, capacity=len(p.data))])),
    "disk-capacity-number": lambda d, o, p: Made(Ovf([replace(p, units="furlongs")])),
    "disk-populated": lambda d, o, p: Made(Ovf([replace(p, extra=f' ovf:populatedSize="{SIZE + 1}"')])),
    "disk-parent": lambda d, o, p: Made(Ovf([replace(p, extra=' ovf:parentRef="vmdisk0"')])),
    "disk-unattached": lambda d, o, p: Made(o, text=swap("ovf:/disk/vmdisk1", "")),
    "hw-none": lambda d, o, p: Made(o, text=_without_hardware),
    "hw-family": lambda d, o, p: Made(replace(o, family="virtualbox-2.2")),
    "hw-too-new": lambda d, o, p: Made(replace(o, family="vmx-23")),
    "hw-update": lambda d, o, p: Made(replace(o, family="vmx-18")),
    "hw-too-old": lambda d, o, p: Made(replace(o, family="vmx-04")),
    "hw-item": lambda d, o, p: Made(replace(o, items=item(1, id_="1"))),
    "hw-parent": lambda d, o, p: Made(replace(o, items=item(15, parent="1"))),
    "hw-address": lambda d, o, p: Made(replace(o, items=item(15, at="0"))),
    "hw-disk": lambda d, o, p: Made(replace(o, items=item(17, host="ovf:/disk/gone"))),
    "hw-type": lambda d, o, p: Made(replace(o, items=item(35, sub="ensoniq1371"))),
    "hw-controller": lambda d, o, p: Made(replace(o, items=item(5, sub="PIIX4"))),
    "hw-nic": lambda d, o, p: Made(replace(o, nic="RTL8139")),
    "hw-network": lambda d, o, p: Made(o, text=swap("<rasd:Connection>VM", "<rasd:Connection>Other")),
    "hw-needs": lambda d, o, p: Made(replace(o, family="vmx-07", nic="E1000e")),
    "hw-cpu": lambda d, o, p: Made(replace(o, cpus=0)),
    "hw-memory": lambda d, o, p: Made(o, text=swap("byte * 2^20", "pages")),
    "hw-memory-step": lambda d, o, p: Made(replace(o, memory=1023)),
    "hw-secure-boot": lambda d, o, p: Made(
        replace(o, hardware='<vmw:Config vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>')
    ),
    "hw-firmware": lambda d, o, p: Made(
        replace(o, hardware='<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>')
    ),
    "hw-iso-transport": lambda d, o, p: Made(
        replace(o, sections=product('<Property ovf:key="a" ovf:type="string"/>')),
        text=swap("<VirtualHardwareSection>", '<VirtualHardwareSection ovf:transport="iso">'),
    ),
    "os-missing": lambda d, o, p: Made(replace(o, os='ovf:version="1"')),
    "os-type": lambda d, o, p: Made(replace(o, os='ovf:id="94"')),
    "vbox-machine": lambda d, o, p: Made(replace(o, sections="<vbox:Machine/>")),
    "property": lambda d, o, p: Made(replace(o, sections=product('<Property ovf:key="a"/>'))),
    "mf-missing": lambda d, o, p: Made(o, members=reordered(0, 2)),
    "mf-name": lambda d, o, p: Made(o, members=renamed(1, "other.mf")),
    "mf-dialect": lambda d, o, p: Made(o, manifest=with_spaces),
    "mf-digest": lambda d, o, p: Made(o, manifest=lambda data: data[:-5] + b"ffff\n"),
    "mf-coverage": lambda d, o, p: Made(o, manifest=lambda data: data.splitlines(keepends=True)[0]),
    "mf-algorithm": lambda d, o, p: Made(o, manifest=sha("MD5")),
    "mf-weak": lambda d, o, p: Made(o, manifest=sha("SHA1")),
    "cert-format": lambda d, o, p: Made(o, members=lambda items: [*items[:2], ("box.cert", b"?"), *items[2:]]),
    "vmdk-not-stream": lambda d, o, p: Made(Ovf([_sparse(d)])),
    "vmdk-unreadable": lambda d, o, p: Made(Ovf([replace(p, data=b"k" + p.data[1:].replace(b"DMV", b"dmv", 1))])),
    "vmdk-damaged": lambda d, o, p: Made(Ovf([replace(p, data=_with_damage(p.data))])),
    "vmdk-version": lambda d, o, p: Made(Ovf([stream(d, STREAMS["OLD"])])),
    "vmdk-rgd": lambda d, o, p: Made(Ovf([stream(d, STREAMS["QEMU"])])),
    "vmdk-no-eos": lambda d, o, p: Made(Ovf([stream(d, STREAMS["QEMU"])])),
    "vmdk-eos-luck": lambda d, o, p: Made(Ovf([_padded(stream(d, STREAMS["QEMU"]))])),
    "vmdk-markers": lambda d, o, p: Made(Ovf([stream(d, STREAMS["BARE"])])),
    "vmdk-order": lambda d, o, p: Made(Ovf([_disordered(d)])),
    "vmdk-trailing": lambda d, o, p: Made(Ovf([replace(p, data=p.data + bytes(1024))])),
    "vmdk-gap": lambda d, o, p: Made(Ovf([_with_gap(d)])),
    "vmdk-grain": lambda d, o, p: Made(Ovf([stream(d, Stream(grain=4096))])),
    "vmdk-short-grain": lambda d, o, p: Made(Ovf([_with_short_grain(d)])),
    "vmdk-descriptor": lambda d, o, p: Made(Ovf([stream(d, version="2")])),
    "vmdk-descriptor-twice": lambda d, o, p: Made(Ovf([replace(p, data=_two_texts(p.data))])),
    "vmdk-adapter": lambda d, o, p: Made(Ovf([_ddb(d, adapterType="ide")])),
    "vmdk-tools": lambda d, o, p: Made(Ovf([_ddb(d, toolsVersion=None)])),
    "vmdk-hardware": lambda d, o, p: Made(Ovf([_ddb(d, virtualHWVersion="999")])),
    "vmdk-child": lambda d, o, p: Made(Ovf([stream(d, parent_cid=7)])),
}
ELSEWHERE: Final = {
    "tar-large": "test_a_member_of_8_gib",
    "cert-signature": "test_signature.py",
    "cert-time": "test_signature.py",
    "cert-self": "test_signature.py",
    "cert-unchecked": "test_signature.py",
}


def _padded(part: Part) -> Part:
    """Fill a stream of qemu's up with zeros, as it does it itself now and then."""
    return replace(part, data=part.data + bytes(-len(part.data) % 65536 or 65536))


def _without_system(data: bytes) -> bytes:
    return data[: data.index(b"<VirtualSystem")] + b"</Envelope>"


def _without_hardware(data: bytes) -> bytes:
    start, end = data.index(b"<VirtualHardwareSection>"), data.index(b"</VirtualHardwareSection>")
    return data[:start] + data[end + len(b"</VirtualHardwareSection>") :]


def _sparse(directory: Path) -> Part:
    image = images.monolithic_sparse(directory, LAYOUT, name="sparse")
    return Part("disk.vmdk", image.path.read_bytes(), image.size)


def _with_damage(data: bytes) -> bytes:
    """Change a byte in the middle of the first grain's zlib stream."""
    at = 128 * 512 + 12 + 20
    return data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1 :]


def _disordered(directory: Path) -> Part:
    """A stream of layout B with two grains in the wrong order."""
    image = images.stream_optimized(directory, LAYOUT, STREAMS["B"], name="order")
    data = bytearray(image.path.read_bytes())
    one, two = image.fields["grain[18].data"], image.fields["grain[19].data"]
    first, second = one.offset - 12, two.offset - 12
    length = second - first
    tail = len(data) - 512 - second
    assert length == tail  # incompressible grains are of one size
    data[first:second], data[second : second + tail] = data[second : second + tail], data[first:second]
    table = image.fields["gt[0]"].offset
    slot = slice(table + 18 * 4, table + 20 * 4)
    data[slot] = data[table + 19 * 4 : table + 20 * 4] + data[table + 18 * 4 : table + 19 * 4]
    return Part("disk.vmdk", bytes(data), image.size)


def _with_gap(directory: Path) -> Part:
    """A stream in which a grain is in no table."""
    image = images.stream_optimized(directory, LAYOUT, STREAMS["B"], name="gap")
    data = bytearray(image.path.read_bytes())
    at = image.fields["gt[0]"].offset + 18 * 4
    data[at : at + 4] = bytes(4)
    return Part("disk.vmdk", bytes(data), image.size)


def _with_short_grain(directory: Path) -> Part:
    """A stream whose last grain holds less than the disk has there."""
    import zlib

    return stream(directory, Stream(packed={19: zlib.compress(b"short")}))


def _two_texts(data: bytes) -> bytes:
    text = data[512 : 512 * 21].rstrip(b"\0")
    both = (text + b'\0\0# Disk DescriptorFile\ncreateType="vmfs"\n').ljust(512 * 20, b"\0")
    return data[:512] + both + data[512 * 21 :]


def _ddb(directory: Path, **changes: str | None) -> Part:
    ddb = tuple((key, changes.get(key, value)) for key, value in images.DDB)
    return stream(directory, ddb=tuple((key, value) for key, value in ddb if value is not None))


def test_every_rule_has_a_case() -> None:
    assert set(CASES) | set(ELSEWHERE) == set(RULES)
    assert not set(CASES) & set(ELSEWHERE)


@pytest.mark.parametrize("rule", CASES)
def test_rules(rule: str, tmp_path: Path, part: Part) -> None:
    path = CASES[rule](tmp_path, Ovf([part]), part).write(tmp_path / "box.ova")
    report = look_at(path)
    found = [finding for finding in report.findings if finding.rule == rule]
    assert found, sorted(report.rules())
    for finding in found:
        minding = {name for name in EVERYWHERE if RULES[rule].level(TARGETS[name]) is not Level.NONE}
        assert set(finding.levels) <= minding
        assert finding.text
        assert finding.facts()["hint"] == RULES[rule].hint


def test_only_those_who_mind_are_named(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([part], family="vmx-20")).write(tmp_path / "box.ova")
    (finding,) = look_at(path).findings
    assert (finding.rule, finding.level, finding.targets) == ("hw-too-new", Level.ERROR, ("esxi7",))
    assert "esxi7 runs vmx-19" in finding.text
    assert look_at(path, "esxi8,workstation").findings == []
    assert look_at(path, "virtualbox").findings == []


@pytest.mark.parametrize(
    ("targets", "code"), [("vbox7", 0), ("esxi8", 2), ("proxmox", 0), ("aws", 3), ("vbox7,aws", 3), ("all", 2)]
)
def test_a_stream_of_qemu(tmp_path: Path, targets: str, code: int) -> None:
    report = look_at(Made(Ovf([stream(tmp_path, STREAMS["QEMU"])])).write(tmp_path / "box.ova"), targets)
    assert report.exit_code == code
    assert ({"vmdk-no-eos", "vmdk-rgd"} <= report.rules()) is (code > 0)


VBOX = """<vbox:Machine ovf:required="false" version="1.15"/>"""
VBOX_ITEMS = (
    item(5, sub="PIIX4", id_="20")
    + "<Item><rasd:ElementName>usb</rasd:ElementName><rasd:InstanceID>6</rasd:InstanceID>"
    "<rasd:ResourceType>23</rasd:ResourceType></Item>"
    "<Item><rasd:ElementName>sound</rasd:ElementName><rasd:InstanceID>7</rasd:InstanceID>"
    "<rasd:ResourceSubType>ensoniq1371</rasd:ResourceSubType><rasd:ResourceType>35</rasd:ResourceType></Item>"
)


def as_virtualbox(directory: Path) -> Made:
    """Write an OVA as VirtualBox exports it."""
    disk = stream(directory, ddb=(("adapterType", "ide"), ("uuid.image", "0"), ("virtualHWVersion", "4")))
    ovf = Ovf(
        [disk], family="virtualbox-2.2", controller="AHCI", controller_type=20, items=VBOX_ITEMS, sections=VBOX,
        os='ovf:id="94"',
    )  # fmt: skip
    return Made(ovf, text=swap(f' ovf:size="{len(disk.data)}"', ""), manifest=with_spaces)


def test_what_virtualbox_writes(tmp_path: Path) -> None:
    path = as_virtualbox(tmp_path).write(tmp_path / "box.ova")
    assert look_at(path, "vbox7").exit_code == 0
    assert {"hw-family", "hw-controller", "hw-type", "mf-dialect", "vmdk-tools", "ref-size-missing"} <= look_at(
        path, "esxi8"
    ).rules()


def test_a_member_of_8_gib(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([part])).write(tmp_path / "box.ova")
    size = 9 << 30
    with path.open("r+b") as file:
        end = path.stat().st_size - len(END)
        file.seek(end)
        file.write(block(b"large", size_field=b"\x80" + size.to_bytes(11, "big"), magic=b"ustar  \0"))
        file.truncate(end + 512 + size + 1024)
    report = lint(str(path), parse_targets(["esxi8"]), shallow=True)
    (finding,) = [finding for finding in report.findings if finding.rule == "tar-large"]
    assert (finding.level, finding.member) == (Level.WARNING, "large")


def test_shallow_reads_no_digests(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([replace(part, data=_with_damage(part.data))]), manifest=sha("SHA256")).write(tmp_path / "box.ova")
    assert {"mf-digest", "vmdk-damaged"} <= look_at(path).rules()
    assert lint(str(path), parse_targets([]), shallow=True).findings == []


def test_progress(tmp_path: Path, part: Part) -> None:
    from vmdkit.ova.lint import total_bytes

    path = Made(Ovf([part])).write(tmp_path / "box.ova")
    steps: list[int] = []
    lint(str(path), parse_targets([]), progress=steps.append)
    with tarfile.open(path) as file:
        sizes = {info.name: info.size for info in file}
    assert sum(steps) == sizes["box.ovf"] + sizes["disk.vmdk"]
    assert total_bytes(str(path)) == sum(sizes.values())


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(b"no tar")
    with pytest.raises(FormatError, match="this is no OVA"):
        look_at(tmp_path / "x.ova")
    with pytest.raises(FileNotFoundError):
        look_at(tmp_path / "absent.ova")
    with pytest.raises(UsageError, match=r"no \.ovf file in it"):
        look_at(tmp_path)


def test_targets() -> None:
    assert [target.name for target in parse_targets(["esxi7, vbox7", "fusion,esxi7"])] == [
        "esxi7",
        "vbox7",
        "workstation",
    ]
    assert [target.name for target in parse_targets([])] == list(EVERYWHERE)
    with pytest.raises(UsageError, match="no target is called 'esx9'; there are esxi6"):
        parse_targets(["esx9"])
    assert hardware_for(parse_targets(["esxi8", "esxi7"])) == 17
    assert hardware_for(parse_targets(["vbox7"])) == 13


def test_rows_are_well_made() -> None:
    for rule in RULES.values():
        assert len(rule.letters) == 5, rule.id
        assert set(rule.letters) <= set("EWN-"), rule.id
        assert rule.text, rule.id
        assert rule.why, rule.id
        assert rule.hint, rule.id


def test_references_may_be_percent_encoded(tmp_path: Path, part: Part) -> None:
    ovf = Ovf([replace(part, name="my disk.vmdk")])
    path = Made(ovf, text=swap('href="my disk.vmdk"', 'href="my%20disk.vmdk"')).write(tmp_path / "box.ova")
    assert look_at(path).rules() == {"tar-name-characters"}


def test_ovas_builder_is_sound(tmp_path: Path, part: Part) -> None:
    assert look_at(ovas.ova(tmp_path / "box.ova", Ovf([part]))).findings == []
