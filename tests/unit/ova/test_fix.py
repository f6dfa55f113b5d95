# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Fixing: what can be put right is, each change is said, and twice is once."""

from __future__ import annotations

import tarfile
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import images
import vmdkit
from certificates import pair
from images.stream import STREAMS
from ovas import Ovf, Part
from unit.ova.test_lint import CASES, LAYOUT, Made, as_virtualbox, item, stream
from vmdkit.errors import FormatError
from vmdkit.ova.build import Packing
from vmdkit.ova.fix import plan_fix, write_fix
from vmdkit.ova.lint import lint
from vmdkit.ova.package import Package
from vmdkit.ova.rules import RULES, Level
from vmdkit.ova.signature import Signer
from vmdkit.ova.targets import parse_targets
from vmdkit.ova.writer import Seal
from vmdkit.storage.target import new_file

if TYPE_CHECKING:
    from pathlib import Path

FOR = "esxi7,esxi8,workstation,vbox7,proxmox,aws"


def fix(path: Path, out: Path, *, targets: str = FOR, accept: bool = False, seal: Seal | None = None) -> list[str]:
    with Package(str(path)) as package, ExitStack() as opened:
        signed = seal is not None and seal.signer is not None
        repair = plan_fix(package, parse_targets([targets]), Packing(), opened, accept_digests=accept, signed=signed)
        steps: list[int] = []
        with new_file(str(out), 0, overwrite=True, sync=False) as file:
            write_fix(file, repair, seal or Seal(), steps.append)
        assert sum(steps) == repair.total
    return repair.done


def left(path: Path, targets: str = FOR) -> set[str]:
    """Return the rules that are broken, notes left out."""
    report = lint(str(path), parse_targets([targets]))
    return {finding.rule for finding in report.findings if finding.level is not Level.NOTE}


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return stream(tmp_path)


FIXED = [rule for rule in CASES if RULES[rule].fixed]


@pytest.mark.parametrize("rule", FIXED)
def test_what_is_said_to_be_fixed_is(rule: str, tmp_path: Path, part: Part) -> None:
    path = CASES[rule](tmp_path, Ovf([part]), part).write(tmp_path / "box.ova")
    before = {finding.rule for finding in lint(str(path), parse_targets([FOR])).findings}
    done = fix(path, tmp_path / "fixed.ova", accept=True)
    after = {finding.rule for finding in lint(str(tmp_path / "fixed.ova"), parse_targets([FOR])).findings}
    assert rule not in after or RULES[rule].letters.strip("N-") == ""
    assert after <= before
    assert done or rule in after
    with vmdkit.open(f"{tmp_path}/fixed.ova#disk.vmdk") as disk:
        assert disk.size == part.capacity
    assert fix(tmp_path / "fixed.ova", tmp_path / "again.ova") == []
    assert (tmp_path / "again.ova").read_bytes() == (tmp_path / "fixed.ova").read_bytes()


def test_what_virtualbox_writes(tmp_path: Path) -> None:
    path = as_virtualbox(tmp_path).write(tmp_path / "box.ova")
    done = fix(path, tmp_path / "fixed.ova")
    assert "hardware family virtualbox-2.2 -> vmx-17" in done
    assert "marked sound 'sound' as not required" in done
    assert "type of storage controller 'Controller': AHCI -> vmware.sata.ahci" in done
    assert "disk.vmdk: packed again (vmdk-tools)" in done
    assert left(tmp_path / "fixed.ova") == set()
    with vmdkit.open(path) as old, vmdkit.open(tmp_path / "fixed.ova") as new:
        assert old.pread(old.size, 0) == new.pread(new.size, 0)


def test_a_stream_of_qemu(tmp_path: Path) -> None:
    path = Made(Ovf([stream(tmp_path, STREAMS["QEMU"])])).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "fixed.ova") == ["disk.vmdk: packed again (vmdk-no-eos, vmdk-rgd)"]
    assert left(tmp_path / "fixed.ova") == set()


def test_sound_disks_keep_every_byte(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([part, replace(part, name="b.vmdk", size=1)])).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "fixed.ova") == ["wrote the sizes that the files have"]
    with tarfile.open(tmp_path / "fixed.ova") as file:
        assert file.extractfile("b.vmdk").read() == part.data  # type: ignore[union-attr]


def test_a_sound_one_is_copied(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([part])).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "fixed.ova") == []
    assert path.read_bytes() == (tmp_path / "fixed.ova").read_bytes()


def test_what_nobody_minds_stays(tmp_path: Path, part: Part) -> None:
    ovf = Ovf(
        [replace(part, size=1)],
        sections="<!-- kept --><AnnotationSection><Info/><Annotation>&lt;x&gt;</Annotation></AnnotationSection>",
    )
    fix(Made(ovf).write(tmp_path / "box.ova"), tmp_path / "fixed.ova")
    with tarfile.open(tmp_path / "fixed.ova") as file:
        text = file.extractfile("box.ovf").read().decode()  # type: ignore[union-attr]
    assert text == ovf.text().decode().replace('ovf:size="1"', f'ovf:size="{len(part.data)}"').replace(
        'streamOptimized"/>', f'streamOptimized" ovf:populatedSize="{3 * 65536}"/>'
    )


