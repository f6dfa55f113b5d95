# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a program written for libnbd finds in the module ``nbd``: its error and its numbers.

The interface is that of libnbd's manual pages; the texts of errors are those its version 1.14 gives, since programs
print them, and some look into them.
"""

from __future__ import annotations

import errno as numbers
import os
from typing import Final

CMD_FLAG_FUA: Final = 1
CMD_FLAG_NO_HOLE: Final = 2
CMD_FLAG_DF: Final = 4
CMD_FLAG_REQ_ONE: Final = 8
CMD_FLAG_FAST_ZERO: Final = 16
CMD_FLAG_MASK: Final = 31

HANDSHAKE_FLAG_FIXED_NEWSTYLE: Final = 1
HANDSHAKE_FLAG_NO_ZEROES: Final = 2
HANDSHAKE_FLAG_MASK: Final = 3

STRICT_COMMANDS: Final = 1
STRICT_FLAGS: Final = 2
STRICT_BOUNDS: Final = 4
STRICT_ZERO_SIZE: Final = 8
STRICT_ALIGN: Final = 16
STRICT_MASK: Final = 31

TLS_DISABLE: Final = 0
TLS_ALLOW: Final = 1
TLS_REQUIRE: Final = 2

ALLOW_TRANSPORT_TCP: Final = 1
ALLOW_TRANSPORT_UNIX: Final = 2
ALLOW_TRANSPORT_VSOCK: Final = 4
ALLOW_TRANSPORT_MASK: Final = 7

SIZE_MINIMUM: Final = 0
SIZE_PREFERRED: Final = 1
SIZE_MAXIMUM: Final = 2

READ_DATA: Final = 1
READ_HOLE: Final = 2
READ_ERROR: Final = 3

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2

SHUTDOWN_ABANDON_PENDING: Final = 65536
SHUTDOWN_MASK: Final = 65536

NAMESPACE_BASE: Final = "base:"
CONTEXT_BASE_ALLOCATION: Final = "base:allocation"

package_name: Final = "vmdkit"


class Error(Exception):
    """What went wrong in a call of ``NBD``: ``string`` says it, ``errnum`` is the system's number, or 0.

    ``errno`` is the name of that number, such as ``"EINVAL"``; None for 0.
    """

    def __init__(self, string: str, errnum: int = 0) -> None:
        super().__init__(string, errnum)
        self.string = string
        self.errnum = errnum
        self.errno = numbers.errorcode.get(errnum)

    def __str__(self) -> str:
        return f"{self.string} ({self.errno})" if self.errno else self.string


class Trouble(Exception):  # noqa: N818  # on its way to becoming an Error, by whoever knows the name of the call
    """A text and the system's number for it, or 0."""

    def __init__(self, text: str, errnum: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.errnum = errnum

    def error(self, call: str) -> Error:
        """Return the error of a call, worded as libnbd words it."""
        reason = f": {os.strerror(self.errnum)}" if self.errnum else ""
        return Error(f"nbd_{call}: {self.text}{reason}", self.errnum)
