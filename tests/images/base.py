# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What every builder shares: named fields, parts (extent files), images, and the start of a new image.

Nothing here or beside it imports the package under test: builders pack bytes from the published format alone, so that
a reader and its oracle can disagree.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from images.text import NO_PARENT, Style, Text
from layout import DATA, HOLE, SECTOR, ZERO
from model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

PACKED: Final = "packed"  # further kinds of runs, beside layout's HOLE ("-"), ZERO ("0") and DATA ("A")


class Field(NamedTuple):
    """Where a structure lies: ``size`` bytes at ``offset`` of a file; tables have items of ``item`` bytes."""

    file: Path
    offset: int
    size: int
    item: int = 0


class Run(NamedTuple):
    """What one layer holds: kind is ``-``, ``0``, ``A`` or PACKED; ``at`` is the place in ``file`` of A."""

    offset: int
    length: int
    kind: str
    file: Path | None = None
    at: int = 0


@dataclass
class Part:
    """One extent file: its line in the descriptor, its structures, and its runs (offsets count in the extent)."""

    path: Path
    length: int
    fields: dict[str, Field] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    entries: dict[int, tuple[str, int]] = field(default_factory=dict)  # grain -> (table, index)
    grain: int = 0
    cover: int = 0  # bytes that one table maps