@pytest.mark.parametrize(
    ("family", "items", "wanted"),
    [
        ("vmx-21", "", "vmx-17"), ("vmx-99", "", "vmx-17"), ("vmx-04", "", "vmx-07"), ("vmx-13", "", "vmx-13"),
        ("vmx-04", item(20, sub="vmware.nvme.controller"), "vmx-13"),
        ("virtualbox-2.2 vmx-11", "", "virtualbox-2.2 vmx-11"),
    ],
)  # fmt: skip
def test_hardware_versions(tmp_path: Path, part: Part, family: str, items: str, wanted: str) -> None:
    fix(Made(Ovf([part], family=family, items=items)).write(tmp_path / "box.ova"), tmp_path / "fixed.ova")
    with Package(str(tmp_path / "fixed.ova")) as package:
        assert package.envelope()[1].systems[0].hardware[0].families == wanted.split()


def test_a_family_that_is_not_stated(tmp_path: Path, part: Part) -> None:
    made = Made(
        Ovf([part]), text=lambda data: data.replace(b"<vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>", b"")
    )
    fix(made.write(tmp_path / "box.ova"), tmp_path / "fixed.ova")
    assert left(tmp_path / "fixed.ova") == set()


def test_no_network_section(tmp_path: Path, part: Part) -> None:
    def without(data: bytes) -> bytes:
        start, end = data.index(b"<NetworkSection>"), data.index(b"</NetworkSection>")
        return data[:start] + data[end + len(b"</NetworkSection>") :]

    assert fix(Made(Ovf([part]), text=without).write(tmp_path / "box.ova"), tmp_path / "fixed.ova") == [
        "listed the network 'VM Network'"
    ]
    assert left(tmp_path / "fixed.ova") == set()


@pytest.mark.parametrize(
    "rule",
    [
        "tar-header", "tar-truncated", "tar-ambiguous", "tar-bomb", "tar-sparse", "tar-name-twice", "ovf-missing",
        "ovf-several",
        "ovf-xml", "ovf-version", "ref-missing", "ref-address", "ref-compressed", "ref-chunked", "disk-file",
        "disk-parent", "vmdk-unreadable", "vmdk-damaged", "vmdk-child", "mf-digest",
    ],
)  # fmt: skip
def test_what_cannot_be_fixed(rule: str, tmp_path: Path, part: Part) -> None:
    path = CASES[rule](tmp_path, Ovf([part]), part).write(tmp_path / "box.ova")
    with pytest.raises(FormatError, match=f"it cannot be fixed: .*{rule}"):
        fix(path, tmp_path / "fixed.ova")
    assert not (tmp_path / "fixed.ova").exists()


def test_wrong_digests_may_be_accepted(tmp_path: Path, part: Part) -> None:
    path = CASES["mf-digest"](tmp_path, Ovf([part]), part).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "fixed.ova", accept=True) == ["wrote the digests that the files have"]
    assert left(tmp_path / "fixed.ova") == set()


def test_signatures(tmp_path: Path, part: Part) -> None:
    seal = Seal(signer=Signer(*pair(issuer="An Authority")))
    path = Made(Ovf([part])).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "signed.ova", seal=seal) == ["signed the manifest"]
    assert lint(str(tmp_path / "signed.ova"), parse_targets([FOR])).findings == []
    assert fix(tmp_path / "signed.ova", tmp_path / "copy.ova") == []
    bad = Made(Ovf([replace(part, size=1)]), members=lambda items: [*items[:2], ("box.cert", b"?"), *items[2:]])
    done = fix(bad.write(tmp_path / "bad.ova"), tmp_path / "fixed.ova")
    assert any(text.startswith("left out the certificate") for text in done)
    assert left(tmp_path / "fixed.ova") == set()


def test_a_directory_becomes_an_archive(tmp_path: Path, part: Part) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "box.ovf").write_bytes(Ovf([part]).text())
    (home / "disk.vmdk").write_bytes(part.data)
    done = fix(home, tmp_path / "box.ova")
    assert done == ["wrote a manifest", "put the files of the directory into an archive"]
    assert lint(str(tmp_path / "box.ova"), parse_targets([FOR])).findings == []


def test_sparse_disks_are_packed(tmp_path: Path) -> None:
    image = images.monolithic_sparse(tmp_path, LAYOUT, name="sparse")
    path = Made(Ovf([Part("disk.vmdk", image.path.read_bytes(), 1 << 40)])).write(tmp_path / "box.ova")
    assert fix(path, tmp_path / "fixed.ova") == [
        "disk.vmdk: packed again (vmdk-not-stream)",
        "wrote the capacity that the disks have",
    ]
    assert left(tmp_path / "fixed.ova") == set()


def test_onto_itself(tmp_path: Path, part: Part) -> None:
    path = Made(Ovf([replace(part, size=1)])).write(tmp_path / "box.ova")
    fix(path, path)
    assert left(path) == set()
