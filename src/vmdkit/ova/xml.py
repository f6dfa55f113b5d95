# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""XML as a tree that remembers its lines and prefixes, and can be written again as it was.

Parsed by expat, which is told to stop at a document type declaration: without one there are no entities, so nothing
can be expanded or fetched (users spec, A20). Size, depth, elements and attributes are bounded.

The usual trees forget prefixes and lines; importers of OVF are known to look at the former, and users need the latter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from vmdkit.errors import FormatError, UsageError
from vmdkit.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST: Final = 8 * MIB  # bytes of text; an appliance with ten licence texts has 1 MiB
_DEEPEST = 64  # elements in one another; OVF needs ten
_MOST_ELEMENTS = 50_000
_MOST_ATTRIBUTES = 256  # of one element
_XML = "http://www.w3.org/XML/1998/namespace"
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0, escaped or not
_ATTRIBUTE_ESCAPES = {**_ESCAPES, '"': "&quot;", "\n": "&#10;", "\t": "&#9;"}


class Markup(str):
    """A comment or processing instruction, as it stands in the text."""

    __slots__ = ()


@dataclass(slots=True)
class Element:
    """An element: its name as written, what that means, and what is in it.

    ``children`` are elements, text (``str``) and ``Markup``, in their order; ``line`` counts from 1, 0 means new.
    """

    qname: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)
    line: int = 0
    namespace: str = ""
    prefixes: dict[str, str] = field(default_factory=dict)  # prefix -> namespace, in force here

    @property
    def local(self) -> str:
        """The name without its prefix."""
        return self.qname.rpartition(":")[2]

    def get(self, name: str, namespace: str | None = None) -> str | None:
        """Return an attribute by its name without prefix; one in ``namespace`` wins over one without any."""
        plain = None
        for key, value in self.attributes.items():
            prefix, _, local = key.rpartition(":")
            if local != name or key.startswith("xmlns"):
                continue
            if not prefix:
                plain = value
            elif namespace is None or self.prefixes.get(prefix) == namespace:
                return value
        return plain

    def set(self, name: str, value: str | None, namespace: str) -> None:
        """Set an attribute, under the key it has or a prefix of ``namespace``; None removes it."""
        for key in list(self.attributes):
            prefix, _, local = key.rpartition(":")
            if local == name and not key.startswith("xmlns") and self.prefixes.get(prefix) in (namespace, None):
                if value is None:
                    del self.attributes[key]
                else:
                    self.attributes[key] = value
                return
        if value is not None:
            known = next((key for key, uri in self.prefixes.items() if key and uri == namespace), "")
            self.attributes[f"{known}:{name}" if known else name] = value

    def elements(self, *locals_: str) -> Iterator[Element]:
        """Yield the elements in this one, all or those of the given names."""
        for child in self.children:
            if isinstance(child, Element) and (not locals_ or child.local in locals_):
                yield child

    def first(self, local: str) -> Element | None:
        """Return the first element of that name, None where there is none."""
        return next(self.elements(local), None)

    def walk(self) -> Iterator[Element]:
        """Yield this element and all below it, in document order."""
        yield self
        for child in self.elements():
            yield from child.walk()

    @property
    def text(self) -> str:
        """The text directly in this element, without blanks around it."""
        return "".join(
            child for child in self.children if isinstance(child, str) and not isinstance(child, Markup)
        ).strip()

    @text.setter
    def text(self, value: str) -> None:
        self.children = [child for child in self.children if isinstance(child, Element)]
        self.children.insert(0, value)

    def value(self, local: str) -> str | None:
        """Return the text of the first element of that name, None where there is none."""
        found = self.first(local)
        return None if found is None else found.text

    def remove(self, child: Element) -> None:
        """Take an element out, with the blanks before it."""
        at = next(index for index, other in enumerate(self.children) if other is child)
        del self.children[at]
        before = self.children[at - 1] if at else None
        if isinstance(before, str) and not isinstance(before, Markup) and not before.strip():
            del self.children[at - 1]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Builder:
    def __init__(self, path: str) -> None:
        self.path = path
        self.root: Element | None = None
        self.before: list[Markup] = []
        self._open: list[Element] = []
        self._count = 0
        self._parser = expat.ParserCreate()
        self._parser.ordered_attributes = True
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._data
        self._parser.CommentHandler = self._comment
        self._parser.ProcessingInstructionHandler = self._instruction
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.EntityDeclHandler = self._doctype

    def parse(self, data: bytes) -> Element:
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            text = expat.ErrorString(error.code)
            raise FormatError(f"no well-formed XML: {text}, in line {error.lineno}", path=self.path) from error
        except (LookupError, ValueError) as error:  # an encoding that Python does not know, or that is no encoding
            raise FormatError(f"no XML that can be read: {error}", path=self.path) from error
        if self.root is None:
            raise FormatError("there is no element in it", path=self.path)
        return self.root

    def _wrong(self, text: str) -> FormatError:
        return FormatError(f"{text}, in line {self._parser.CurrentLineNumber}", path=self.path)

    def _doctype(self, *_: object) -> None:
        raise self._wrong("a document type declaration: with it come entities, which are not read")

    def _start(self, name: str, pairs: list[str]) -> None:
        self._count += 1
        if len(self._open) >= _DEEPEST or self._count > _MOST_ELEMENTS or len(pairs) > 2 * _MOST_ATTRIBUTES:
            raise self._wrong(
                f"more than {_DEEPEST} elements in one another, {_MOST_ELEMENTS} in all, or {_MOST_ATTRIBUTES} "
                "attributes of one"
            )
        attributes = dict(zip(pairs[::2], pairs[1::2], strict=True))
        prefixes = self._open[-1].prefixes if self._open else {"xml": _XML}
        new = {
            key[6:] if key != "xmlns" else "": uri
            for key, uri in attributes.items()
            if key == "xmlns" or key.startswith("xmlns:")
        }
        if new:
            prefixes = {**prefixes, **new}
        for key in (name, *attributes):
            prefix = key.rpartition(":")[0]
            if prefix and prefix not in ("xmlns", *prefixes):
                raise self._wrong(f"the prefix {prefix[:80]!r} is declared nowhere")
        element = Element(
            name, attributes, [], self._parser.CurrentLineNumber, prefixes.get(name.rpartition(":")[0], ""), prefixes
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _data(self, text: str) -> None:
        if self._open:
            self._open[-1].children.append(text)

    def _comment(self, text: str) -> None:
        self._keep(Markup(f"<!--{text}-->"))

    def _instruction(self, target: str, text: str) -> None:
        self._keep(Markup(f"<?{target} {text}?>"))

    def _keep(self, markup: Markup) -> None:
        if self._open:
            self._open[-1].children.append(markup)


def parse(data: bytes | bytearray, path: str) -> Element:
    """Return the root of an XML text. Raises FormatError, with the line, for what is none or is not allowed."""
    if len(data) > LARGEST:
        raise FormatError(f"it has {len(data)} bytes; a descriptor has at most {LARGEST}", path=path)
    return _Builder(path).parse(bytes(data))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _escaped(text: str, escapes: dict[str, str]) -> str:
    return "".join(escapes.get(char, char) for char in text) if any(char in escapes for char in text) else text


def _write(element: Element, parts: list[str]) -> None:
    parts.append(f"<{element.qname}")
    for key, value in element.attributes.items():
        parts.append(f' {key}="{_escaped(value, _ATTRIBUTE_ESCAPES)}"')
    if not element.children:
        parts.append("/>")
        return
    parts.append(">")
    for child in element.children:
        if isinstance(child, Element):
            _write(child, parts)
        elif isinstance(child, Markup):
            parts.append(child)
        else:
            parts.append(_escaped(child, _ESCAPES))
    parts.append(f"</{element.qname}>")


def render(root: Element) -> bytes:
    """Return the tree as text in UTF-8; what was parsed and not changed comes out with the same meaning.

    Raises UsageError for a character that XML cannot hold.
    """
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    _write(root, parts)
    parts.append("\n")
    text = "".join(parts)
    wrong = _IMPOSSIBLE.search(text)
    if wrong is not None:
        raise UsageError(
            f"the character {wrong[0]!r} cannot stand in XML: {text[max(0, wrong.start() - 40) : wrong.start()]!r}"
        )
    return text.encode("utf-8")


def indent(element: Element, depth: int = 0) -> None:
    """Put line breaks into a new tree: two blanks a step; elements that hold text keep it as it is."""
    inner = list(element.elements())
    if not inner:
        return
    children: list[Element | str] = []
    for child in inner:
        indent(child, depth + 1)
        children += ["\n" + "  " * (depth + 1), child]
    element.children = [*children, "\n" + "  " * depth]
