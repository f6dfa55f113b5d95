# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Archives: what we write, we and Python's tarfile read the same; what tarfile writes, we read; XML survives."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from ovas import BLOCK
from vmdkit.device import Can
from vmdkit.errors import FormatError
from vmdkit.ova import manifest, xml
from vmdkit.ova.archive import Archive, read_archive
from vmdkit.ova.machine import is_plain, plain
from vmdkit.ova.writer import Seal, Verbatim, Written, write_archive
from vmdkit.ova.xml import Element
from vmdkit.storage.memory import MemoryDevice

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}", fullmatch=True)
FILES = st.dictionaries(NAMES, st.binary(max_size=3000), max_size=6)
ANY_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150).filter(
    lambda name: name.strip(".") == name
)


class Growing(MemoryDevice):
    """Memory that can grow, as a new file can."""

    def __init__(self) -> None:
        super().__init__(0, name="x.ova")
        self._set_can(self.can | Can.RESIZE)

    def _resize(self, size: int, *, reserve: bool = False) -> None:
        self._data[:] = self._data[:size].ljust(size, b"\0")

    @property
    def content(self) -> bytes:
        """All of it."""
        return bytes(self._data)


def read(archive: Archive) -> dict[str, bytes]:
    found = {}
    for member in archive.files():
        with archive.open(member) as window:
            found[member.name] = bytes(window.pread(window.size, 0))
    return found


@settings(max_examples=100, deadline=None)
@given(FILES, st.binary(max_size=1500), st.integers(0, 8**11 - 1), st.sampled_from(("SHA1", "SHA256", "SHA512", "")))
def test_what_we_write(files: dict[str, bytes], text: bytes, mtime: int, algorithm: str) -> None:
    files = {name: data for name, data in files.items() if name not in ("box.ovf", "box.mf")}
    text = text.rstrip(b"\n ") + b"\n"
    target = Growing()
    pieces = [Verbatim(name, MemoryDevice(data)) for name, data in files.items()]
    written = write_archive(target, "box", lambda _: text, pieces, Seal(algorithm, mtime=mtime))
    assert [one.size for one in written] == [len(data) for data in files.values()]
    wanted = {"box.ovf": text, **files}
    if algorithm:
        listed = "".join(
            f"{algorithm}({name})= {hashlib.new(algorithm, data).hexdigest()}\n" for name, data in wanted.items()
        )
        wanted = {"box.ovf": text, "box.mf": listed.encode(), **files}
    ours = read_archive(target)
    if len({name.lower() for name in wanted}) == len(wanted):
        assert ours.problems == []
    assert {problem.code for problem in ours.problems} <= {"tar-name-case"}
    assert list(read(ours).items()) == list(wanted.items())
    with tarfile.open(fileobj=io.BytesIO(target.content)) as theirs:
        assert [(info.name, info.mtime) for info in theirs] == [(name, mtime) for name in wanted]
        assert {info.name: theirs.extractfile(info).read() for info in theirs} == wanted  # type: ignore[union-attr]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(ANY_NAMES, st.binary(max_size=2000), min_size=1, max_size=5),
    st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
)
def test_what_tarfile_writes(files: dict[str, bytes], dialect: int) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=dialect) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    archive = read_archive(MemoryDevice(data.getvalue(), writable=False))
    assert read(archive) == files
    assert {problem.code for problem in archive.problems} <= {"tar-name-unsafe", "tar-name-case"}


@settings(max_examples=60, deadline=None)
@given(FILES.filter(bool), st.integers(0, 1 << 20), st.integers(0, 255))
def test_one_wrong_byte(files: dict[str, bytes], where: int, value: int) -> None:
    """Whatever is changed: members lie inside the archive, do not overlap, and nothing but our errors is raised."""
    target = Growing()
    write_archive(target, "box", lambda _: b"<a/>\n", [Verbatim(n, MemoryDevice(d)) for n, d in files.items()], Seal())
    data = bytearray(target.content)
    data[where % len(data)] = value
    device = MemoryDevice(data, writable=False)
    with contextlib.suppress(FormatError):
        check(read_archive(device), files, first=where % len(data) < BLOCK)


def check(archive: Archive, files: dict[str, bytes], *, first: bool) -> None:
    """Assert what holds of every archive that was made by ``write_archive`` and then changed in one byte."""
    end = 0
    for member in archive.members:
        assert end <= member.header < member.at <= archive.device.size
        end = member.at + member.size
    assert archive.problems or first or read(archive).keys() >= {"box.ovf"}
    assert len(archive.members) <= len(files) + 2


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=20
)
ELEMENTS = st.recursive(
    st.builds(lambda text: [text], TEXTS.filter(bool)),
    lambda inner: st.lists(
        st.builds(
            lambda name, keys, children: [Element(name, keys, [one for child in children for one in child])],
            st.sampled_from(("a", "b", "long-name")),
            st.dictionaries(st.sampled_from(("k", "l.m")), TEXTS, max_size=2),
            st.lists(inner, max_size=3),
        ),
        min_size=1,
        max_size=2,
    ).map(lambda many: [one for some in many for one in some]),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(ELEMENTS)
def test_xml_survives(children: list[Element | str]) -> None:
    data = xml.render(Element("root", {}, children))
    assert xml.render(xml.parse(data, "x")) == data
    theirs = ElementTree.fromstring(data)
    ours = xml.parse(data, "x")
    assert [one.tag for one in theirs.iter()] == [one.qname for one in ours.walk()]
    assert ["".join(one.itertext()) for one in theirs.iter()] == [_all_text(one) for one in ours.walk()]
    assert [one.attrib for one in theirs.iter()] == [one.attributes for one in ours.walk()]


def _all_text(element: Element) -> str:
    return "".join(child if isinstance(child, str) else _all_text(child) for child in element.children)


@given(st.text(max_size=300))
def test_plain_names_are_plain(name: str) -> None:
    assert is_plain(plain(name)) or plain(name).startswith("_")


@given(
    st.dictionaries(
        ANY_NAMES.filter(lambda name: "\n" not in name and "\r" not in name), st.binary(min_size=1, max_size=64)
    )
)
def test_manifests_survive(files: dict[str, bytes]) -> None:
    digests = {name: data.hex() for name, data in files.items()}
    found = manifest.parse(manifest.render("SHA256", digests), "x")
    assert {line.name: line.digest for line in found.lines} == digests
    assert found.strange == []


def test_written_is_a_value() -> None:
    assert Written(1) == Written(1, 0, 0)
