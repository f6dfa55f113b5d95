# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Building: what is in the archive, in which order, and that lint has nothing to say."""

from __future__ import annotations

import hashlib
import tarfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import images
import vmdkit
from certificates import pair
from images.stream import STREAMS
from vmdkit.errors import UsageError
from vmdkit.ova import descriptor
from vmdkit.ova.build import Packing, build, plan
from vmdkit.ova.lint import lint
from vmdkit.ova.machine import CONTROLLERS, NICS, DiskSpec, Machine, NicSpec, PropertySpec
from vmdkit.ova.package import Package
from vmdkit.ova.signature import Signer
from vmdkit.ova.targets import parse_targets
from vmdkit.ova.writer import Seal, Verbatim, Written, write_archive
from vmdkit.storage.memory import MemoryDevice
from vmdkit.storage.target import new_file
from vmdkit.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from images import Image
    from vmdkit.device import Device
    from vmdkit.ova.build import Plan

LAYOUT = "64k:A 64k:0 1M:- 64k:b 512:c"


def open_source(disk: DiskSpec) -> Device:
    return vmdkit.open(disk.source, raw=disk.raw)


def make(path: Path, machine: Machine, *targets: str, packing: Packing | None = None, seal: Seal | None = None) -> Plan:
    with ExitStack() as opened:
        made = plan(machine, parse_targets(targets), packing or Packing(), open_source, opened)
        steps: list[int] = []
        with new_file(str(path), 0, sync=False) as file:
            build(file, made, seal or Seal(), steps.append)
        assert sum(steps) == made.total
    return made


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {info.name: file.extractfile(info).read() for info in file}  # type: ignore[union-attr]


@pytest.fixture
def sparse(tmp_path: Path) -> Image:
    return images.monolithic_sparse(tmp_path, LAYOUT, name="sparse")


@pytest.fixture
def sound(tmp_path: Path) -> Image:
    return images.stream_optimized(tmp_path, LAYOUT, name="sound")


def test_order_sizes_and_digests(tmp_path: Path, sparse: Image, sound: Image) -> None:
    path = tmp_path / "box.ova"
    machine = Machine(name="box", disks=[DiskSpec(str(sparse.path)), DiskSpec(str(sound.path), file="data.vmdk")])
    make(path, machine)
    files = members(path)
    assert list(files) == ["box.ovf", "box.mf", "box-disk1.vmdk", "data.vmdk"]
    assert files["data.vmdk"] == sound.path.read_bytes()
    assert files["box.mf"].decode().splitlines() == [
        f"SHA256({name})= {hashlib.sha256(files[name]).hexdigest()}"
        for name in ("box.ovf", "box-disk1.vmdk", "data.vmdk")
    ]
    assert path.stat().st_size % 10240 == 0
    envelope = descriptor.parse(files["box.ovf"], "x")
    assert [(file.href, file.size) for file in envelope.files] == [
        (name, len(files[name])) for name in ("box-disk1.vmdk", "data.vmdk")
    ]
    assert [disk.capacity for disk in envelope.disks] == [sparse.size, sound.size]
    assert [disk.populated for disk in envelope.disks] == [3 * 65536, 3 * 65536]
    for name in ("box-disk1.vmdk", "data.vmdk"):
        with vmdkit.open(f"{path}#{name}") as disk:
            assert disk.pread(disk.size, 0) == sparse.model.pread(sparse.size, 0)
    assert lint(str(path), parse_targets(["all"])).findings == []


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, sparse: Image) -> None:
    machine = Machine(name="box", disks=[DiskSpec(str(sparse.path))])
    for name in ("one.ova", "two.ova"):
        make(tmp_path / name, machine)
    assert (tmp_path / "one.ova").read_bytes() == (tmp_path / "two.ova").read_bytes()
    make(tmp_path / "three.ova", machine, seal=Seal(mtime=1700000000))
    with tarfile.open(tmp_path / "three.ova") as file:
        assert {info.mtime for info in file} == {1700000000}


@pytest.mark.parametrize("kind", ["QEMU", "OLD", "BARE", "ESX"])
def test_streams_that_break_a_rule_are_packed_again(tmp_path: Path, kind: str) -> None:
    bad = images.stream_optimized(tmp_path, LAYOUT, STREAMS[kind], name="bad")
    made = make(tmp_path / "box.ova", Machine(name="box", disks=[DiskSpec(str(bad.path))]), "esxi8")
    assert made.notes == [f"{bad.path}: packed as box-disk1.vmdk"]
    assert lint(str(tmp_path / "box.ova"), parse_targets(["esxi8"])).findings == []
    with vmdkit.open(tmp_path / "box.ova") as disk:
        assert disk.pread(disk.size, 0) == bad.model.pread(bad.size, 0)


