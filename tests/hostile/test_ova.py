# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a hostile OVA may reach and cost: rows A19 and A20 of the attack table, and what belongs to them.

Every verb that reads one is tried on each, in a process of its own, beside a canary that must never be seen or touched.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import images
import ovas
import vmdkit
from images.damage_stream import bomb
from ovas import END, Ovf, Part, block, manifest, padded

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_MEMORY = 150 << 10  # KiB of the whole process; numpy and an XML tree of the largest size included
MOST_SECONDS = 4.0
CANARY = "the canary sings"
VERBS: Final = (
    ("ova", "info", "box.ova"),
    ("ova", "lint", "box.ova"),
    ("ova", "extract", "box.ova", "out"),
    ("ova", "extract", "box.ova", "raw", "--raw"),
    ("ova", "fix", "box.ova", "-o", "fixed.ova"),
    ("info", "box.ova"),
    ("hash", "box.ova#disk.vmdk"),
    ("check", "box.ova#disk.vmdk"),
)
CHILD = """
import contextlib, io, json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy, deflate
from vmdkit.cli.main import main
told = []
for words in json.loads(sys.argv[1]):
    said, begun = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    told.append([code, said.getvalue(), time.process_time() - begun])
(memory,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([told, int(memory)]))
"""


def run(home: Path, *verbs: tuple[str, ...]) -> list[tuple[int, str]]:
    """Run verbs; return code and words of each, once the cost is found bearable and the canary alone."""
    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(vmdkit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(verbs)],
        cwd=home, capture_output=True, check=False, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told, memory = json.loads(done.stdout)
    assert memory < MOST_MEMORY
    for words, (code, said, seconds) in zip(verbs, told, strict=True):
        assert seconds < MOST_SECONDS, words
        assert "Traceback" not in said
        assert "bug in vmdkit" not in said
        assert CANARY not in said
        assert all(len(line) < 2500 for line in said.splitlines()), words
        assert code != 1 or said.strip(), words
        assert code in (0, 1, 2, 3), words
    return [(code, said) for code, said, _ in told]


def stream(home: Path) -> Part:
    image = images.stream_optimized(home, "64k:A 64k:- 64k:b", name="made")
    data = image.path.read_bytes()
    image.path.unlink()
    return Part("disk.vmdk", data, image.size)


def swapped(part: Part, old: str, new: str) -> bytes:
    text = Ovf([part]).text()
    assert old.encode() in text
    return text.replace(old.encode(), new.encode(), 1)


def tar(*members: tuple[str, bytes]) -> bytes:
    """Return an archive made by hand: names are whatever they are."""
    return b"".join(block(name.encode(), len(data)) + padded(data) for name, data in members) + END


def with_text(change: tuple[str, str]) -> Callable[[Part], bytes]:
    def make(part: Part) -> bytes:
        text = swapped(part, *change)
        listed = manifest({"box.ovf": text, "disk.vmdk": part.data})
        return tar(("box.ovf", text), ("box.mf", listed), ("disk.vmdk", part.data))

    return make


def named(name: str) -> Callable[[Part], bytes]:
    def make(part: Part) -> bytes:
        text = Ovf([Part(name, part.data, part.capacity)]).text()
        return tar(("box.ovf", text), (name, part.data), ("disk.vmdk", part.data))

    return make


def plus(more: bytes) -> Callable[[Part], bytes]:
    return lambda part: tar(("box.ovf", Ovf([part]).text()), ("disk.vmdk", part.data))[: -len(END)] + more + END


def names_files(*lines: str) -> Callable[[Part], bytes]:
    """Return an OVA whose disk is a descriptor with these lines."""

    def make(part: Part) -> bytes:
        parent = "00000001" if any("Hint" in line for line in lines) else "ffffffff"
        text = "\n".join(["# Disk DescriptorFile", "version=1", "CID=1", f"parentCID={parent}", *lines, ""])
        return tar(("box.ovf", Ovf([part]).text()), ("disk.vmdk", text.encode()))

    return make


def huge(part: Part) -> Part:
    """Return a disk of whose size the descriptor has much to say."""
    return Part(part.name, part.data, 10**18, units="byte * 2^99", extra=f' ovf:populatedSize="{"9" * 5000}"')


