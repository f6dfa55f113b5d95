# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Read a machine from YAML: a strict schema, and messages that name the line.

::

    name: box                       disks:                        product:
    cpus: 2                           - root.vmdk                   name: Box
    memory: 2 GiB                     - source: data.raw            vendor: Makers
    os: debian12                        raw: true                   version: "1.2"
    firmware: efi                     - size: 10 GiB              eula: Do no harm.
    controller: pvscsi              nics:                         properties:
    targets: [esxi8, workstation]     - network: VM Network         - key: ip
                                        type: vmxnet3                 label: Address

PyYAML's safe loader, and not all of it: no anchors, no tags. The one module that needs the package (extra ``ova``).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vmdkit.errors import UnsupportedError, UsageError
from vmdkit.ova.machine import DiskSpec, Machine, NicSpec, PropertySpec
from vmdkit.ova.targets import parse_targets
from vmdkit.units import MIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmdkit.ova.targets import Target

_LARGEST = MIB
_MOST_DEPTH = 16
_VMX = re.compile(r"(?:vmx-)?(\d{1,2})", re.IGNORECASE)


class Node:
    """A part of the text: a scalar, a list or a mapping, and the line it stands in."""

    def __init__(self, path: str, node: Any) -> None:
        self.path = path
        self.line = node.start_mark.line + 1
        self._node = node
        self._kind = type(node).__name__

    def wrong(self, text: str) -> UsageError:
        """Return an error that names this line."""
        return UsageError(f"line {self.line}: {text}", path=self.path)

    def text(self, key: str) -> str:
        """Return a text, or a number as it is written."""
        if self._kind != "ScalarNode" or self._node.tag.endswith(":null"):
            raise self.wrong(f"{key}: a text is due")
        return str(self._node.value)

    def number(self, key: str) -> int:
        """Return a whole number."""
        text = self.text(key)
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise self.wrong(f"{key}: {text[:40]!r} is no whole number")
        return int(text)

    def size(self, key: str) -> int:
        """Return a size in bytes: a number, or one with a unit."""
        try:
            return parse_size(self.text(key))
        except UsageError as error:
            raise self.wrong(f"{key}: {error.message}") from error

    def flag(self, key: str) -> bool:
        """Return true or false."""
        text = self.text(key).lower()
        if self._kind != "ScalarNode" or text not in ("true", "false", "yes", "no", "on", "off"):
            raise self.wrong(f"{key}: true or false is due")
        return text in ("true", "yes", "on")

    def items(self, key: str) -> list[Node]:
        """Return the items of a list."""
        if self._kind != "SequenceNode":
            raise self.wrong(f"{key}: a list is due")
        return [Node(self.path, item) for item in self._node.value]

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return self._kind == "MappingNode"

    def keys(self, what: str, known: Mapping[str, object]) -> dict[str, Node]:
        """Return what stands under each key; all must be known, and none may stand twice."""
        if not self.is_mapping:
            raise self.wrong(f"{what}: keys and values are due")
        found: dict[str, Node] = {}
        for key_node, value_node in self._node.value:
            key, here = str(key_node.value), Node(self.path, key_node)
            if key not in known:
                raise here.wrong(f"{what} has no key {key[:60]!r}; there are {', '.join(known)}")
            if key in found:
                raise here.wrong(f"{key} stands twice")
            found[key] = Node(self.path, value_node)
        return found


def read_spec(path: str) -> tuple[Machine, tuple[Target, ...]]:
    """Return the machine that a YAML file describes, and the targets it names.

    Names of files are taken from the directory of the YAML file. Raises UsageError with the line, UnsupportedError
    where PyYAML is missing, OSError.
    """
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UsageError(f"it is larger than {_LARGEST} bytes", path=path)
    root = _compose(data, path)
    machine = Machine()
    targets: list[str] = []
    for key, node in root.keys("a machine", {**_FIELDS, **_OTHERS}).items():
        if key in _FIELDS:
            setattr(machine, key, _FIELDS[key](node, key))
        elif key == "targets":
            targets += _targets(node)
        elif key == "disks":
            machine.disks = [_disk(item) for item in node.items(key)]
        else:
            _OTHERS[key](machine, node)
    return machine, parse_targets(targets)


def parse_hardware(text: str) -> int:
    """Return the number in ``vmx-13`` or ``13``. Raises UsageError."""
    match = _VMX.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"hardware {text[:40]!r}: vmx-13, for example, is due")
    return int(match[1])