def test_sound_streams_are_not_touched_unless_asked(tmp_path: Path, sound: Image) -> None:
    machine = Machine(name="box", disks=[DiskSpec(str(sound.path))])
    made = make(tmp_path / "one.ova", machine)
    assert "taken as it is" in made.notes[0]
    made = make(tmp_path / "two.ova", machine, packing=Packing(again=True, level=0))
    assert "packed as" in made.notes[0]
    assert (tmp_path / "two.ova").stat().st_size > (tmp_path / "one.ova").stat().st_size
    again = Machine(name="box", disks=[DiskSpec(f"{tmp_path}/one.ova")])
    assert "taken as it is" in make(tmp_path / "three.ova", again).notes[0]
    ide = Machine(name="box", disks=[DiskSpec(str(sound.path), controller="ide")])
    assert "packed as" in make(tmp_path / "four.ova", ide).notes[0]


def test_chains_and_raw_disks(tmp_path: Path) -> None:
    child = images.chain(tmp_path, [("vmfs", LAYOUT), ("seSparse", "64k:- 64k:Z 1M:- 64k:- 512:-")])
    raw = images.monolithic_flat(tmp_path, LAYOUT, name="raw").parts[0].path
    machine = Machine(name="box", disks=[DiskSpec(str(child.path)), DiskSpec(str(raw), raw=True)])
    make(tmp_path / "box.ova", machine)
    with vmdkit.open(f"{tmp_path}/box.ova#box-disk1.vmdk") as disk:
        assert disk.pread(disk.size, 0) == child.model.pread(child.size, 0)
    with vmdkit.open(f"{tmp_path}/box.ova#box-disk2.vmdk") as disk:
        assert bytes(disk.pread(disk.size, 0)) == raw.read_bytes()


def test_a_disk_that_is_no_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 1000)
    make(tmp_path / "box.ova", Machine(name="box", disks=[DiskSpec(str(tmp_path / "odd"), raw=True)]))
    with vmdkit.open(tmp_path / "box.ova") as disk:
        assert disk.pread(1024, 0) == b"x" * 1000 + bytes(24)
    assert lint(str(tmp_path / "box.ova"), parse_targets([])).findings == []


def full(path: str, **changes: Any) -> Machine:
    """Return a machine with everything."""
    return Machine(
        **{
            "name": "My Box", "cpus": 4, "cores": 2, "memory": 4 * GIB, "os": "windows2022", "firmware": "efi",
            "secure_boot": True, "disks": [DiskSpec(path), DiskSpec(size=5 * MIB)], "cdrom": True,
            "nics": [NicSpec("LAN", "vmxnet3"), NicSpec("WAN")], "product": "Box", "vendor": "M & <M>", "version": "1",
            "annotation": 'a "note"\nof two lines', "eulas": ["one", "two"],
            "properties": [PropertySpec("ip", label="IP", default="1"), PropertySpec("pw", password=True)], **changes,
        }
    )  # fmt: skip


def test_everything_is_said(tmp_path: Path, sound: Image) -> None:
    make(tmp_path / "box.ova", full(str(sound.path)), "esxi7")
    with Package(str(tmp_path / "box.ova")) as package:
        name, envelope = package.envelope()
    assert name == "My-Box.ovf"
    (system,) = envelope.systems
    assert (system.name, system.os_type, system.os_vbox) == ("My Box", "windows2019srvNext_64Guest", "Windows2022_64")
    assert (system.annotation, system.eulas) == ('a "note"\nof two lines', ["one", "two"])
    assert (system.product["Vendor"], system.product["Version"]) == ("M & <M>", "1")
    assert [(one.key, one.label, one.value) for one in system.properties] == [("ip", "IP", "1"), ("pw", "", "")]
    (hardware,) = system.hardware
    assert (hardware.families, hardware.transport) == (["vmx-17"], "iso com.vmware.guestInfo")
    assert hardware.config == {"firmware": "efi", "bootOptions.efiSecureBootEnabled": "true"}
    assert [item.quantity for item in hardware.of_type(descriptor.CPU, descriptor.MEMORY)] == [4, 4096]
    assert [item.connections for item in hardware.of_type(descriptor.ETHERNET)] == [["LAN"], ["WAN"]]
    assert [network.name for network in envelope.networks] == ["LAN", "WAN"]
    assert [disk.capacity for disk in envelope.disks] == [sound.size, 5 * MIB]
    report = lint(str(tmp_path / "box.ova"), parse_targets(["esxi7", "workstation", "proxmox", "aws"]))
    assert report.findings == []
    assert {"hw-nic", "hw-firmware"} == lint(str(tmp_path / "box.ova"), parse_targets(["vbox7"])).rules()


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_controllers(tmp_path: Path, sound: Image, controller: str) -> None:
    count = 4 if controller == "ide" else 35
    disks = [DiskSpec(str(sound.path)), *(DiskSpec(size=MIB) for _ in range(count - 1))]
    make(tmp_path / "box.ova", Machine(name="box", controller=controller, disks=disks), "esxi8")
    report = lint(str(tmp_path / "box.ova"), parse_targets(["esxi8"]))
    assert report.findings == []


