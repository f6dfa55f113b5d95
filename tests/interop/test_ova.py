# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""OVAs against what else reads and writes them here: tar, openssl, 7-Zip, qemu-img.

VirtualBox, ovftool and VMware's products cannot be had here; what lint knows of them is from those who met them.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import images
from certificates import pair
from ovas import Ovf, Part, manifest
from require import requires
from vmdkit.cli.main import main
from vmdkit.ova import tar as our_tar
from vmdkit.ova.archive import read_archive
from vmdkit.ova.lint import lint
from vmdkit.ova.targets import parse_targets
from vmdkit.storage.file import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from images import Image

LAYOUT = "64k:A 64k:0 1M:- 64k:b 512:c"


def run(home: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=home, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def vmdkit(home: Path, *words: str) -> None:
    here = os.getcwd()
    os.chdir(home)
    try:
        assert main(list(words)) == 0
    finally:
        os.chdir(here)


@pytest.fixture
def disk(tmp_path: Path) -> Image:
    return images.monolithic_sparse(tmp_path, LAYOUT, name="root")


@pytest.fixture
def box(tmp_path: Path, disk: Image) -> Path:
    key, certificate = pair(issuer="An Authority")
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(certificate)
    words = [
        "-q",
        "ova",
        "build",
        "box.ova",
        "--disk",
        "root.vmdk",
        "--sign",
        "key.pem",
        "--cert",
        "cert.pem",
        "--no-sync",
    ]
    vmdkit(tmp_path, *words)
    return tmp_path / "box.ova"


def test_tar_lists_and_extracts(tmp_path: Path, box: Path) -> None:
    requires("tar")
    names = ["box.ovf", "box.mf", "box.cert", "box-disk1.vmdk"]
    assert run(tmp_path, "tar", "--list", "--file", "box.ova").splitlines() == names
    out = tmp_path / "out"
    out.mkdir()
    assert run(out, "tar", "--extract", "--verbose", "--file", "../box.ova").splitlines() == names
    with open_file(str(box)) as file:
        archive = read_archive(file)
        for name in names:
            with archive.open(archive.find(name)) as window:
                assert (out / name).read_bytes() == window.pread(window.size, 0)


def test_our_archive_is_tars_own(tmp_path: Path, box: Path) -> None:
    requires("tar>=1.30")
    out = tmp_path / "out"
    out.mkdir()
    names = run(out, "tar", "--extract", "--verbose", "--file", "../box.ova").split()
    how = ["--format=ustar", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=0644"]
    run(out, "tar", *how, "--create", "--file", "theirs.tar", *names)
    assert (out / "theirs.tar").read_bytes() == box.read_bytes()


def test_tar_reads_our_large_members(tmp_path: Path) -> None:
    requires("tar")
    size = (9 << 30) + 5
    with (tmp_path / "large.tar").open("wb") as file:
        file.write(our_tar.header("large", size))
        file.truncate(512 + size + our_tar.padding(size))
        file.seek(0, os.SEEK_END)
        file.write(our_tar.header("after", 0))
        file.truncate(512 + size + our_tar.padding(size) + 512 + 1024)
    told = run(tmp_path, "tar", "--list", "--verbose", "--file", "large.tar").split()
    assert str(size) in told
    assert told[-1] == "after"


@pytest.mark.parametrize("dialect", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_tar_writes(tmp_path: Path, dialect: str) -> None:
    requires("tar")
    files = {"box.ovf": b"<x/>", "empty": b"", "disk.vmdk": b"D" * 70000}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    run(tmp_path, "tar", f"--format={dialect}", "--create", "--file", "x.ova", *files)
    with open_file(str(tmp_path / "x.ova")) as file:
        archive = read_archive(file)
        assert archive.problems == []
        assert [member.dialect for member in archive.members] == [
            {"oldgnu": "gnu", "posix": "pax"}.get(dialect, dialect)
        ] * 3
        for name, data in files.items():
            with archive.open(archive.find(name)) as window:
                assert window.pread(window.size, 0) == data


def test_a_directory_in_front(tmp_path: Path) -> None:
    requires("tar")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "box.ovf").write_bytes(b"<x/>")
    run(tmp_path / "box", "tar", "--create", "--file", "../x.ova", ".")
    with open_file(str(tmp_path / "x.ova")) as file:
        archive = read_archive(file)
    assert [member.name for member in archive.files()] == ["box.ovf"]
    assert {problem.code for problem in archive.problems} == {"tar-directory", "tar-name-dot"}


def test_openssl_prints_our_manifest(tmp_path: Path, box: Path) -> None:
    requires("openssl")
    vmdkit(tmp_path, "ova", "extract", "box.ova", "out")
    names = ("box.ovf", "box-disk1.vmdk")
    theirs = "".join(run(tmp_path / "out", "openssl", "dgst", "-sha256", name) for name in names)
    ours = (tmp_path / "out" / "box.mf").read_text()
    assert ours == theirs.replace("SHA2-256(", "SHA256(")


def test_openssl_verifies_our_signature(tmp_path: Path, box: Path) -> None:
    requires("openssl")
    vmdkit(tmp_path, "ova", "extract", "box.ova", "out")
    out = tmp_path / "out"
    first, _, pem = (out / "box.cert").read_text().partition("\n")
    (out / "signature").write_bytes(bytes.fromhex(first.partition("= ")[2]))
    (out / "cert.pem").write_text(pem)
    (out / "public.pem").write_text(run(out, "openssl", "x509", "-in", "cert.pem", "-pubkey", "-noout"))
    words = ["openssl", "dgst", "-sha256", "-verify", "public.pem", "-signature", "signature"]
    assert run(out, *words, "box.mf") == "Verified OK\n"
    (out / "other.mf").write_bytes((out / "box.mf").read_bytes() + b"\n")
    assert subprocess.run([*words, "other.mf"], cwd=out, capture_output=True, check=False).returncode


def test_we_verify_a_signature_of_openssl(tmp_path: Path, box: Path) -> None:
    requires("openssl", "tar")
    vmdkit(tmp_path, "ova", "extract", "box.ova", "out")
    out = tmp_path / "out"
    digest = run(out, "openssl", "dgst", "-sha256", "-sign", "../key.pem", "-hex", "box.mf").rpartition("= ")[2].strip()
    (out / "box.cert").write_text(f"SHA256(box.mf)= {digest}\n" + (tmp_path / "cert.pem").read_text())
    run(out, "tar", "--format=ustar", "--create", "--file", "x.ova", "box.ovf", "box.mf", "box.cert", "box-disk1.vmdk")
    assert lint(str(out / "x.ova"), parse_targets([])).findings == []


def test_qemu_reads_the_extracted_disk(tmp_path: Path, box: Path, disk: Image) -> None:
    requires("qemu-img")
    vmdkit(tmp_path, "ova", "extract", "box.ova", "out")
    vmdkit(tmp_path, "ova", "extract", "box.ova", "out", "--raw")
    assert (tmp_path / "out" / "box-disk1.raw").read_bytes() == disk.model.pread(disk.size, 0)
    words = ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", "out/box-disk1.vmdk", "out/box-disk1.raw"]
    assert run(tmp_path, *words) == "Images are identical.\n"


def test_7zip_reads_it(tmp_path: Path, box: Path) -> None:
    requires("7zz")
    told = run(tmp_path, "7zz", "t", "box.ova")
    assert "Everything is Ok" in told
    assert "Type = tar" in told


def test_a_stream_of_qemu_is_told_and_mended(tmp_path: Path, disk: Image) -> None:
    requires("qemu-img")
    words = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "root.vmdk", "stream.vmdk"]
    run(tmp_path, *words)
    data = (tmp_path / "stream.vmdk").read_bytes()
    text = Ovf([Part("stream.vmdk", data, disk.size)]).text()
    listed = manifest({"box.ovf": text, "stream.vmdk": data})
    for name, content in (("box.ovf", text), ("box.mf", listed)):
        (tmp_path / name).write_bytes(content)
    run(tmp_path, "tar", "--format=ustar", "--create", "--file", "bad.ova", "box.ovf", "box.mf", "stream.vmdk")
    found = lint(str(tmp_path / "bad.ova"), parse_targets(["esxi8"]))
    assert "vmdk-rgd" in found.rules()
    assert found.rules() & {"vmdk-no-eos", "vmdk-eos-luck"}  # it depends on the last grain
    assert found.exit_code in (2, 3)
    vmdkit(tmp_path, "-q", "ova", "fix", "bad.ova", "-o", "good.ova", "--for", "esxi8")
    assert lint(str(tmp_path / "good.ova"), parse_targets(["esxi8"])).findings == []
    vmdkit(tmp_path, "ova", "extract", "good.ova", "out")
    assert run(tmp_path, "qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", "root.vmdk", "out/stream.vmdk").startswith(
        "Images are identical"
    )


def test_nbd_serves_a_disk_inside(tmp_path: Path, box: Path) -> None:
    requires("qemu-img")
    command = 'qemu-img compare -f raw -F vmdk "$uri" root.vmdk'
    vmdkit(tmp_path, "serve", "box.ova#box-disk1.vmdk", "--run", command)
