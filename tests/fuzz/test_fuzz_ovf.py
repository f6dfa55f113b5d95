# Invariant: any bytes: the descriptor parses, or FormatError is raised; nothing else, within 5 seconds of processor
# time. What parses is written again with the same meaning; lint never fails, fix raises only our errors.
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""OVF descriptors, broken: XML that is none, entities, attributes, numbers, references that lead nowhere."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import EDGES, SECONDS, corpus, for_a_while, guarded, under_atheris
from ovas import Ovf, Part, pack
from vmdkit.errors import FormatError, VmdkitError
from vmdkit.ova import descriptor, xml
from vmdkit.ova.build import Packing
from vmdkit.ova.fix import plan_fix
from vmdkit.ova.lint import examine
from vmdkit.ova.mend import Mend, set_files
from vmdkit.ova.package import Package
from vmdkit.ova.rules import RULES
from vmdkit.ova.targets import parse_targets
from vmdkit.ova.writer import Written

TOKENS = (
    "<", ">", "/>", "</Item>", "<Item>", '"', "&", "&lt;", "&#0;", "&#x10FFFF;", "<!DOCTYPE a>", "<!--", "-->", "]]>",
    "<![CDATA[", "<?x?>", "xmlns:", "ovf:", "vmdisk1", "file1", "3", "17", "6", "-1", "byte * 2^99", "ovf:/disk/",
    "${x}", "false",
    "vmx-99", "\x00", "\ufffe", "é", "<rasd:Parent>3</rasd:Parent>", "<rasd:ResourceType>10</rasd:ResourceType>",
)  # fmt: skip


def seed() -> bytes:
    """Return a sound descriptor."""
    return Ovf([Part("d.vmdk", b"disk", 1 << 20), Part("e.vmdk", b"disk", 1 << 20)]).text()


def target(data: bytes) -> None:
    """Parse it, write it again, hold it against every rule, and change it for everybody."""
    begun = time.process_time()
    with contextlib.suppress(FormatError):
        envelope = descriptor.parse(data, "x")
        again = descriptor.parse(xml.render(envelope.root), "x")
        assert [disk.capacity for disk in again.disks] == [disk.capacity for disk in envelope.disks]
        assert [file.href for file in again.files] == [file.href for file in envelope.files]
        examined(data)
        Mend(envelope, parse_targets([]), set(RULES)).run()
        with contextlib.suppress(VmdkitError):
            set_files(envelope, {"d.vmdk": Written(10**12, 1 << 40, 1 << 40)}, {"d.vmdk"})
            before = len(xml.render(envelope.root))
            set_files(envelope, {"d.vmdk": Written(5, 1 << 40, 7)}, {"d.vmdk"})
            assert len(xml.render(envelope.root)) <= before
    spent = time.process_time() - begun
    assert spent < SECONDS, f"{spent:.1f} seconds"


def examined(data: bytes) -> None:
    """Look at an archive with this descriptor, and plan its repair."""
    with tempfile.TemporaryDirectory() as directory:
        path = pack(Path(directory) / "x.ova", [("x.ovf", data), ("d.vmdk", b"disk")])
        with Package(str(path)) as package, contextlib.ExitStack() as opened:
            examine(package, parse_targets([]))
            with contextlib.suppress(VmdkitError):
                plan_fix(package, parse_targets([]), Packing(), opened)


def make(rng: random.Random) -> bytes:
    """Return a broken descriptor: tokens put in, pieces taken out or swapped, numbers changed."""
    text = seed().decode()
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, stroke = rng.randrange(len(text) + 1), rng.random()
        if stroke < 0.35:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif stroke < 0.6:
            text = text[:at] + text[at + rng.choice((1, 5, 40, 300)) :]
        elif stroke < 0.8:
            digits = [index for index, char in enumerate(text) if char.isdigit()]
            where = rng.choice(digits or [0])
            text = text[:where] + str(rng.choice((*EDGES, 0, 9, rng.randrange(40)))) + text[where + 1 :]
        else:
            end = at + rng.randrange(200)
            text = text[:at] + text[at:end] * rng.choice((2, 3)) + text[end:]
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 64))
def test_broken_descriptors(number: int) -> None:
    guarded(target, make(random.Random(number)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=500))
def test_any_bytes(data: bytes) -> None:
    guarded(target, data)


@pytest.mark.parametrize("path", corpus("ovf"), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())


def test_the_seed_is_sound() -> None:
    assert descriptor.parse(seed(), "x").systems
    target(seed())


@pytest.mark.timeout(0)
def test_for_a_while() -> None:
    for_a_while(target, make)


if __name__ == "__main__":
    under_atheris(target)
