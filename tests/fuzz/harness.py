# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What the fuzzers of the VMDK reader share: an image in memory, what is done with it, and how long.

``FUZZ_SECONDS=600 pytest tests/fuzz`` goes on for so long with new random inputs; without it each fuzzer makes a few
hundred. An input that breaks the invariant is kept in the directory that the message names: put it into the corpus.
``python tests/fuzz/test_fuzz_stream.py corpus/stream`` runs one fuzzer under atheris, where that is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from images.damage_stream import bomb
from vmdkit.errors import VmdkitError
from vmdkit.gate import Gate
from vmdkit.storage.memory import MemoryDevice
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from images import Image
    from vmdkit.device import Device

CORPUS: Final = Path(__file__).parent / "corpus"
SECONDS: Final = 5.0  # of processor time for one input, on a machine that is shared; it takes a hundredth of that
MOST_READ: Final = 1 << 20
INTERESTING: Final = (0, 1, 2, 3, 7, 8, 127, 128, 129, 511, 512, 513, 4095, 4096, 1 << 15, 1 << 20)
EDGES: Final = tuple(
    (1 << bits) + more for bits in (8, 16, 31, 32, 40, 48, 53, 55, 60, 62, 63, 64) for more in (-1, 0, 1)
)


class Shelf(Gate):
    """A gate to files in memory: by bare name, as the default gate does it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def resolve(self, name: str, base: str) -> str:
        """Return the name."""
        return name

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a file of the shelf."""
        if name not in self._files:
            raise FileNotFoundError(2, "No such file", name)
        return MemoryDevice(self._files[name], name=name, writable=False)


def use(files: Mapping[str, bytes], name: str, options: Options | None = None) -> None:
    """Open an image and look at all of it that is affordable; lets through what is allowed, and nothing else."""
    begun = time.process_time()
    with contextlib.suppress(VmdkitError, OSError):
        _open_and_look(files, name, options or Options())
    spent = time.process_time() - begun
    assert spent < SECONDS, f"{spent:.1f} seconds"


def _open_and_look(files: Mapping[str, bytes], name: str, options: Options) -> None:
    storage = MemoryDevice(files[name], name=name, writable=False)
    text = read_descriptor(storage)
    if text is None:
        return
    with open_image(storage, text, Shelf(files), options) as disk:
        places = {0, disk.size // 2, disk.size - 1, disk.size - 512}
        with contextlib.suppress(VmdkitError):
            end = 0
            for run in islice(disk.extents(), 2000):
                assert run.offset == end
                end += run.length
                places |= {run.offset - 1, run.offset}
                if run.flags & 2 and run.length < MOST_READ:
                    assert not any(disk.pread(run.length, run.offset))
            assert end <= disk.size
        with contextlib.suppress(VmdkitError):
            for place in islice(disk.locate(), 2000):
                if place.storage is not None and place.kind.value == "data":
                    count = min(place.length, 4096)
                    assert place.storage.pread(count, place.at) == disk.pread(count, place.offset)
        for at in sorted(places)[:300]:
            if 0 <= at < disk.size:
                with contextlib.suppress(VmdkitError, OSError):
                    count = min(1000, disk.size - at)
                    whole = disk.pread(count, at)
                    assert disk.pread(count // 2, at) == whole[: count // 2]
                    assert disk.pread(count - count // 2, at + count // 2) == whole[count // 2 :]
        with contextlib.suppress(VmdkitError, OSError):
            disk.pread(min(disk.size, MOST_READ), 0)
        with contextlib.suppress(VmdkitError, OSError):
            disk.facts()
        disk.flush()


# ── mutation ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Seed(NamedTuple):
    """A sound image in memory, the file to be broken, and where its structures lie.

    A place is ``(offset, bytes of an item, items)``; ``wanted`` is what must be read from the sound image.
    """

    files: dict[str, bytes]
    opened: str
    broken: str
    places: list[tuple[int, int, int]]
    wanted: bytes


def seed(image: Image) -> Seed:
    """Return an image as the start of mutations of its first extent file."""
    files = {path.name: path.read_bytes() for layer in image.layers() for path in layer.files}
    broken = image.parts[0].path.name
    places = []
    for name, place in image.fields.items():
        if place.file.name != broken or name == "text":
            continue
        item = place.item or (place.size if place.size <= 8 else 1)
        places.append((place.offset, item, max(1, place.size // item)))
    return Seed(files, image.path.name, broken, places, image.model.pread(image.size, 0))


def assert_sound(start: Seed) -> None:
    """Read the sound image whole: else the fuzzer would only ever see refusals."""
    storage = MemoryDevice(start.files[start.opened], name=start.opened, writable=False)
    text = read_descriptor(storage)
    assert text is not None
    with open_image(storage, text, Shelf(start.files), Options()) as disk:
        assert disk.pread(disk.size, 0) == start.wanted


def mutate(start: Seed, rng: random.Random) -> bytes:
    """Return the broken file after a few strokes: numbers into fields, bytes anywhere, a cut, a repetition."""
    data = bytearray(start.files[start.broken])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        stroke = rng.random()
        if stroke < 0.7:
            offset, item, count = rng.choice(start.places)
            at = offset + item * rng.choice((0, 0, 0, count - 1, rng.randrange(count)))
            value = rng.choice((rng.choice(INTERESTING), rng.choice(EDGES), rng.getrandbits(64), len(data) // 512))
            old = int.from_bytes(data[at : at + item], "little")
            value = rng.choice((value, value, old + 1, old - 1, old ^ 1 << rng.randrange(item * 8)))
            data[at : at + item] = (value % (1 << item * 8)).to_bytes(item, "little")
        elif stroke < 0.8 and data:
            at = rng.randrange(len(data))
            data[at : at + rng.choice((1, 4, 64))] = rng.randbytes(rng.choice((0, 1, 4, 64)))
        elif stroke < 0.9:
            del data[rng.choice((rng.randrange(len(data) + 1), len(data) // 512 * 512 - 512, 512, 1024)) :]
        elif stroke < 0.95:
            data += rng.choice((bytes(512), data[:512], data[-1024:], rng.randbytes(100), bytes(100_000)))
        else:
            at = rng.randrange(0, len(data) + 1, 512)
            data[at : at + 512] = rng.choice((bytes(512), data[:512], rng.randbytes(512), bomb(2 << 20)[:512]))
    return bytes(data)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def guarded(target: Callable[[bytes], None], data: bytes) -> None:
    """Run one input; keep it where it breaks the invariant."""
    try:
        target(data)
    except BaseException as error:
        kept = Path(tempfile.gettempdir()) / f"fuzz-{hashlib.sha256(data).hexdigest()[:16]}"
        kept.write_bytes(data)
        error.add_note(f"the input is kept in {kept}")
        raise


def for_a_while(target: Callable[[bytes], None], make: Callable[[random.Random], bytes], share: float = 1.0) -> None:
    """Make and run inputs for FUZZ_SECONDS (times ``share``); skip where the variable is not set."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))
    if not seconds:
        pytest.skip("FUZZ_SECONDS is not set")
    end = time.monotonic() + seconds * share
    count = 0
    while time.monotonic() < end:
        guarded(target, make(random.Random(os.urandom(16))))
        count += 1
    print(f"{count} inputs")  # noqa: T201


def corpus(kind: str) -> list[Path]:
    """Return the inputs that are tried in every run."""
    return sorted((CORPUS / kind).iterdir())


def under_atheris(target: Callable[[bytes], None]) -> None:
    """Let atheris make the inputs, guided by coverage."""
    import sys

    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # optional

    atheris.instrument_all()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
