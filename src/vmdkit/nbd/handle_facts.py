# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a handle knows of its export."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING
from urllib.parse import quote

from vmdkit.nbd import handle_names as n
from vmdkit.nbd.client_address import ActivatedAddress, TcpAddress, UnixAddress, VsockAddress
from vmdkit.nbd.handle_names import Trouble
from vmdkit.nbd.handle_options import Choosing
from vmdkit.nbd.handle_state import KNOWN, ONCE, call
from vmdkit.nbd.protocol import DEFAULT_PORT, ExportFlag, Mode

if TYPE_CHECKING:
    from vmdkit.nbd.client_handshake import Facts


class Knowing(Choosing):
    """The calls that ask the handle, not the server."""

    @call(*KNOWN)
    def get_protocol(self) -> str:
        """Return which handshake was spoken."""
        return self._protocol

    @call(*KNOWN)
    def get_structured_replies_negotiated(self) -> bool:
        """Return whether replies come in chunks."""
        return self._mode is not Mode.SIMPLE

    @call(*KNOWN)
    def get_extended_headers_negotiated(self) -> bool:
        """Return whether lengths have 64 bits."""
        return self._mode is Mode.EXTENDED

    @call(*KNOWN)
    def get_tls_negotiated(self) -> bool:
        """Return whether the connection is secure."""
        return self._secure

    @call(*KNOWN)
    def get_size(self) -> int:
        """Return the bytes of the export."""
        if self._facts is None:
            raise Trouble(
                "server has not returned export size, you need to connect to the server first", errno.EINVAL
            )  # fmt: skip
        return self._facts.size

    def _told(self) -> Facts:
        if self._facts is None:
            raise Trouble(
                "server has not returned export flags, you need to connect to the server first", errno.EINVAL
            )  # fmt: skip
        return self._facts

    def _has(self, flag: ExportFlag) -> bool:
        return bool(self._told().flags & flag)

    @call(*KNOWN)
    def is_read_only(self) -> bool:
        """Return whether nobody may write."""
        return self._has(ExportFlag.READ_ONLY)

    @call(*KNOWN)
    def is_rotational(self) -> bool:
        """Return whether order matters, as on a turning disk."""
        return self._has(ExportFlag.ROTATIONAL)

    @call(*KNOWN)
    def can_flush(self) -> bool:
        """Return whether flush is offered."""
        return self._has(ExportFlag.SEND_FLUSH)

    @call(*KNOWN)
    def can_fua(self) -> bool:
        """Return whether CMD_FLAG_FUA is offered."""
        return self._has(ExportFlag.SEND_FUA)

    @call(*KNOWN)
    def can_trim(self) -> bool:
        """Return whether trim is offered."""
        return self._has(ExportFlag.SEND_TRIM)

    @call(*KNOWN)
    def can_zero(self) -> bool:
        """Return whether zero is offered."""
        return self._has(ExportFlag.SEND_WRITE_ZEROES)

    @call(*KNOWN)
    def can_fast_zero(self) -> bool:
        """Return whether CMD_FLAG_FAST_ZERO is offered."""
        return self._has(ExportFlag.SEND_FAST_ZERO)

    @call(*KNOWN)
    def can_df(self) -> bool:
        """Return whether CMD_FLAG_DF is offered."""
        return self._has(ExportFlag.SEND_DF)

    @call(*KNOWN)
    def can_cache(self) -> bool:
        """Return whether cache is offered."""
        return self._has(ExportFlag.SEND_CACHE)

    @call(*KNOWN)
    def can_multi_conn(self) -> bool:
        """Return whether several connections may be used as one."""
        return self._has(ExportFlag.CAN_MULTI_CONN)

    @call(*KNOWN)
    def can_meta_context(self, metacontext: str) -> bool:
        """Return whether the server has a context that was asked for."""
        self._told()
        return metacontext in self._contexts.values()

    @call(*KNOWN)
    def get_block_size(self, size_type: int) -> int:
        """Return SIZE_MINIMUM, SIZE_PREFERRED or SIZE_MAXIMUM in bytes; 0 where the server did not tell."""
        if not 0 <= size_type <= n.SIZE_MAXIMUM:
            raise Trouble(f"size_type: invalid value for parameter: {size_type}", errno.EINVAL)
        told = self._told().sizes
        return told[size_type] if told is not None else 0

    @call(*KNOWN)
    def get_canonical_export_name(self) -> str:
        """Return what the server calls the export, if it was asked (set_full_info) and told."""
        name = self._told().name
        if name is None:
            raise Trouble("server did not advertise a canonical name", errno.ENOTSUP)
        return name

    @call(*KNOWN)
    def get_export_description(self) -> str:
        """Return what the server says of the export, if it was asked (set_full_info) and told."""
        description = self._told().description
        if description is None:
            raise Trouble("server did not advertise a description", errno.ENOTSUP)
        return description

    @call(*ONCE)
    def get_uri(self) -> str:
        """Return an address that leads to the same export."""
        address, name = self._address, quote(self._export_name, safe="/")
        scheme = "nbds" if self._tls == n.TLS_REQUIRE else "nbd"
        user = f"{quote(self._tls_username, safe='')}@" if self._tls_username else ""
        if isinstance(address, ActivatedAddress):
            address = UnixAddress(address.path)
        if isinstance(address, TcpAddress):
            host = f"[{address.host}]" if ":" in address.host else address.host
            port = "" if int(address.port) == DEFAULT_PORT else f":{address.port}"
            return f"{scheme}://{user}{host}{port}/{name}"
        if isinstance(address, UnixAddress):
            return f"{scheme}+unix://{user}/{name}?socket={quote(address.path, safe='/')}"
        if isinstance(address, VsockAddress):
            port = "" if address.port == DEFAULT_PORT else f":{address.port}"
            return f"{scheme}+vsock://{user}{address.cid}{port}/{name}"
        raise Trouble("cannot construct a URI for this connection type", errno.EINVAL)
