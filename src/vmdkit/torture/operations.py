# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Cut the power of whole operations: create, snapshot, commit, rebase, resize, compact.

They do everything to files through an object (``vmdkit.vmdk.files``); here it is a file system in memory that records
names as well as contents. What an operation owes at every moment is said by a function of the files that are left.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError, VmdkitError
from vmdkit.filters.record_writes import Journal, RecordWrites
from vmdkit.gate import Gate
from vmdkit.torture import harness
from vmdkit.torture.files import MemoryFile
from vmdkit.torture.harness import Recording
from vmdkit.torture.promise import Promises
from vmdkit.units import SECTOR
from vmdkit.vmdk.image import Options, open_image, read_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vmdkit.device import Device
    from vmdkit.torture.harness import Files, Finding, Result
    from vmdkit.torture.promise import Expected
    from vmdkit.torture.replay import State
    from vmdkit.vmdk.disk import VmdkDisk

    Owed = Callable[[Files], Iterable[Finding]]

_HOME = "/torture"


class MemoryFiles(Gate):
    """One directory in memory, with everything that changes it recorded once ``journal`` is set."""

    def __init__(self, files: Mapping[str, bytes | bytearray] | None = None) -> None:
        self._content = {name: bytearray(content) for name, content in (files or {}).items()}  # by key
        self._names = {name: name for name in self._content}  # name -> key
        self.journal: Journal | None = None

    def snapshot(self) -> dict[str, bytes]:
        """Return every file by name."""
        return {name: bytes(self._content[key]) for name, key in self._names.items()}

    def _note(self, verb: str, file: str, other: str = "") -> None:
        if self.journal is not None:
            self.journal.end(self.journal.begin(verb, file, other=other))

    # ── vmdkit.vmdk.files.Files ──────────────────────────────────────────────────────────────────────────────

    def open_file(self, path: str, *, writable: bool = False, follow: bool = True, regular: bool = False) -> Device:
        """Open an existing file."""
        return self._device(path, path, writable=writable)

    def _device(self, path: str, name: str, *, writable: bool) -> Device:
        key = self._names.get(os.path.basename(path))
        if key is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        device: Device = MemoryFile(self._content[key], name, writable=writable)
        if writable and self.journal is not None:
            device = RecordWrites(device, self.journal, file=key)
        return device

    def new_file(self, path: str, name: str) -> Device:
        """Make an empty file."""
        bare = os.path.basename(path)
        if bare in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        key = f"{bare}#{len(self._content)}"
        self._names[bare], self._content[key] = key, bytearray()
        self._note("create", bare, key)
        return self._device(path, name, writable=True)

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give a file another name; without ``replace`` as a link and a removal, which harm nothing."""
        old, new = os.path.basename(old), os.path.basename(new)
        if not replace:
            if new in self._names:
                raise UsageError("it exists; -f overwrites it", path=new)
            self._names[new] = self._names[old]
            self._note("link", old, new)
            self.remove(old)
            return
        self._names[new] = self._names.pop(old)
        self._note("rename", old, new)

    def remove(self, path: str) -> None:
        """Remove a name."""
        bare = os.path.basename(path)
        if bare not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        del self._names[bare]
        self._note("unlink", bare)

    def sync_directory(self, path: str) -> None:
        """Make names durable."""
        self._note("flush", "")

    def exists(self, path: str) -> bool:
        """Tell whether there is such a name."""
        return os.path.basename(path) in self._names

    def real_path(self, path: str) -> str:
        """Return the path in the one directory."""
        return _HOME if path in ("", ".", _HOME) else os.path.join(_HOME, os.path.basename(path))

    def names(self, directory: str) -> list[str]:
        """Return all names."""
        return list(self._names)

    def open_disk(
        self, path: str, *, writable: bool = False, single_link: bool = False, ignore_cid: bool = False
    ) -> VmdkDisk:
        """Open a disk."""
        storage = self._device(path, path, writable=writable)
        text = read_descriptor(storage)
        if text is None:
            raise VmdkitError("there is no descriptor in it", path=path)
        return open_image(
            storage, text, self, Options(writable=writable, single_link=single_link, ignore_cid=ignore_cid)
        )

    def gate(self) -> Gate:
        """Return this very directory."""
        return self

    # ── Gate ─────────────────────────────────────────────────────────────────────────────────────────────────

    def resolve(self, name: str, base: str) -> str:
        """Take the bare name, whatever directory it names."""
        return os.path.join(os.path.dirname(base), os.path.basename(name))

    def open(self, name: str, base: str, *, writable: bool = False) -> Device:
        """Open a file that an image names."""
        return self._device(name, self.resolve(name, base), writable=writable)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is done, and what has to be true of the files at every moment of it.

    ``prepare`` makes the files, unrecorded, and returns what is owed; ``work`` is the operation.
    """

    name: str
    prepare: Callable[[MemoryFiles, int], Owed]
    work: Callable[[MemoryFiles], None]


class _OperationJudge:
    def __init__(self, owed: Owed) -> None:
        self._owed = owed

    def __call__(self, files: Files, expected: Expected, state: State) -> Iterable[Finding]:
        return self._owed(files)


def torture(operation: Operation, seed: int, *, states: int) -> Result:
    """Record an operation, cut its power, and return what came of it."""
    files = MemoryFiles()
    owed = operation.prepare(files, seed)
    before = files.snapshot()
    recorded = MemoryFiles(before)
    recorded.journal = Journal()
    operation.work(recorded)
    recording = Recording(operation.name, before, recorded.journal.entries, Promises(bytes(SECTOR), []))
    recording.findings += list(owed(dict(recorded.snapshot())))
    return harness.run(recording, _OperationJudge(owed), states=states, seed=seed)
