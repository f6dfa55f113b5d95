# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

import witness
from vmdkit.cli import main
from vmdkit.formats import FORMATS
from vmdkit.ops import verify

if TYPE_CHECKING:
    from pathlib import Path

    from vmdkit.device import Device


@pytest.fixture
def spoiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has another one called with what was written, before it is read again."""

    def after(spoil: Any) -> None:
        drop = verify.drop_cache

        def spoil_and_drop(written: Device) -> None:
            spoil(written)
            drop(written)

        monkeypatch.setattr(verify, "drop_cache", spoil_and_drop)

    return after


def flip(offset: int) -> Any:
    """Return what flips a bit of the disk's byte at ``offset``, wherever it lies."""

    def spoil(written: Device) -> None:
        run = next(iter(written.locate(1, offset)))
        assert run.storage is not None
        fd = os.open(f"/proc/self/fd/{run.storage.fileno()}", os.O_RDWR)
        byte = os.pread(fd, 1, run.at)[0]
        os.pwrite(fd, bytes([byte ^ 1]), run.at)
        os.close(fd)

    return spoil


@pytest.mark.parametrize("mode", ["--verify", "--verify=full"])
@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values()])
def test_a_sound_copy(kind: str, mode: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    digest = f"tree-sha256-64k:{witness.tree_hash(raw.read_bytes())}"
    done = vmdkit("convert", "--raw", raw, "-O", kind, "new.vmdk", mode)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"proved equal: 1 MiB, {digest}\n", "")
    assert (tmp_path / "new.vmdk").exists()
    assert vmdkit("convert", "--raw", raw, "-O", kind, "two.vmdk", mode, "-q").stdout == ""


