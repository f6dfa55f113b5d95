# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""A second reader of what vmdkit writes, for proof: simple, slow, and with none of the first one's code.

Nothing below ``vmdkit.vmdk`` and ``vmdkit.storage`` is imported here, which the floors' contract holds it to, and
zlib inflates what libdeflate and isal have deflated. It tolerates nothing: what is doubtful is an error.
"""

from __future__ import annotations
