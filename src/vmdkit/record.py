# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Declare binary layouts as typed classes.

::

    class Marker(Record, endian="<", size=512):
        \"\"\"...\"\"\"
        sectors: Sectors64     # on disk a sector count, in Python bytes
        size: U32
        type: U32
        pad: Annotated[bytes, "496s"] = b""

Fields lie in the order of their declaration, with no padding of their own. A field marked with a scale
(``Sectors32``, ``Sectors64``) is multiplied on unpacking and divided on packing, so no sector number exists
outside the file that declares the layouts.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, ClassVar, Self, dataclass_transform, get_type_hints

from vmdkit.errors import CorruptError, UsageError
from vmdkit.units import SECTOR

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Bytes4 = Annotated[bytes, "4s"]
Sectors32 = Annotated[int, "I", SECTOR]
Sectors64 = Annotated[int, "Q", SECTOR]


@dataclass_transform(kw_only_default=True)
class Record:
    """Base of every binary layout; subclasses give ``endian`` (``<`` or ``>``) and ``size`` in bytes."""

    _struct: ClassVar[struct.Struct]
    _fields: ClassVar[dict[str, tuple[str, int]]]  # name -> (struct code, scale)
    _offsets: ClassVar[dict[str, int]]

    def __init_subclass__(cls, *, endian: str, size: int) -> None:
        super().__init_subclass__()
        hints = get_type_hints(cls, include_extras=True)
        cls._fields, cls._offsets, code = {}, {}, endian
        for name in cls.__annotations__:
            metadata = getattr(hints[name], "__metadata__", None)
            if metadata is None:
                continue
            cls._offsets[name] = struct.calcsize(code)
            cls._fields[name] = (metadata[0], metadata[1] if len(metadata) > 1 else 1)
            code += metadata[0]
        cls._struct = struct.Struct(code)
        if cls._struct.size != size:
            raise TypeError(f"{cls.__name__} is declared with {size} bytes but has {cls._struct.size}")

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - self._fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)[0]!r}")
        for name in self._fields:
            setattr(self, name, values[name] if name in values else getattr(type(self), name))

    @classmethod
    def size_of(cls) -> int:
        """Return the length of the record in bytes."""
        return cls._struct.size

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Return where field ``name`` begins, in bytes from the start of the record."""
        return cls._offsets[name]

    @classmethod
    def unpack(cls, buf: bytes | bytearray | memoryview, offset: int = 0, *, path: str | None = None) -> Self:
        """Return the record at ``offset`` of ``buf``; raises CorruptError where ``buf`` is too short."""
        if len(buf) - offset < cls._struct.size:
            raise CorruptError(
                f"cut off: {len(buf) - offset} bytes, {cls._struct.size} expected",
                structure=cls.__name__, path=path, offset=offset,
            )  # fmt: skip
        record = cls.__new__(cls)
        values = cls._struct.unpack_from(buf, offset)
        for (name, (_, scale)), value in zip(cls._fields.items(), values, strict=True):
            setattr(record, name, value * scale if scale != 1 else value)
        return record

    def pack(self) -> bytes:
        """Return the bytes of the record; raises UsageError for a value that does not fit its field."""
        values = []
        for name, (_, scale) in self._fields.items():
            value = getattr(self, name)
            if scale != 1:
                value, rest = divmod(value, scale)
                if rest:
                    raise UsageError(f"{type(self).__name__}.{name} is no multiple of {scale}")
            values.append(value)
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise UsageError(f"{type(self).__name__} cannot hold its values: {error}") from error

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields if not name.startswith("pad"))
        return f"{type(self).__name__}({shown})"