@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values() if row.name != "streamOptimized"])
def test_a_flipped_bit(kind: str, spoiling: Any, raw: Path, tmp_path: Path, capsys: Any) -> None:
    spoiling(flip(70000))
    target, report = str(tmp_path / "new.vmdk"), tmp_path / "report.json"
    code = main.main(["convert", "--raw", str(raw), "-O", kind, target, "--report", str(report)])
    assert code == 3
    assert capsys.readouterr().err == (
        f"vmdkit: {target}: it is not what its source holds: byte 70000 is 0x40, not 0x41 (at offset 0x11170), "
        "it was removed again\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "report.json"]
    found = json.loads(report.read_text())
    assert found["verdict"] == "different"
    assert found["difference"]["offset"] == 70000
    assert found["destination"]["name"] == target
    assert main.main(["report", str(report)]) == 3
    assert "byte 70000 is 0x40, not 0x41" in capsys.readouterr().out


def test_a_stream_that_was_spoiled(spoiling: Any, raw: Path, tmp_path: Path, capsys: Any) -> None:
    def spoil(written: Any) -> None:
        (part,) = (path for path in tmp_path.iterdir() if path.name.startswith("."))
        with part.open("r+b") as file:
            data = file.read()
            at = data.index(b"\x78", 64 << 10)
            file.seek(at + 5)
            file.write(bytes([data[at + 5] ^ 255]))

    spoiling(spoil)
    target = str(tmp_path / "new.vmdk")
    assert main.main(["convert", "--raw", str(raw), "-O", "streamOptimized", target, "--verify"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"vmdkit: {target}: what was written cannot be read: {target}: the grain")
    assert "it was removed again" in error
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


@pytest.mark.parametrize("words", [["convert", "-n"], ["copy", "--raw-destination"]])
def test_in_place(words: list[str], spoiling: Any, raw: Path, tmp_path: Path, capsys: Any) -> None:
    target, report = tmp_path / "there", tmp_path / "report.json"
    target.write_bytes(b"old" * 700000)
    words += ["--raw", str(raw), str(target), "--report", str(report)]
    assert main.main(words) == 0
    assert target.read_bytes() == raw.read_bytes() + (b"old" * 700000)[1 << 20 :]
    found = json.loads(report.read_text())
    assert (found["destination"]["size"], found["destination"]["compared"]) == (2100000, 1 << 20)
    assert main.main(["hash", "--check", str(report)]) == 0
    report.unlink()
    spoiling(flip(65536))
    assert main.main(words) == 3
    assert "byte 65536 is 0x40, not 0x41 (at offset 0x10000), it stays as it is written" in capsys.readouterr().err
    assert target.exists()


def test_copying_into_a_disk(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    vmdkit("create", "there.vmdk", "2M")
    done = vmdkit("copy", "--raw-source", raw, "there.vmdk", "--verify=full", "--json")
    found = json.loads(done.stdout)
    assert (found["verdict"], found["operation"]) == ("equal", "copy")
    assert found["reading"] == {
        "reader": "vmdkit's second reader",
        "trust": "every byte was read; the cache was dropped before",
    }
    assert vmdkit("copy", "--raw", raw, "-", "--verify").returncode == 1


def test_copying_into_a_disk_that_the_second_reader_does_not_know(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    vmdkit("create", "there.vmdk", "2M", "-o", "subformat=monolithicFlat")
    path = tmp_path / "there.vmdk"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # not as we write it
    done = vmdkit("copy", "--raw-source", raw, path, "--verify", "--json")
    assert json.loads(done.stdout)["reading"]["reader"] == "vmdkit"


def test_a_report(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    digest = f"tree-sha256-64k:{witness.tree_hash(raw.read_bytes())}"
    done = vmdkit("convert", "--raw", raw.name, "-O", "monolithicFlat", "new.vmdk", "--report", "report.json")
    assert done.returncode == 0
    text = (tmp_path / "report.json").read_text()
    found = json.loads(text)
    assert (found["verdict"], found["operation"]) == ("equal", "convert")
    assert found["source"] == {
        "name": "disk.raw", "format": "raw", "size": 1 << 20, "data": 69632, "zero": 0, "hole": 978944,
        "files": [{"name": "disk.raw", "size": 1 << 20, "allocated": 69632}],
    }  # fmt: skip
    there = found["destination"]
    assert (there["name"], there["format"], there["subformat"]) == ("new.vmdk", "vmdk", "monolithicFlat")
    assert [file["name"] for file in there["files"]] == ["new-flat.vmdk"]
    assert found["digests"]["source"] == found["digests"]["destination"] == digest
    block = b"A" * 65536
    assert found["digests"]["spans"]["1"] == hashlib.sha256(block).hexdigest()
    assert found["tools"].keys() == {"vmdkit", "python"}
    rest = {key: value for key, value in found.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert found["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()

    shown = vmdkit("report", "report.json")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == "verdict      EQUAL"
    assert f"digest       {digest}" in lines
    assert len(lines) < 24
    assert max(map(len, lines)) <= 96
    assert vmdkit("report", "report.json", "--json").stdout == text
    assert vmdkit("report", "report.json", "-q").stdout == ""


def test_a_report_on_standard_output(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "new.raw", "--report", "-")
    assert done.stdout.startswith("verdict      EQUAL\nsource ")
    done = vmdkit("convert", "--raw", raw, "two.raw", "--verify", "--json")
    assert json.loads(done.stdout)["verdict"] == "equal"


def test_checking_a_disk_against_a_report(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    vmdkit("convert", "--raw", raw.name, "-O", "monolithicSparse", "new.vmdk", "--report", "report.json")
    assert vmdkit("hash", "--check", "report.json").stdout == "new.vmdk: OK\n"
    assert vmdkit("hash", "--check", "report.json", "disk.raw").stdout == "disk.raw: OK\n"
    assert vmdkit("hash", "--check", "report.json", "-q").stdout == ""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new.vmdk").rename(tmp_path / "elsewhere" / "moved.vmdk")
    assert vmdkit("hash", "--check", "report.json", "elsewhere/moved.vmdk").stdout == "elsewhere/moved.vmdk: OK\n"
    done = vmdkit("hash", "--check", "report.json")
    assert (done.returncode, done.stdout) == (1, "new.vmdk: FAILED to be read\n")
    with raw.open("r+b") as file:
        file.seek(70000)
        file.write(b"a")
    done = vmdkit("hash", "--check", "report.json", "disk.raw")
    assert (done.returncode, done.stdout) == (1, "disk.raw: FAILED: first in the 64 KiB at 0x10000\n")
    found = json.loads(vmdkit("hash", "--check", "report.json", "--json", "disk.raw").stdout)
    assert found[0]["difference"] == {"offset": 65536, "length": 65536}
    with raw.open("r+b") as file:
        file.truncate(1 << 19)
    done = vmdkit("hash", "--check", "report.json", "disk.raw")
    assert done.stdout == "disk.raw: FAILED: it has 524288 bytes, 1048576 are due\n"


@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values()])
def test_checking_every_kind_of_disk(kind: str, vmdkit: Any, raw: Path) -> None:
    vmdkit("convert", "--raw", raw.name, "-O", kind, "new", "--report", "report.json")
    assert vmdkit("hash", "--check", "report.json").stdout == "new: OK\n"


def test_an_archive_says_what_it_is(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    vmdkit("convert", "--raw", raw.name, "-O", "tar.gz", "new.tar.gz", "--report", "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    there = found["destination"]
    assert (there["format"], there["size"]) == ("tar.gz", 1 << 20)
    assert there["files"][0]["size"] == (tmp_path / "new.tar.gz").stat().st_size < 1 << 16
    assert found["reading"] == {
        "reader": "Python's tarfile, then vmdkit's second reader",
        "trust": "what each side calls zero was not read; the cache was kept",
    }


def test_a_longer_destination(vmdkit: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.raw").write_bytes(b"odd")
    done = vmdkit("convert", "--raw", "odd.raw", "-O", "vmfs", "new.vmdk", "--report", "report.json")
    assert done.returncode == 0
    lines = vmdkit("report", "report.json").stdout.splitlines()
    assert "             of the destination, which is longer, and zero there" in lines
    assert vmdkit("hash", "--check", "report.json").stdout == "new.vmdk: OK\n"
    assert vmdkit("hash", "--check", "report.json", "odd.raw").stdout == "odd.raw: OK\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-", "--verify"], "what went to standard output cannot be read again"),
        (["new.raw", "--report", "disk.raw"], "disk.raw: it exists; -f overwrites it"),
        (["new.raw", "--report", "nowhere/report"], "nowhere: there is no such directory"),
    ],
)
def test_what_cannot_be_proved(words: list[str], message: str, vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    done = vmdkit("convert", "--raw", raw.name, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vmdkit: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]


def test_verify_does_not_take_the_next_word(vmdkit: Any, raw: Path, tmp_path: Path) -> None:
    assert vmdkit("convert", "--raw", "--verify", raw, "new.raw").returncode == 0
    assert vmdkit("convert", "--raw", "--verify=perhaps", raw, "two.raw").returncode == 2


def test_progress_reaches_its_end(vmdkit: Any, raw: Path) -> None:
    done = vmdkit("convert", "--raw", raw, "new.raw", "--verify", "--progress", "json")
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["done"] == last["total"] == 3 << 20
