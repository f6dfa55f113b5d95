# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Keep a recording in one file: a server never repeats itself to the nanosecond, its recording does."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmdkit.errors import FormatError
from vmdkit.filters.record_writes import Entry
from vmdkit.torture.harness import Finding, Recording
from vmdkit.torture.promise import Promises, Request

if TYPE_CHECKING:
    from vmdkit.torture.server import Commands

_FORMAT = "vmdkit torture recording 1"


def save(path: str, recording: Recording, commands: Commands) -> None:
    """Write a recording, and the commands it was made with."""
    value = {
        "format": _FORMAT,
        "name": recording.name,
        "commands": asdict(commands),
        "files": {name: _pack(content) for name, content in recording.files.items()},
        "entries": [{**asdict(entry), "data": _pack(entry.data)} for entry in recording.entries],
        "initial": _pack(recording.promises.initial.tobytes()),
        "requests": [
            {**asdict(one), "sectors": {str(sector): _pack(data) for sector, data in one.sectors.items()}}
            for one in recording.promises.requests
        ],
        "findings": [list(finding) for finding in recording.findings],
    }
    with gzip.open(path, "wt", encoding="ascii") as file:
        json.dump(value, file)


def load(path: str) -> tuple[Recording, dict[str, Any]]:
    """Return a recording and the commands it was made with; raises FormatError, OSError."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            value = json.load(file)
        if value["format"] != _FORMAT:
            raise FormatError("this is no recording", path=path)
        entries = [Entry(**{**one, "data": _unpack(one["data"])}) for one in value["entries"]]
        requests = [
            Request(**{**one, "sectors": {int(at): _unpack(data) for at, data in one["sectors"].items()}})
            for one in value["requests"]
        ]
        promises = Promises(_unpack(value["initial"]), requests)
        files = {name: _unpack(content) for name, content in value["files"].items()}
        findings = [Finding(*finding) for finding in value["findings"]]
        return Recording(value["name"], files, entries, promises, findings=findings), value["commands"]
    except (ValueError, KeyError, TypeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"this is no recording: {error}", path=path) from error


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
