# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit ova`` as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import images
from certificates import pair
from images.stream import STREAMS
from ovas import Ovf, Part, ova

if TYPE_CHECKING:
    from pathlib import Path

    from unit.cli.conftest import Command


@pytest.fixture
def box(tmp_path: Path) -> Path:
    image = images.stream_optimized(tmp_path, "64k:A 64k:- 64k:b", name="one")
    return ova(
        tmp_path / "box.ova",
        Ovf(
            [Part("one.vmdk", image.path.read_bytes(), image.size)],
            sections="<AnnotationSection><Info/><Annotation>from \x9b31m afar</Annotation></AnnotationSection>"
            "<ProductSection><Info/><Product>Box</Product><Vendor>Makers</Vendor><Version>2</Version></ProductSection>",
        ),
    )


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    image = images.stream_optimized(tmp_path, "64k:A", STREAMS["QEMU"], name="bad")
    return ova(tmp_path / "bad.ova", Ovf([Part("bad.vmdk", image.path.read_bytes(), image.size)]))


def test_info(vmdkit: Command, box: Path) -> None:
    done = vmdkit("ova", "info", "box.ova")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:6] == [
        "machine:    box",
        "product:    Makers Box 2",
        "os:         ubuntu64Guest",
        "hardware:   1 CPU, 1 GiB, vmx-13, bios",
        "drives:     vmdisk1 on lsilogic:0",
        "adapters:   E1000 to VM Network",
    ]
    assert "annotation: from \\x9b31m afar" in done.stdout
    assert "manifest:   box.mf, SHA256 of 2 files" in done.stdout
    found = json.loads(vmdkit("--json", "ova", "info", "box.ova").stdout)
    assert found["disks"] == [
        {
            "id": "vmdisk1", "file": "one.vmdk", "capacity": 196608, "populated": 131072,
            "size": found["disks"][0]["size"], "what": "streamOptimized",
        }
    ]  # fmt: skip
    assert found["machines"][0]["memory"] == 1 << 30


def test_info_of_no_ova(vmdkit: Command, tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(b"")
    done = vmdkit("ova", "info", "x.ova")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vmdkit: x.ova: this is no OVA: no tar header (at offset 0x0)\n"


def test_extract(vmdkit: Command, box: Path, tmp_path: Path) -> None:
    done = vmdkit("-v", "ova", "extract", "box.ova", "out", "--disk", "1", "--raw")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out/one.raw\n", "")
    assert (tmp_path / "out" / "one.raw").stat().st_size == 196608
    done = vmdkit("ova", "extract", "box.ova", "out", "--raw")
    assert done.returncode == 1
    assert done.stderr == "vmdkit: out/one.raw: it exists; -f overwrites it\n"
    assert vmdkit("ova", "extract", "box.ova", "out", "--raw", "-f").returncode == 0
    assert json.loads(vmdkit("ova", "extract", "box.ova", "all", "--json").stdout) == {
        "files": ["all/box.ovf", "all/box.mf", "all/one.vmdk"]
    }


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["box.ova"], 0), (["bad.ova", "--for", "esxi8"], 2), (["bad.ova", "--for", "aws"], 3),
        (["box.ova", "bad.ova", "--for", "aws"], 3), (["box.ova", "bad.ova"], 2), (["absent.ova"], 1),
        (["absent.ova", "bad.ova"], 1), (["box.ova", "--for", "nowhere"], 1), (["--nonsense"], 1), ([], 1),
        (["box.ova", "--threads", "x"], 1),
    ],
)  # fmt: skip
def test_exit_codes_of_lint(vmdkit: Command, box: Path, bad: Path, words: list[str], code: int) -> None:
    done = vmdkit("ova", "lint", *words)
    assert done.returncode == code
    assert bool(done.stderr) is (code == 1)