@dataclass
class Image:
    """A finished image. ``path`` is what a user opens, ``model`` what must be read."""

    path: Path
    model: Model
    subformat: str
    text: Text
    style: Style
    parts: list[Part]
    starts: list[int]  # where each part begins on the disk
    parent: Image | None = None
    noaccess: list[tuple[int, int]] = field(default_factory=list)  # (offset, length) that must not be readable
    gaps: list[Run] = field(default_factory=list)  # ZERO extents
    bad: list[tuple[int, int]] = field(default_factory=list)  # (offset, length) that damage has made unreadable
    embedded: bool = False

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.model.size

    @property
    def files(self) -> list[Path]:
        """Every file of this layer, the one to open first."""
        return list(dict.fromkeys([self.path, *(part.path for part in self.parts)]))

    @property
    def fields(self) -> dict[str, Field]:
        """All named structures; those of the second extent file begin with ``1/`` and so on."""
        named = {"text": Field(self.path, 0, 0)} if not self.embedded else {}
        for number, part in enumerate(self.parts):
            named.update({f"{number}/{name}" if number else name: place for name, place in part.fields.items()})
        return named

    def peek(self, name: str, index: int = 0) -> int:
        """Return the number in a field, or in an item of a table."""
        path, offset, size = self._place(name, index)
        with path.open("rb") as file:
            file.seek(offset)
            return int.from_bytes(file.read(size), "little")

    def poke(self, name: str, value: int | bytes, index: int = 0) -> None:
        """Overwrite a field, or an item of a table, with a number or with raw bytes."""
        path, offset, size = self._place(name, index)
        data = value.to_bytes(size, "little") if isinstance(value, int) else value
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def entry(self, grain: int, part: int = 0) -> tuple[str, int]:
        """Return ``(table, index)`` of the grain table entry of a grain, for peek and poke."""
        name, index = self.parts[part].entries[grain]
        return (f"{part}/{name}" if part else name), index

    def poke_entry(self, grain: int, value: int, *, both: bool = True) -> None:
        """Overwrite the grain table entry of a grain of the first extent, with ``both`` in the redundant table too."""
        name, index = self.entry(grain)
        self.poke(name, value, index)
        if both and "r" + name in self.fields:
            self.poke("r" + name, value, index)

    def poke_text(self, old: str, new: str) -> None:
        """Replace ``old`` in the descriptor's text."""
        data = self._text_bytes()
        if old.encode() not in data:
            raise ValueError(f"{old!r} is not in the descriptor")
        self.put_text(data.replace(old.encode(), new.encode()))

    def put_text(self, data: bytes) -> None:
        """Replace the descriptor's text."""
        if not self.embedded:
            self.path.write_bytes(data)
            return
        place = self.fields["descriptor"]
        if len(data) > place.size:
            raise ValueError("the text does not fit into the descriptor area")
        self.poke("descriptor", data.ljust(place.size, b"\0"))

    def _text_bytes(self) -> bytes:
        if not self.embedded:
            return self.path.read_bytes()
        place = self.fields["descriptor"]
        with place.file.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size).rstrip(b"\0")

    def _place(self, name: str, index: int) -> tuple[Path, int, int]:
        path, offset, size, item = self.fields[name]
        if item:
            if index * item >= size:
                raise IndexError(f"{name}[{index}]")
            return path, offset + index * item, item
        return path, offset, size

    def layers(self) -> Iterator[Image]:
        """Yield this image, its parent, ..."""
        image: Image | None = self
        while image is not None:
            yield image
            image = image.parent

    def runs(self) -> list[Run]:
        """Return what this layer holds, by place on the disk."""
        out = [*self.gaps]
        for start, part in zip(self.starts, self.parts, strict=True):
            out += [run._replace(offset=run.offset + start) for run in part.runs]
        return sorted(out, key=lambda run: run.offset)

    def resolved(self) -> list[tuple[Run, int]]:
        """Return the runs of the disk with the depth of the layer that holds each; holes are those of no layer."""
        out: list[tuple[Run, int]] = []
        below = self.parent.resolved() if self.parent is not None else None
        for run in self.runs():
            if run.kind != HOLE or below is None:
                out.append((run, 0))
                continue
            out += [(_clip(under, run), depth + 1) for under, depth in below if _overlap(under, run)]
        return out

    def boundaries(self) -> list[int]:
        """Return every offset where a run, an extent file, a table or (near those) a grain begins, in any layer."""
        edges = {0, self.size}
        for image in self.layers():
            edges |= {run.offset for run in image.runs()}
            for start, part in zip(image.starts, image.parts, strict=True):
                edges |= {start, start + part.length}
                edges |= set(range(start, start + part.length, part.cover) if part.cover else ())
                if part.grain:
                    near = [start + (edge - start) // part.grain * part.grain for edge in edges]
                    edges |= {at + shift for at in near for shift in (0, part.grain)}
        return sorted(edge for edge in edges if 0 <= edge <= self.size)

    def copy_to(self, directory: Path) -> Image:
        """Return the same image in another directory; its parents stay where they are."""
        directory.mkdir(parents=True, exist_ok=True)
        moved = {path: directory / path.name for path in self.files}
        for old, new in moved.items():
            shutil.copyfile(old, new)
        parts = [
            Part(
                moved[part.path],
                part.length,
                {name: place._replace(file=moved[place.file]) for name, place in part.fields.items()},
                [run._replace(file=moved.get(run.file) if run.file else None) for run in part.runs],
                dict(part.entries),
                part.grain,
                part.cover,
            )
            for part in self.parts
        ]
        return replace(self, path=moved[self.path], model=self.model.copy(), parts=parts, bad=list(self.bad))


def _overlap(one: Run, other: Run) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length


def _clip(run: Run, to: Run) -> Run:
    start = max(run.offset, to.offset)
    end = min(run.offset + run.length, to.offset + to.length)
    return run._replace(offset=start, length=end - start, at=run.at + start - run.offset if run.kind == DATA else 0)


class Common(TypedDict, total=False):
    """What every builder takes besides its own knobs."""

    name: str  # of the file to open, without .vmdk
    parent: Image
    hint: str  # how the parent is named: see HINTS
    style: Style
    cid: int
    parent_cid: int
    version: str
    ctk: str
    extra: tuple[str, ...]
    ddb: tuple[tuple[str, str], ...]


HINTS: Final = ("relative", "absolute", "backslash", "basename", "windows")


def parent_hint(kind: str, child: Path, parent: Path) -> str:
    """Return the parentFileNameHint; any other ``kind`` is the hint itself."""
    relative = os.path.relpath(parent, child.parent)
    match kind:
        case "relative":
            return relative
        case "absolute":
            return str(parent.absolute())
        case "backslash":
            return ".\\" + relative.replace("/", "\\")
        case "basename":
            return f"/vmfs/volumes/5f0c1f2e-no-such-volume/machine/{parent.name}"
        case "windows":
            return f"C:\\Virtual Machines\\machine\\{parent.name}"
    return kind


class Draft:
    """An image that has a model and the facts of its descriptor, but no files yet."""

    def __init__(self, directory: Path, what: str | Model, common: Common) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.parent = common.get("parent")
        over = self.parent.model if self.parent else None
        self.model = what if isinstance(what, Model) else Model(what, over)
        self.name = common.get("name", "disk")
        self.path = directory / f"{self.name}.vmdk"
        self.style = common.get("style", Style())
        self._common = common

    def text(self, create_type: str, lines: tuple[str, ...], ddb: tuple[tuple[str, str], ...] | None = None) -> Text:
        """Return the descriptor."""
        common = self._common
        up = NO_PARENT if self.parent is None else self.parent.text.cid
        text = Text(
            create_type=create_type,
            lines=lines,
            cid=common.get("cid", zlib.crc32(f"{self.name} {up}".encode()) & 0x7FFFFFFF),
            parent_cid=common.get("parent_cid", up),
            version=common.get("version", "1"),
            ctk=common.get("ctk"),
            extra=common.get("extra", ()),
        )
        if "ddb" in common:
            text = text.but(ddb=common["ddb"])
        elif ddb is not None:
            text = text.but(ddb=ddb)
        if self.parent is not None:
            text = text.but(hint=parent_hint(common.get("hint", "relative"), self.path, self.parent.path))
        return text

    def image(self, text: Text, parts: list[Part], starts: list[int], *, embedded: bool = False) -> Image:
        """Return the finished image."""
        return Image(
            self.path, self.model, text.create_type, text, self.style, parts, starts, self.parent, embedded=embedded
        )


class Sparse:
    """A new file that is written at places; what is never written stays a hole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")

    def put(self, data: bytes, offset: int) -> None:
        self._file.seek(offset)
        self._file.write(data)

    def finish(self, size: int) -> None:
        self._file.truncate(size)
        self._file.close()


def named(path: Path, places: Mapping[str, tuple[int, int]], prefix: str = "header", base: int = 0) -> dict[str, Field]:
    """Return Fields from a table of ``name: (offset, size)``."""
    return {f"{prefix}.{name}": Field(path, base + offset, size) for name, (offset, size) in places.items()}


def up(value: int, unit: int) -> int:
    """Round up."""
    return -(-value // unit) * unit


def sectors(length: int) -> int:
    """Return whole sectors."""
    return up(length, SECTOR) // SECTOR


class Cell(NamedTuple):
    """A grain that needs an entry: its number and place in the extent, and whether it is DATA or ZERO."""

    number: int
    offset: int
    length: int  # less than a grain at the end of the extent
    kind: str


def cells(model: Model, grain: int, length: int, start: int, *, zeros: str) -> list[Cell]:
    """Return the grains of a part of the disk that need an entry.

    ``zeros`` says what becomes of grains of zeros: DATA (stored), ZERO (marked) or HOLE (left out, without a parent).
    """
    if model.parent is not None and zeros == HOLE:
        zeros = DATA
    out = []
    for run in model.grains(grain, length, start):
        kind = zeros if run.what == ZERO else run.what
        if kind == HOLE:
            continue
        for offset in range(run.offset, run.offset + run.length, grain):
            out.append(Cell(offset // grain, offset, min(grain, length - offset), kind))
    return out


def ordered(stored: list[Cell], order: str) -> list[Cell]:
    """Return cells in the order of the file: forward, reversed or shuffled (the same each time)."""
    if order == "shuffled":
        return random.Random(len(stored)).sample(stored, len(stored))
    return stored[::-1] if order == "reversed" else list(stored)


def runs_of(stored: Mapping[Cell, int], length: int, path: Path, *, packed: bool = False) -> list[Run]:
    """Return the joined runs of an extent from its cells and their places in the file."""
    return join(_spread(stored, length, path, packed=packed))


def join(pieces: Iterable[Run]) -> list[Run]:
    """Join neighbours that continue one another, drop the empty."""
    runs: list[Run] = []
    for run in pieces:
        last = runs[-1] if runs else None
        if run.length and last and last.kind == run.kind and (run.kind != DATA or last.at + last.length == run.at):
            runs[-1] = last._replace(length=last.length + run.length)
        elif run.length:
            runs.append(run)
    return runs


def _spread(stored: Mapping[Cell, int], length: int, path: Path, *, packed: bool) -> Iterator[Run]:

    end = 0
    for cell, at in sorted(stored.items()):
        yield Run(end, cell.offset - end, HOLE)
        kind = PACKED if packed and cell.kind == DATA else cell.kind
        yield Run(cell.offset, cell.length, kind, path if kind != ZERO else None, at if kind == DATA else 0)
        end = cell.offset + cell.length
    yield Run(end, length - end, HOLE)
