# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Read NBD URIs, as doc/uri.md of the NBD project defines them.

::

    nbd://[user@]host[:port]/export            nbds://…       TCP
    nbd+unix:///export?socket=PATH             nbds+unix://…  a Unix socket; PATH may begin with NUL (abstract)
    nbd+vsock://[cid[:port]]/export            nbds+vsock://… virtual machine to host (cid 2, the default) or back

A name is everything behind the first slash, percent-decoded: ``//disk`` names ``/disk``. A parameter that is not
known is refused, as that document asks; so is a password, which would be seen by all (users spec, A16).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import unquote_to_bytes

from vmdkit.errors import UsageError
from vmdkit.nbd.protocol import DEFAULT_PORT, MAX_STRING

_LONGEST_SOCKET: Final = 107  # bytes of a Unix socket's name on Linux
_LONGEST_URI: Final = 4 * MAX_STRING  # a name of 4096 bytes, all of them escaped, and room for the rest
_HOST_CID: Final = 2  # vsock(7), VMADDR_CID_HOST: the hypervisor, seen from a virtual machine
# What is a host name or address, and nothing that a resolver or a shell could take for something else (A17).
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%(?:25)?[A-Za-z0-9._-]{1,15})?")  # RFC 6874: %25 before a zone
_AUTHORITY: Final = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]*))?"
)
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TYPES: Final = ("x509", "psk")


class Transport(Enum):
    """What carries the bytes."""

    TCP = "tcp"
    UNIX = "unix"
    VSOCK = "vsock"


_SCHEMES: Final = {
    "nbd": (Transport.TCP, False),
    "nbds": (Transport.TCP, True),
    "nbd+unix": (Transport.UNIX, False),
    "nbds+unix": (Transport.UNIX, True),
    "nbd+vsock": (Transport.VSOCK, False),
    "nbds+vsock": (Transport.VSOCK, True),
}
_PARAMETERS: Final = (
    "socket", "tls-certificates", "tls-psk-file", "tls-username", "tls-hostname", "tls-type", "tls-verify-peer",
    "connections", "timeout", "reconnect",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NbdUri:
    """What an address says. ``host`` is a name, an address or a cid; ``path`` a Unix socket's; both empty if unused.

    ``parameters`` has what stands behind the question mark, ``socket`` excepted; each is known, none twice.
    """

    text: str
    transport: Transport
    tls: bool
    export: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    user: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)


def parse_uri(text: str) -> NbdUri:
    """Take an NBD URI apart. Raises UsageError for everything that is none, with the reason."""
    if len(text) > _LONGEST_URI:
        raise UsageError(f"an NBD address has at most {_LONGEST_URI} characters, this one has {len(text)}")
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.lower() not in _SCHEMES:
        raise _bad(text, f"no NBD address: known are {', '.join(f'{name}://' for name in _SCHEMES)}")
    if not text.isascii() or any(ord(char) <= 0x20 or ord(char) == 0x7F for char in text):
        raise _bad(text, "an address has no blanks, control or non-ASCII characters; write them as %XX")
    if _ESCAPE.search(rest.replace("%25", "")) or "#" in rest:
        raise _bad(text, "a percent sign or a '#' stands for itself as %25 or %23")
    transport, tls = _SCHEMES[scheme.lower()]
    hierarchy, _, query = rest.partition("?")
    authority, _, name = hierarchy.partition("/")
    parameters = _parameters(text, query)
    user, host, port = _authority(text, authority)
    path = parameters.pop("socket", "")
    host, port = _checked_place(text, transport, host, port, path)
    _check_tls(text, tls, parameters)
    return NbdUri(
        text, transport, tls, _decoded(text, name, "the export's name"), host, port, path, user, parameters
    )  # fmt: skip


def _bad(text: str, reason: str) -> UsageError:
    return UsageError(reason, path=text if len(text) < 200 else text[:200] + "…")