def test_lint(vmdkit: Command, bad: Path) -> None:
    done = vmdkit("ova", "lint", "bad.ova")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error    vmdk-no-eos: bad.vmdk at 0x")
    assert lines[0].endswith("[esxi7, esxi8, esxi9, workstation]")
    assert lines[-1].startswith("bad.ova: 1 error, 1 warning for esxi7, esxi8, esxi9, workstation, vbox7, proxmox, aws")
    assert vmdkit("-q", "ova", "lint", "bad.ova").stdout == ""


def test_lint_as_json(vmdkit: Command, bad: Path, box: Path) -> None:
    found = json.loads(vmdkit("ova", "lint", "bad.ova", "--json", "--for", "esxi8").stdout)
    assert (found["exit"], found["counts"]["error"], found["targets"]) == (2, 1, ["esxi8"])
    assert found["findings"][0]["rule"] == "vmdk-no-eos"
    assert len(json.loads(vmdkit("ova", "lint", "bad.ova", "box.ova", "--json").stdout)) == 2


def test_sarif(vmdkit: Command, bad: Path, tmp_path: Path) -> None:
    done = vmdkit("ova", "lint", "bad.ova", "--sarif", "out.sarif")
    assert done.returncode == 2
    log: dict[str, Any] = json.loads((tmp_path / "out.sarif").read_text())
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        artifact = location["physicalLocation"]["artifactLocation"]
        assert artifact["uri"] == run["artifacts"][artifact["index"]]["location"]["uri"] == "bad.ova"
    assert {"vmdk-no-eos", "vmdk-rgd"} <= {result["ruleId"] for result in run["results"]}
    assert json.loads(vmdkit("ova", "lint", "bad.ova", "--sarif", "-").stdout) == log