@pytest.mark.parametrize("kind", NICS)
def test_adapters(tmp_path: Path, sound: Image, kind: str) -> None:
    machine = Machine(name="box", disks=[DiskSpec(str(sound.path))], nics=[NicSpec(type=kind)])
    make(tmp_path / "box.ova", machine, "esxi8")
    assert lint(str(tmp_path / "box.ova"), parse_targets(["esxi8"])).findings == []


def test_too_many_disks_for_a_controller(tmp_path: Path, sound: Image) -> None:
    disks = [DiskSpec(str(sound.path)), *(DiskSpec(size=MIB) for _ in range(4))]
    with pytest.raises(UsageError, match="5 drives behind ide; 4 are the most"):
        make(tmp_path / "box.ova", Machine(name="box", controller="ide", disks=disks))


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA512", ""])
def test_digests(tmp_path: Path, sound: Image, algorithm: str) -> None:
    machine = Machine(name="box", disks=[DiskSpec(str(sound.path))])
    make(tmp_path / "box.ova", machine, seal=Seal(algorithm))
    files = members(tmp_path / "box.ova")
    assert ("box.mf" in files) is bool(algorithm)
    rules = lint(str(tmp_path / "box.ova"), parse_targets(["esxi8"])).rules()
    assert rules == {"SHA1": {"mf-weak"}, "SHA512": set(), "": {"mf-missing"}}[algorithm]


def test_signed(tmp_path: Path, sparse: Image) -> None:
    machine = Machine(name="box", disks=[DiskSpec(str(sparse.path))])
    make(tmp_path / "box.ova", machine, seal=Seal(signer=Signer(*pair(issuer="An Authority"))))
    assert list(members(tmp_path / "box.ova")) == ["box.ovf", "box.mf", "box.cert", "box-disk1.vmdk"]
    assert lint(str(tmp_path / "box.ova"), parse_targets([])).findings == []


def test_a_signature_needs_a_manifest() -> None:
    with pytest.raises(UsageError, match="a signature is made over the manifest"):
        Seal("", Signer(*pair())).check()


@pytest.mark.parametrize("name", ["box.ovf", "box.mf", "data.vmdk"])
def test_names_that_are_taken(tmp_path: Path, sound: Image, name: str) -> None:
    disks = [DiskSpec(str(sound.path), file=name), DiskSpec(str(sound.path), file="data.vmdk")]
    with pytest.raises(UsageError, match=f"two files would be called '{name}'"):
        make(tmp_path / "box.ova", Machine(name="box", disks=disks))
    assert not (tmp_path / "box.ova").exists()


def test_an_error_leaves_nothing(tmp_path: Path, sparse: Image) -> None:
    with sparse.path.open("r+b") as file:
        file.truncate(sparse.path.stat().st_size - 70000)
    names = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(vmdkit.VmdkitError):
        make(tmp_path / "box.ova", Machine(name="box", disks=[DiskSpec(str(sparse.path))]))
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_descriptor_may_not_grow(tmp_path: Path) -> None:
    texts = iter([b"<a/>", b"<a  />"])

    def compose(_: Sequence[Written]) -> bytes:
        return next(texts)

    with new_file(str(tmp_path / "x"), 0) as file, pytest.raises(UsageError, match="6 bytes, room is for 4"):
        write_archive(file, "x", compose, [Verbatim("a", MemoryDevice(b"1"))], Seal())


def test_an_empty_member(tmp_path: Path) -> None:
    with new_file(str(tmp_path / "x"), 0) as file:
        write_archive(
            file, "x", lambda _: b"<a/>", [Verbatim("a", MemoryDevice(b"")), Verbatim("b", MemoryDevice(b"2"))], Seal()
        )
    assert members(tmp_path / "x")["a"] == b""
    assert members(tmp_path / "x")["b"] == b"2"