def _compose(data: bytes, path: str) -> Node:
    try:
        import yaml
    except ImportError as error:
        raise UnsupportedError(
            "machines in YAML need the package PyYAML; python3 -m pip install 'vmdkit[ova]' adds it", path=path
        ) from error
    try:
        depth = 0
        for event in yaml.parse(data, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            anchored = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None
            if anchored or depth > _MOST_DEPTH or getattr(event, "tag", None) is not None:
                line = event.start_mark.line + 1
                raise UsageError(f"line {line}: anchors, tags and deep nesting are not taken", path=path)
        node = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{where}no YAML: {what}", path=path) from error
    if node is None:
        raise UsageError("it is empty", path=path)
    return Node(path, node)


def _targets(node: Node) -> list[str]:
    words = node.text("targets").split(",") if not _is_list(node) else [one.text("targets") for one in node.items("")]
    try:
        parse_targets(words)
    except UsageError as error:
        raise node.wrong(error.message) from error
    return words


def _is_list(node: Node) -> bool:
    try:
        node.items("")
    except UsageError:
        return False
    return True


def _lower(node: Node, key: str) -> str:
    return node.text(key).lower()


def _hardware(node: Node, key: str) -> int:
    try:
        return parse_hardware(node.text(key))
    except UsageError as error:
        raise node.wrong(error.message) from error


_FIELDS: Final[dict[str, Callable[[Node, str], Any]]] = {
    "name": Node.text,
    "cpus": Node.number,
    "cores": Node.number,
    "memory": Node.size,
    "os": Node.text,
    "firmware": _lower,
    "secure_boot": Node.flag,
    "controller": _lower,
    "hardware": _hardware,
    "cdrom": Node.flag,
    "annotation": Node.text,
}


def _disk(node: Node) -> DiskSpec:
    if not node.is_mapping:
        return DiskSpec(source=_path(node, node.text("a disk")))
    given = node.keys("a disk", dict.fromkeys(("source", "size", "file", "controller", "raw")))
    return DiskSpec(
        source=_path(node, given["source"].text("source")) if "source" in given else "",
        size=given["size"].size("size") if "size" in given else 0,
        file=given["file"].text("file") if "file" in given else "",
        controller=given["controller"].text("controller").lower() if "controller" in given else "",
        raw=given["raw"].flag("raw") if "raw" in given else False,
    )


def _path(node: Node, location: str) -> str:
    """Return a path seen from the YAML file; an address as it is."""
    return location if "://" in location else os.path.join(os.path.dirname(node.path), location)


def _nics(machine: Machine, node: Node) -> None:
    for item in node.items("nics"):
        if not item.is_mapping:
            machine.nics.append(NicSpec(item.text("a network")))
            continue
        given = item.keys("an adapter", dict.fromkeys(("network", "type")))
        default = NicSpec()
        machine.nics.append(
            NicSpec(
                given["network"].text("network") if "network" in given else default.network,
                given["type"].text("type").lower() if "type" in given else default.type,
            )
        )


def _product(machine: Machine, node: Node) -> None:
    names = {"name": "product", "vendor": "vendor", "version": "version", "url": "product_url"}
    for key, value in node.keys("product", names).items():
        setattr(machine, names[key], value.text(key))


def _eula(machine: Machine, node: Node) -> None:
    if not node.is_mapping:
        machine.eulas.append(node.text("eula"))
        return
    name = node.keys("eula", {"file": None})
    if "file" not in name:
        raise node.wrong("eula: a text, or file: NAME, is due")
    with open(_path(node, name["file"].text("file")), encoding="utf-8", errors="strict") as file:
        machine.eulas.append(file.read(_LARGEST))


def _properties(machine: Machine, node: Node) -> None:
    known = dict.fromkeys(("key", "type", "default", "label", "description", "configurable", "password"))
    for item in node.items("properties"):
        given = item.keys("a property", known)
        if "key" not in given:
            raise item.wrong("a property needs a key")
        texts = {name: given[name].text(name) for name in ("type", "default", "label", "description") if name in given}
        flags = {name: given[name].flag(name) for name in ("configurable", "password") if name in given}
        machine.properties.append(replace(PropertySpec(given["key"].text("key")), **texts, **flags))  # type: ignore[arg-type]


def _nothing(machine: Machine, node: Node) -> None:
    """Have been read elsewhere."""


_OTHERS: Final[dict[str, Callable[[Machine, Node], None]]] = {
    "disks": _nothing,
    "nics": _nics,
    "targets": _nothing,
    "product": _product,
    "eula": _eula,
    "properties": _properties,
}
