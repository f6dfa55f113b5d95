# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Machines in YAML: what is read, and what is refused with its line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ova.machine import DiskSpec, Machine, NicSpec, PropertySpec, is_plain, plain
from vmdkit.ova.spec import parse_hardware, read_spec
from vmdkit.units import GIB, MIB

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """\
name: box
cpus: 4
cores: 2
memory: 2 GiB
os: debian12
firmware: EFI
secure_boot: yes
controller: pvscsi
hardware: vmx-15
targets: [esxi8, workstation]
disks:
  - root.vmdk
  - source: nbd://host/x
    raw: true
    file: data.vmdk
    controller: SATA
  - size: 10 GiB
nics:
  - LAN
  - network: WAN
    type: VMXNET3
cdrom: true
product: {name: Box, vendor: Makers, version: "1.0", url: "https://example.com"}
annotation: |
  a note
eula: {file: terms.txt}
properties:
  - key: ip
    label: Address
    description: IPv4
    default: 10.0.0.1
  - {key: secret, type: string, password: true, configurable: false}
"""


def read(tmp_path: Path, text: str) -> Machine:
    path = tmp_path / "box.yaml"
    path.write_text(text, encoding="utf-8")
    return read_spec(str(path))[0]


def test_a_whole_machine(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Do no härm.", encoding="utf-8")
    path = tmp_path / "box.yaml"
    path.write_text(WHOLE)
    machine, targets = read_spec(str(path))
    assert [target.name for target in targets] == ["esxi8", "workstation"]
    assert machine == Machine(
        name="box", cpus=4, cores=2, memory=2 * GIB, os="debian12", firmware="efi", secure_boot=True,
        controller="pvscsi", hardware=15,
        disks=[
            DiskSpec(str(tmp_path / "root.vmdk")),
            DiskSpec("nbd://host/x", raw=True, file="data.vmdk", controller="sata"),
            DiskSpec(size=10 * GIB),
        ],
        nics=[NicSpec("LAN"), NicSpec("WAN", "vmxnet3")], cdrom=True, product="Box", vendor="Makers", version="1.0",
        product_url="https://example.com", annotation="a note\n", eulas=["Do no härm."],
        properties=[
            PropertySpec("ip", label="Address", description="IPv4", default="10.0.0.1"),
            PropertySpec("secret", password=True, configurable=False),
        ],
    )  # fmt: skip
    machine.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("just text", "line 1: a machine: keys and values are due"),
        ("- a", "line 1: a machine: keys and values are due"),
        ("name: a\nram: 3", r"line 2: a machine has no key 'ram'; there are name, cpus"),
        ("name: a\nname: b", "line 2: name stands twice"),
        ("name:", "line 1: name: a text is due"),
        ("name: [a]", "line 1: name: a text is due"),
        ("cpus: many", "line 1: cpus: 'many' is no whole number"),
        ("cpus: -1", "line 1: cpus: '-1' is no whole number"),
        ("memory: much", "line 1: memory: 'much' is no size"),
        ("\n\ncdrom: maybe", "line 3: cdrom: true or false is due"),
        ("hardware: 13.5", "line 1: hardware '13.5': vmx-13, for example, is due"),
        ("targets: [esx]", "line 1: no target is called 'esx'"),
        ("targets: {a: b}", "line 1: targets: a text is due"),
        ("disks: x", "line 1: disks: a list is due"),
        ("disks:\n  - {sorce: x}", "line 2: a disk has no key 'sorce'; there are source, size"),
        ("disks:\n  - [x]", "line 2: a disk: a text is due"),
        ("nics:\n  - {type: [a]}", "line 2: type: a text is due"),
        ("product: x", "line 1: product: keys and values are due"),
        ("eula: {}", "line 1: eula: a text, or file: NAME, is due"),
        ("properties:\n  - {label: x}", "line 2: a property needs a key"),
        ("name: &a x\nannotation: *a", "line 1: anchors, tags and deep nesting are not taken"),
        ("name: !!python/object:os.system x", "line 1: anchors, tags"),
        ("disks: " + "[" * 40 + "]" * 40, "line 1: anchors, tags and deep nesting"),
        ("name: [", "line 1: no YAML: "),
        ("\tname: x", "line 1: no YAML: "),
        ("name: \x00", "no YAML: "),
        ("a: b: c", "line 1: no YAML"),
        ("#" + "x" * (1 << 20), "larger than"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.path == str(tmp_path / "box.yaml") or "hardware" in text or "targets" in text


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vmdkit\[ova\]'"):
        read(tmp_path, "name: x")


def test_numbers_are_texts_where_texts_are_due(tmp_path: Path) -> None:
    machine = read(tmp_path, "name: 007\nproduct: {version: 1.10}\nannotation: yes")
    assert (machine.name, machine.version, machine.annotation) == ("007", "1.10", "yes")


@pytest.mark.parametrize(("text", "number"), [("vmx-13", 13), ("VMX-07", 7), ("19", 19)])
def test_hardware(text: str, number: int) -> None:
    assert parse_hardware(text) == number


DISK = DiskSpec("a.vmdk")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name ''"), ({"name": "a/b"}, "name 'a/b'"), ({"name": "a\n"}, "name"),
        ({"name": "x" * 81}, "name"),
        ({"cpus": 0}, "0 processors"), ({"cpus": 769}, "769 processors"), ({"cpus": 3, "cores": 2}, "no whole sockets"),
        ({"memory": 0}, "of memory"), ({"memory": 5 * MIB}, "a multiple of 4 MiB"), ({"memory": 1 << 60}, "of memory"),
        ({"os": "amiga"}, "no operating system is called 'amiga'"),
        ({"os": "debain12"}, "did you mean 'debian12'"),
        ({"firmware": "uboot"}, "firmware 'uboot' is unknown; there are bios, efi"),
        ({"secure_boot": True}, "secure boot needs the firmware efi"), ({"hardware": 3}, "hardware version 3"),
        ({"disks": []}, "at least one disk"), ({"controller": "mfm"}, "controller 'mfm' is unknown"),
        ({"disks": [DiskSpec()]}, "either a source or"), ({"disks": [DiskSpec("a", size=MIB)]}, "either a source or"),
        ({"disks": [DiskSpec(size=1000)]}, "whole MiB are due"),
        ({"disks": [DiskSpec("a", file="../x")]}, "file '../x'"),
        ({"disks": [DiskSpec("a", controller="x")]}, "controller 'x' is unknown"),
        ({"nics": [NicSpec(type="ne2000")]}, "adapter 'ne2000' is unknown"), ({"nics": [NicSpec(" ")]}, "needs a name"),
        ({"properties": [PropertySpec("a b")]}, "property 'a b'"),
        ({"properties": [PropertySpec("a"), PropertySpec("a")]}, "two properties are called 'a'"),
        ({"properties": [PropertySpec("a", type="text")]}, "type of property 'a'"),
    ],
)  # fmt: skip
def test_machines_that_cannot_be(changes: dict[str, object], message: str) -> None:
    machine = Machine(**{"name": "box", "disks": [DISK], **changes})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        machine.check()


def test_a_system_of_vmwares_own_name() -> None:
    Machine(name="box", disks=[DISK], os="someNew_64Guest").check()


@pytest.mark.parametrize(
    ("name", "result"),
    [("box", "box"), ("My Box (1)", "My-Box-1"), ("é", "machine"), ("..", "machine"), ("x" * 200, "x" * 80)],
)
def test_plain_names(name: str, result: str) -> None:
    assert plain(name) == result
    assert is_plain(result)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".x", "-x", "x" * 101, "é"])
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain(name)