def test_words_that_are_none(vmdkit: Command) -> None:
    for words in (["ova"], ["ova", "bild"], ["ova", "info"], ["ova", "info", "--bogus", "x"]):
        done = vmdkit(*words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("vmdkit: ova"), words


# ── build and fix ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return images.monolithic_sparse(tmp_path, "64k:A 64k:- 64k:b", name="root").path


SPEC = """
name: appliance
memory: 2G
os: debian12
targets: [esxi8, workstation]
disks: [root.vmdk, {size: 1G}]
nics: [{network: LAN, type: vmxnet3}]
"""


def test_build_of_options(vmdkit: Command, root: Path, tmp_path: Path) -> None:
    done = vmdkit(
        "-v", "ova", "build", "out.ova", "--disk", "root.vmdk", "--os", "debian12", "--memory", "2G", "--cpus", "2",
        "--firmware", "efi", "--nic", "vmxnet3:LAN", "--nic", "e1000", "--controller", "pvscsi", "--product", "Box",
        "--property", "ip=10.0.0.1", "--hardware", "vmx-15", "--for", "esxi8", "--annotation", "a note",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[0] == "vmdkit: root.vmdk: packed as out-disk1.vmdk"
    found = json.loads(vmdkit("ova", "info", "out.ova", "--json").stdout)
    (machine,) = found["machines"]
    assert (machine["name"], machine["family"], machine["firmware"], machine["cpus"]) == ("out", "vmx-15", "efi", 2)
    assert machine["adapters"] == [{"model": "VmxNet3", "network": "LAN"}, {"model": "E1000", "network": "VM Network"}]
    assert machine["properties"][0]["value"] == "10.0.0.1"
    assert vmdkit("compare", "out.ova", "root.vmdk").returncode == 0
    assert vmdkit("ova", "lint", "out.ova", "--for", "esxi8").returncode == 0
    done = vmdkit("ova", "build", "out.ova", "--disk", "root.vmdk")
    assert (done.returncode, done.stderr) == (1, "vmdkit: out.ova: it exists; -f overwrites it\n")


def test_build_of_yaml(vmdkit: Command, root: Path, tmp_path: Path) -> None:
    (tmp_path / "box.yaml").write_text(SPEC)
    done = vmdkit("ova", "build", "out.ova", "box.yaml", "--name", "other", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["hardware"], [disk["capacity"] for disk in told["disks"]]) == (20, [196608])
    found = json.loads(vmdkit("ova", "info", "out.ova", "--json").stdout)
    assert found["machines"][0]["name"] == "other"
    assert [disk["what"] for disk in found["disks"]] == ["streamOptimized", "empty"]


def test_build_warns_of_what_importers_mind(vmdkit: Command, root: Path) -> None:
    done = vmdkit("ova", "build", "out.ova", "--disk", "root.vmdk", "--nic", "vmxnet3", "--for", "all")
    assert done.returncode == 0
    assert done.stderr == "vmdkit: warning: hw-nic: network adapter 'Network adapter 1' is of type 'VmxNet3' [vbox7]\n"
    assert vmdkit("-q", "ova", "build", "out.ova", "-f", "--disk", "root.vmdk", "--nic", "vmxnet3").stderr == ""


def test_build_can_be_repeated(vmdkit: Command, root: Path, tmp_path: Path) -> None:
    for number, epoch in enumerate(("0", "0", "1700000000")):
        words = ("ova", "build", f"{number}.ova", "--name", "x", "--disk", "root.vmdk")
        assert vmdkit(*words, env={"SOURCE_DATE_EPOCH": epoch}).returncode == 0
    zero, one, two = ((tmp_path / f"{number}.ova").read_bytes() for number in range(3))
    assert zero == one != two
    done = vmdkit("ova", "build", "3.ova", "--disk", "root.vmdk", env={"SOURCE_DATE_EPOCH": "now"})
    assert done.stderr == "vmdkit: SOURCE_DATE_EPOCH is 'now'; seconds since 1970 are due\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a machine needs at least one disk"),
        (["--disk", "absent.vmdk"], "absent.vmdk: No such file or directory"),
        (["--disk", "root.vmdk", "--os", "amiga"], "no operating system is called 'amiga'"),
        (["--disk", "root.vmdk", "--memory", "1000"], "1000 B of memory; a multiple of 4 MiB is due"),
        (["--disk", "root.vmdk", "--sign", "key"], "--sign KEY and --cert CERT belong together"),
        (["--disk", "root.vmdk", "--level", "77"], "--level 77; from 1 to 12 are due, or 0"),
        (["--disk", "root.vmdk", "--for", "mars"], "no target is called 'mars'"),
        (["--disk", "root.vmdk", "--digest", "none", "--sign", "k.pem", "--cert", "c.pem"], "nothing to sign"),
        (["absent.yaml"], "absent.yaml: No such file or directory"),
    ],
)
def test_build_that_cannot_be(vmdkit: Command, root: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "k.pem").write_bytes(pair().key)
    (tmp_path / "c.pem").write_bytes(pair().certificate)
    names = sorted(path.name for path in tmp_path.iterdir())
    done = vmdkit("ova", "build", "out.ova", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_signing_with_a_password(vmdkit: Command, root: Path, tmp_path: Path) -> None:
    made = pair(issuer="An Authority", password=b"secret")
    (tmp_path / "k.pem").write_bytes(made.key)
    (tmp_path / "c.pem").write_bytes(made.certificate)
    words = ["ova", "build", "out.ova", "--disk", "root.vmdk", "--sign", "k.pem", "--cert", "c.pem"]
    assert "the key has a password, and none was given" in vmdkit(*words).stderr
    (tmp_path / "password").write_text("secret\n")
    assert vmdkit(*words, "--password-file", "password").returncode == 0
    assert "signature:  out.cert, valid by CN=Box Makers" in vmdkit("ova", "info", "out.ova").stdout


def test_fix(vmdkit: Command, bad: Path, tmp_path: Path) -> None:
    assert vmdkit("ova", "fix", "bad.ova", "--plan").stdout == "bad.vmdk: packed again (vmdk-no-eos, vmdk-rgd)\n"
    assert not (tmp_path / "good.ova").exists()
    done = vmdkit("ova", "fix", "bad.ova", "-o", "good.ova")
    assert (done.returncode, done.stdout, done.stderr) == (0, "bad.vmdk: packed again (vmdk-no-eos, vmdk-rgd)\n", "")
    assert vmdkit("ova", "lint", "good.ova").returncode == 0
    assert vmdkit("ova", "fix", "good.ova", "-o", "same.ova").stdout == "nothing to do; same.ova is a copy\n"
    assert (tmp_path / "same.ova").read_bytes() == (tmp_path / "good.ova").read_bytes()
    done = vmdkit("ova", "fix", "bad.ova", "-o", "good.ova")
    assert (done.returncode, done.stderr) == (1, "vmdkit: good.ova: it exists; -f overwrites it\n")
    told = json.loads(vmdkit("ova", "fix", "bad.ova", "-o", "good.ova", "-f", "--json").stdout)
    assert (told["file"], told["left"]["exit"]) == ("good.ova", 0)


def test_fix_that_leaves_something(vmdkit: Command, tmp_path: Path) -> None:
    image = images.stream_optimized(tmp_path, "64k:A", name="one")
    ova(tmp_path / "box.ova", Ovf([Part("one.vmdk", image.path.read_bytes(), image.size, size=1)], nic="RTL8139"))
    done = vmdkit("ova", "fix", "box.ova", "-o", "out.ova", "--for", "esxi8")
    assert (done.returncode, done.stdout) == (2, "wrote the sizes that the files have\n")
    assert done.stderr.startswith("vmdkit: error: hw-nic: ")


def test_fix_needs_to_know_where(vmdkit: Command, box: Path) -> None:
    done = vmdkit("ova", "fix", "box.ova")
    assert (done.returncode, done.stderr) == (1, "vmdkit: -o Y.ova is needed, or --plan\n")


def test_fix_that_cannot_be(vmdkit: Command, tmp_path: Path) -> None:
    ova(tmp_path / "box.ova", Ovf([Part("one.vmdk", b"no disk", 1 << 20)]))
    done = vmdkit("ova", "fix", "box.ova", "-o", "out.ova")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.ova").exists()


def test_fix_writes_the_digests_that_are_asked_for(vmdkit: Command, box: Path, tmp_path: Path) -> None:
    assert vmdkit("ova", "fix", "box.ova", "-o", "a.ova", "--digest", "sha1").stdout == "wrote SHA1 digests\n"
    assert "manifest:   box.mf, SHA1 of 2 files" in vmdkit("ova", "info", "a.ova").stdout
    assert vmdkit("ova", "fix", "a.ova", "-o", "b.ova", "--digest", "sha1", "--for", "aws").stdout.startswith("nothing")
    assert vmdkit("ova", "fix", "a.ova", "-o", "c.ova").stdout == "wrote SHA256 digests\n"
    assert vmdkit("ova", "fix", "box.ova", "-o", "d.ova", "--digest", "none").stdout == "left out the manifest\n"
    assert "manifest:   none" in vmdkit("ova", "info", "d.ova").stdout


def test_raw_bytes_that_look_like_a_stream(vmdkit: Command, tmp_path: Path) -> None:
    """A guest can write a sound stream onto its raw disk; it must not choose how the host reads that."""
    data = images.stream_optimized(tmp_path, "64k:A 64k:-", name="inner").path.read_bytes()
    (tmp_path / "disk.raw").write_bytes(data)
    (tmp_path / "box.yaml").write_text("disks: [{source: disk.raw, raw: true}]")
    for number, words in enumerate((["--disk", "disk.raw", "--raw"], ["box.yaml"])):
        assert vmdkit("ova", "build", f"{number}.ova", *words).returncode == 0
        assert vmdkit("ova", "extract", f"{number}.ova", f"out{number}", "--raw").returncode == 0
        (raw,) = (tmp_path / f"out{number}").iterdir()
        assert raw.read_bytes() == data
