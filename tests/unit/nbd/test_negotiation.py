# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The handshake as pure bytes: whole, byte by byte, and across STARTTLS."""

from __future__ import annotations

import struct

import pytest

import nbdwire as n
from vmdkit.device import BlockSize
from vmdkit.nbd.export import Export, Exports
from vmdkit.nbd.negotiation import Negotiation, State, TlsMode
from vmdkit.nbd.protocol import ExportFlag, Mode
from vmdkit.storage.memory import MemoryDevice
from vmdkit.units import MIB

FLAGS = struct.pack(">I", 3)
REPLY = struct.Struct(">QIII")


def exports() -> Exports:
    """Two exports: the first, and one with odd block sizes."""
    first = Export(MemoryDevice(MIB), "first", "the first")
    return Exports([first, Export(MemoryDevice(MIB, block_size=BlockSize(512, 4096, 65536)), "second", "", False)])


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Split what the server says into (option, type, data)."""
    found, at = [], 0
    while at < len(data):
        magic, number, kind, length = REPLY.unpack_from(data, at)
        assert magic == 0x3E889045565A9
        at += REPLY.size + length
        found.append((number, kind, data[at - length : at]))
    return found


SCRIPT = (
    FLAGS
    + option(n.STRUCTURED)
    + option(n.LIST)
    + option(n.LIST_META, n.meta("second", []))
    + option(n.SET_META, n.meta("second", ["base:allocation", "qemu:none"]))
    + option(99, b"??")
    + option(n.INFO, n.go("first", [1, 2, 3]))
    + option(n.GO, n.go("second", [3]))
)
REQUEST = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_any_cut_says_the_same(step: int) -> None:
    machine = Negotiation(exports())
    assert machine.greeting() == b"NBDMAGICIHAVEOPT\0\3"
    said = bytearray()
    for at in range(0, len(SCRIPT), step):
        assert machine.state in (State.FLAGS, State.OPTIONS)
        said += machine.feed(SCRIPT[at : at + step])
    assert machine.feed(REQUEST) == b""
    assert machine.state is State.TRANSMISSION
    assert machine.leftover() == REQUEST
    assert machine.leftover() == b""
    session = machine.session
    assert session is not None
    assert (session.export.name, session.mode, session.minimum, session.maximum) == (
        "second", Mode.STRUCTURED, 512, 65536,
    )  # fmt: skip
    assert session.contexts == {1: "base:allocation"}
    size = struct.pack(">HIII", 3, 512, 4096, 65536)
    flags = ExportFlag(0xDED)
    assert flags == session.flags | ExportFlag.SEND_FAST_ZERO
    second = struct.pack(">HQH", 0, MIB, session.flags)
    first_flags = Export(MemoryDevice(1)).flags(Mode.STRUCTURED)
    assert replies(bytes(said)) == [
        (n.STRUCTURED, n.ACK, b""),
        (n.LIST, n.SERVER, struct.pack(">I", 5) + b"firstthe first"),
        (n.LIST, n.SERVER, struct.pack(">I", 6) + b"second"),
        (n.LIST, n.ACK, b""),
        (n.LIST_META, n.META, bytes(4) + b"base:allocation"),
        (n.LIST_META, n.ACK, b""),
        (n.SET_META, n.META, struct.pack(">I", 1) + b"base:allocation"),
        (n.SET_META, n.ACK, b""),
        (99, n.UNSUP, b"option 99 is not known here"),
        (n.INFO, n.INFO_REPLY, struct.pack(">HQH", 0, MIB, first_flags)),
        (n.INFO, n.INFO_REPLY, b"\0\1first"),
        (n.INFO, n.INFO_REPLY, b"\0\2the first"),
        (n.INFO, n.INFO_REPLY, struct.pack(">HIII", 3, 1, 4096, 32 * MIB)),
        (n.INFO, n.ACK, b""),
        (n.GO, n.INFO_REPLY, second),
        (n.GO, n.INFO_REPLY, size),
        (n.GO, n.ACK, b""),
    ]


def test_empty_name_is_the_first_export() -> None:
    machine = Negotiation(exports())
    machine.feed(FLAGS + option(n.GO, n.go("")))
    assert machine.session is not None
    assert machine.session.export.name == "first"


@pytest.mark.parametrize(("flags", "padding"), [(1, 124), (3, 0)])
def test_export_name(flags: int, padding: int) -> None:
    machine = Negotiation(exports())
    said = machine.feed(struct.pack(">I", flags) + option(n.EXPORT_NAME, b"second"))
    assert len(said) == 10 + padding
    assert said[:8] == struct.pack(">Q", MIB)
    assert machine.state is State.TRANSMISSION


def test_contexts_of_another_export_do_not_count() -> None:
    machine = Negotiation(exports())
    base = n.meta("first", ["base:allocation"])
    machine.feed(FLAGS + option(n.STRUCTURED) + option(n.SET_META, base) + option(n.GO, n.go("second")))
    assert machine.session is not None
    assert machine.session.contexts == {}


def test_extended_headers_offer_filters() -> None:
    machine = Negotiation(exports())
    base = n.meta("first", ["base:allocation"])
    machine.feed(FLAGS + option(n.EXTENDED) + option(n.SET_META, base) + option(n.GO, n.go("first")))
    assert machine.session is not None
    assert machine.session.mode is Mode.EXTENDED
    assert machine.session.flags & ExportFlag.BLOCK_STATUS_PAYLOAD


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [n.LIST, n.INFO, n.GO, n.STRUCTURED, n.EXTENDED, n.SET_META, 1234])
def test_tls_required_refuses_everything_else(number: int) -> None:
    machine = Negotiation(exports(), TlsMode.REQUIRE)
    ((_, kind, _),) = replies(machine.feed(FLAGS + option(number, n.go("") if number == n.GO else b"")))
    assert kind == n.TLS_REQD
    assert machine.state is State.OPTIONS


def test_tls_required_allows_abort() -> None:
    machine = Negotiation(exports(), TlsMode.REQUIRE)
    assert replies(machine.feed(FLAGS + option(n.ABORT))) == [(n.ABORT, n.ACK, b"")]


def test_tls_required_has_no_answer_to_export_name() -> None:
    machine = Negotiation(exports(), TlsMode.REQUIRE)
    assert machine.feed(FLAGS + option(n.EXPORT_NAME)) == b""
    assert machine.state is State.CLOSED


def test_plaintext_behind_starttls_is_never_read() -> None:
    machine = Negotiation(exports(), TlsMode.REQUIRE)
    machine.feed(FLAGS + option(n.STARTTLS) + option(n.LIST))
    assert machine.state is State.CLOSED
    assert machine.session is None


def test_starttls_forgets_what_was_agreed() -> None:
    machine = Negotiation(exports(), TlsMode.ON)
    base = option(n.SET_META, n.meta("first", ["base:allocation"]))
    machine.feed(FLAGS + option(n.STRUCTURED) + base)
    assert replies(machine.feed(option(n.STARTTLS))) == [(n.STARTTLS, n.ACK, b"")]
    assert machine.state is State.TLS
    assert machine.feed(b"anything") == b""  # not parsed in this state
    machine._inbox.clear()
    machine.restarted()
    assert replies(machine.feed(option(n.STARTTLS)))[0][1] == n.INVALID
    machine.feed(option(n.GO, n.go("first")))
    assert machine.session is not None
    assert (machine.session.mode, machine.session.contexts) == (Mode.SIMPLE, {})