PROPERTY: Final = '<Property ovf:key="a"/>'
BOMB: Final = bytes(8) + len(bomb(2 << 20)).to_bytes(4, "little") + bomb(2 << 20)
LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
# fmt: off
CASES: Final[dict[str, Callable[[Part], bytes]]] = {
    "xxe": with_text(("<Envelope", '<!DOCTYPE x [<!ENTITY e SYSTEM "canary">]><Envelope')),
    "xxe-used": lambda part: tar(
        (
            "box.ovf",
            swapped(part, "<Envelope", '<!DOCTYPE x [<!ENTITY e SYSTEM "canary">]><Envelope').replace(
                b"<Name>box", b"<Name>&e;"
            ),
        ),
        ("disk.vmdk", part.data),
    ),
    "xxe-parameter": with_text(("<Envelope", '<!DOCTYPE x [<!ENTITY % e SYSTEM "file:///etc/passwd">%e;]><Envelope')),
    "xinclude": with_text(("<Info>A", '<i:include xmlns:i="http://www.w3.org/2001/XInclude" href="canary"/><Info>A')),
    "billion-laughs": with_text(("<Envelope", f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><Envelope')),
    "deep": with_text(("<Info>A machine", "<x>" * 5000 + "</x>" * 5000 + "<Info>")),
    "wide": with_text(("<Info>A machine", "<x/>" * 200_000 + "<Info>")),
    "large": with_text(("<Info>A machine", "<Info>" + "x" * (9 << 20))),
    "attributes": with_text(("<Name>", "<Name " + " ".join(f'a{n}="x"' for n in range(5000)) + ">")),
    "namespaces": with_text(("<Name>", "".join(f'<x xmlns:a{n}="u">' for n in range(60)) + "</x>" * 60 + "<Name>")),
    "href-up": named("../canary"),
    "href-absolute": named("/etc/passwd"),
    "href-sub": named("sub/canary"),
    "href-address": with_text(('href="disk.vmdk"', 'href="file:///etc/passwd"')),
    "link": plus(block(b"canary", 0, b"2", link=b"../canary")),
    "link-over-name": lambda part: tar(("box.ovf", Ovf([part]).text()))[: -len(END)]
    + block(b"disk.vmdk", 0, b"2", link=b"canary")
    + END,
    "link-then-file": lambda part: block(b"out", 0, b"2", link=b"/tmp")
    + tar(("box.ovf", Ovf([part]).text()), ("out/disk.vmdk", part.data), ("disk.vmdk", part.data)),
    "hard-link": plus(block(b"x", 0, b"1", link=b"../canary")),
    "device": plus(block(b"x", 0, b"3")),
    "fifo": plus(block(b"x", 0, b"6")),
    "twice": lambda part: tar(("box.ovf", Ovf([part]).text()), ("disk.vmdk", part.data), ("disk.vmdk", b"other")),
    "twice-descriptor": lambda part: tar(("box.ovf", Ovf([part]).text()), ("box.ovf", b"<x/>")),
    "wrong-digest": lambda part: tar(
        ("box.ovf", Ovf([part]).text()), ("box.mf", manifest({"disk.vmdk": b"other"})), ("disk.vmdk", part.data)
    ),
    "huge-manifest": lambda part: tar(
        ("box.ovf", Ovf([part]).text()), ("box.mf", b"SHA256(x)= 00\n" * 200_000), ("disk.vmdk", part.data)
    ),
    "manifest-of-everything": lambda part: tar(
        ("box.ovf", Ovf([part]).text()),
        ("box.mf", b"SHA1(/etc/passwd)= 00\nSHA1(../canary)= 00\n"),
        ("disk.vmdk", part.data),
    ),
    "certificate": lambda part: tar(
        ("box.ovf", Ovf([part]).text()), ("box.mf", manifest({"disk.vmdk": part.data})),
        ("box.cert", b"SHA256(box.mf)= " + b"ab" * 256 + b"\n-----BEGIN CERTIFICATE-----\n" + b"A" * 70000),
        ("disk.vmdk", part.data),
    ),
    "many-members": lambda part: tar(("box.ovf", Ovf([part]).text()), ("disk.vmdk", part.data))[: -len(END)]
    + b"".join(block(b"%d" % n) for n in range(20_000)) + END,
    "many-extensions": plus((block(b"x", 10, b"x") + padded(b"10 path=b\n")) * 20_000),
    "long-name": plus(block(b"x", 60_000, b"L") + padded(b"n" * 60_000) + block()),
    "pax-bomb": plus(block(b"x", 1 << 22, b"x") + bytes(1 << 22) + block()),
    "pax-size": plus(block(b"x", 29, b"x") + padded(b"29 size=999999999999999999\n\n\n") + block()),
    "huge-size": plus(block(size_field=b"\x80" + b"\xff" * 11)),
    "negative-size": plus(block(size_field=b"\xff" * 12)),
    "gzip": lambda part: gzip.compress(tar(("box.ovf", Ovf([part]).text()))),
    "gzip-bomb-inside": lambda part: tar(
        ("box.ovf", Ovf([Part("disk.vmdk", gzip.compress(bytes(64 << 20)), 1 << 30, compression="gzip")]).text()),
        ("disk.vmdk", gzip.compress(bytes(64 << 20))),
    ),
    "disk-bomb": lambda part: tar(
        ("box.ovf", Ovf([part]).text()),
        ("disk.vmdk", part.data[: 128 * 512] + BOMB[:70000] + part.data[128 * 512 :]),
    ),
    "disk-names-others": names_files(
        'createType="monolithicFlat"', 'RW 1 FLAT "../canary" 0', 'RW 1 FLAT "canary" 0', 'RW 1 FLAT "/etc/passwd" 0'
    ),
    "disk-names-parent": names_files(
        'createType="vmfsSparse"', 'parentFileNameHint="canary"', 'RW 1 VMFSSPARSE "box.ovf"'
    ),
    "disk-names-itself": names_files(
        'createType="monolithicFlat"', 'parentFileNameHint="disk.vmdk"', 'RW 1 FLAT "box.ovf" 0'
    ),
    "huge-numbers": lambda part: tar(
        ("box.ovf", Ovf([huge(part)], cpus=10**30, memory=10**30).text()), ("disk.vmdk", part.data)
    ),
    "many-items": with_text(
        ("</VirtualHardwareSection>",
         "<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item>" * 9000
         + "</VirtualHardwareSection>")
    ),
    "many-properties": with_text(("</VirtualSystem>", f"<ProductSection>{PROPERTY * 9000}</ProductSection></VirtualSystem>")),  # noqa: E501
    "many-disks": with_text(("</DiskSection>", '<Disk ovf:diskId="a" ovf:fileRef="file1"/>' * 9000 + "</DiskSection>")),
    "many-files": with_text(("</References>", '<File ovf:id="a" ovf:href="disk.vmdk"/>' * 9000 + "</References>")),
    "many-sections": with_text(("</Envelope>", '<x:a xmlns:x="u"/>' * 9000 + "</Envelope>")),
    "terminal": with_text(("<Name>box", "<Name>\x9b2J\u202ebox&#10;x")),
    "empty": lambda part: b"",
    "zeros": lambda part: bytes(10240),
}
# fmt: on


@pytest.fixture
def home(tmp_path: Path) -> Path:
    inner = tmp_path / "inner"
    inner.mkdir()
    for place in (tmp_path / "canary", inner / "canary", inner / "sub-canary"):
        place.write_text(CANARY * 100)
    return inner


@pytest.mark.parametrize("case", CASES)
def test_what_it_reaches_and_costs(case: str, home: Path) -> None:
    (home / "box.ova").write_bytes(CASES[case](stream(home)))
    before = {path.name for path in home.parent.iterdir()}
    run(home, *VERBS)
    assert {path.name for path in home.parent.iterdir()} == before
    for place in (home.parent / "canary", home / "canary"):
        assert place.read_text() == CANARY * 100
        assert not place.is_symlink()
    for path in home.rglob("*"):
        assert not path.is_symlink()
        assert (
            path.is_dir() or path.suffix in (".ova", ".ovf", ".mf", ".cert", ".vmdk", ".raw") or "canary" in path.name
        )
        assert not path.name.endswith(".part")
        if path.suffix in (".vmdk", ".raw"):
            assert CANARY.encode() not in path.read_bytes()


@pytest.mark.parametrize("case", ["href-up", "href-absolute", "href-sub", "wrong-digest", "twice", "link-over-name"])
def test_what_is_not_extracted(case: str, home: Path) -> None:
    (home / "box.ova").write_bytes(CASES[case](stream(home)))
    ((code, said),) = run(home, ("ova", "extract", "box.ova", "out"))
    assert code == 1
    assert said.startswith("vmdkit: box.ova: ")
    assert not (home / "out").exists()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_cut_off(home: Path, share: float) -> None:
    data = tar(("box.ovf", Ovf([stream(home)]).text()), ("disk.vmdk", stream(home).data))
    (home / "box.ova").write_bytes(data[: int(len(data) * share)])
    run(home, *VERBS)
    assert not (home / "fixed.ova").exists() or share == 0.99


def test_a_yaml_bomb(home: Path) -> None:
    laughs = "a: &a [x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    for text in (laughs, "disks: " + "[" * 100_000, "name: !!python/object/apply:os.system ['touch canary2']"):
        (home / "box.yaml").write_text(text)
        ((code, said),) = run(home, ("ova", "build", "x.ova", "box.yaml"))
        assert (code, "line 1" in said) == (1, True)
    assert not (home / "canary2").exists()
    assert not (home / "x.ova").exists()


def test_the_builder_is_sound(home: Path) -> None:
    part = stream(home)
    (home / "box.ova").write_bytes(
        tar(
            ("box.ovf", Ovf([part]).text()),
            ("box.mf", manifest({"box.ovf": Ovf([part]).text(), "disk.vmdk": part.data})),
            ("disk.vmdk", part.data),
        )
    )
    assert {code for code, _ in run(home, *VERBS)} == {0}
    assert ovas.BLOCK == 512