def _parameters(text: str, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key not in _PARAMETERS:
            raise _bad(text, f"no parameter is called {key!r}; known are {', '.join(_PARAMETERS)}")
        if key in found:
            raise _bad(text, f"{key} is said twice")
        found[key] = _decoded(text, value, key, nul=key == "socket")
    return found


def _decoded(text: str, part: str, what: str, *, nul: bool = False) -> str:
    data = unquote_to_bytes(part)
    if len(data) > MAX_STRING:
        raise _bad(text, f"{what} has {len(data)} bytes; {MAX_STRING} are allowed")
    if b"\0" in data[1 if nul else 0 :]:  # an abstract socket begins with one
        raise _bad(text, f"{what} holds a NUL")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _bad(text, f"{what} is not UTF-8") from error


def _authority(text: str, authority: str) -> tuple[str | None, str, int]:
    """Return user, host and port; -1 for a port that is not there."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _bad(text, f"{authority!r} is no [user@]host[:port]")
    user = None if match["user"] is None else _decoded(text, match["user"], "the user")
    if user is not None and (":" in match["user"] or not user):
        raise _bad(text, "a password in an address is seen by all; keys come from files (tls-psk-file)")
    if match["six"] is not None:
        if _IPV6.fullmatch(match["six"]) is None:
            raise _bad(text, f"{match['six']!r} is no IPv6 address")
        host = match["six"].replace("%25", "%")
    else:
        host = match["host"]
        if host and _HOST.fullmatch(host) is None:
            raise _bad(text, f"{host!r} is no host name")
    port = int(match["port"][:11]) if match["port"] else -1
    return user, host, port


def _checked_place(text: str, transport: Transport, host: str, port: int, path: str) -> tuple[str, int]:
    """Return host and port as they are to be used, where they fit the transport."""
    if transport is Transport.UNIX:
        if not path:
            raise _bad(text, "the socket is missing; write nbd+unix:///EXPORT?socket=PATH")
        if host or port != -1:
            raise _bad(text, f"a Unix socket has no host; did you mean nbd+unix:///{host}…?")
        if len(path.encode()) > _LONGEST_SOCKET:
            raise _bad(text, f"a socket's path has at most {_LONGEST_SOCKET} bytes")
        return "", 0
    if path:
        raise _bad(text, "socket= goes with nbd+unix:// and nbds+unix://")
    if transport is Transport.VSOCK:
        host = host or str(_HOST_CID)
        if not host.isdecimal() or not int(host[:11]) < 2**32 or not port < 2**32:
            raise _bad(text, f"{host}:{port} is no vsock address; two numbers below 2^32 were expected")
    elif not 0 < port < 2**16 and port != -1:
        raise _bad(text, f"{port} is no TCP port")
    return host or "localhost", DEFAULT_PORT if port == -1 else port


def _check_tls(text: str, tls: bool, parameters: dict[str, str]) -> None:
    said = [key for key in parameters if key.startswith("tls-")]
    if said and not tls:
        raise _bad(text, f"{said[0]} is said, but not TLS: that is nbds:// in the place of nbd://")
    if parameters.get("tls-verify-peer", "1") != "1":
        raise _bad(text, "a server that is not checked could be anybody; certificates are verified always")
    if parameters.get("tls-type", "x509") not in _TYPES:
        raise _bad(text, f"tls-type is one of {', '.join(_TYPES)}")
    if "tls-certificates" in parameters and "tls-psk-file" in parameters:
        raise _bad(text, "tls-certificates or tls-psk-file, not both")


def number(uri: NbdUri, key: str, least: float, most: float, *, whole: bool = False) -> float | None:
    """Return a parameter as a number between ``least`` and ``most``; None where it is not said."""
    if key not in uri.parameters:
        return None
    text = uri.parameters[key]
    if re.fullmatch(r"[0-9]{1,9}" if whole else r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text) is None or not (
        least <= float(text) <= most
    ):
        raise _bad(uri.text, f"{key} is {text!r}; a number from {least:g} to {most:g} was expected")
    return float(text)
