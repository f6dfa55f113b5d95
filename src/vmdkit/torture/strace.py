# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Record what any program does to the files of one directory, by the system calls that strace sees.

What strace cannot see is refused, never guessed: writable shared mappings, O_SYNC files, writes at the file's own
position, and copies inside the kernel, by their calls; io_uring and Linux AIO by what they leave: a program may use
them for other things, so the files at the end are compared with what the recorded calls make of them (``complete``).
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError
from vmdkit.filters.record_writes import FOREVER, Entry
from vmdkit.torture.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LONGEST = 64 << 20  # bytes of one write; servers take requests of 32 MiB
_CALLS = (
    "pwrite64,pwritev,pwritev2,write,writev,fsync,fdatasync,sync,syncfs,sync_file_range,fallocate,ftruncate,truncate,"
    "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,mmap,msync,"
    "copy_file_range,sendfile,splice"
)
_WHOLE = re.compile(r"(\d+) +(\d+)\.(\d{9}) (\w+)\((.*)\)\s+= (-?\d+|\?)(?:<([^>]*)>)?.*?(?: <(\d+)\.(\d{9})>)?$")
_BEGUN = re.compile(r"(\d+) +(\d+)\.(\d{9}) (\w+)\((.*?),? <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +(\d+)\.(\d{9}) <\.\.\. (\w+) resumed>(.*)$")
_FD = re.compile(r"(-?\d+|AT_FDCWD)(?:<([^>]*)>)?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def command(output: str, program: list[str]) -> list[str]:
    """Return the command line that runs ``program`` and writes its calls to ``output``."""
    strace = shutil.which("strace")
    if strace is None:
        raise UnsupportedError("strace is not installed, and without it only our own writer can be recorded")
    return [
        strace, "-f", "-y", "-xx", "-s", str(_LONGEST), "--absolute-timestamps=format:unix,precision:ns",
        "--syscall-times=ns", "-e", "signal=none", "-e", f"trace={_CALLS}", "-o", output, "--", *program,
    ]  # fmt: skip


def parse(lines: Iterable[str], directory: str, present: Iterable[str]) -> list[Entry]:
    """Return the entries of a trace that concern files in ``directory``, of which ``present`` were there before."""
    reader = _Trace(directory, present)
    for pid, name, arguments, answer, begun, ended in _calls(lines):
        reader.take(pid, name, arguments, answer, begun, ended)
    return sorted(reader.entries, key=lambda entry: (entry.ended, entry.begun))


def complete(entries: list[Entry], before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Raise UnsupportedError unless the entries make of the files ``before`` what they are ``after``."""
    replay = Replay(before, entries)
    end = max((entry.ended for entry in entries if entry.ended < FOREVER), default=0) + 1
    masks = {name: [op.whole for op in history.pending(end)] for name, history in replay.histories.items()}
    made = replay.build(replay.state(end, masks))
    for name in sorted({*made, *after}):
        if made.get(name) != after.get(name):
            raise UnsupportedError(
                f"{name} is not what the recorded calls make of it; does the program write by io_uring or Linux AIO? "
                "Start it without (qemu-nbd: --aio=threads)"
            )


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Join what strace splits where calls overlap: yield pid, call, arguments, answer, begin and end."""
    open_: dict[str, tuple[str, str, int]] = {}
    for line in lines:
        line = line.rstrip("\n")
        begun = _BEGUN.match(line)
        if begun is not None:
            open_[begun[1]] = (begun[4], begun[5], _nanoseconds(begun[2], begun[3]))
            continue
        resumed = _RESUMED.match(line)
        if resumed is not None:
            name, arguments, start = open_.pop(resumed[1], (resumed[4], "", 0))
            rest = re.match(r"(.*)\)\s+= (\S+?)(<.*?>)?(?: .*)?$", resumed[5])
            if rest is not None:
                answer = rest[2] + (rest[3] or "")
                yield resumed[1], name, arguments + rest[1], answer, start, _nanoseconds(resumed[2], resumed[3])
            continue
        whole = _WHOLE.match(line)
        if whole is not None:
            start = _nanoseconds(whole[2], whole[3])
            took = _nanoseconds(whole[8], whole[9]) if whole[8] else 0
            answer = whole[6] + (f"<{whole[7]}>" if whole[7] is not None else "")
            yield whole[1], whole[4], whole[5], answer, start, start + took
    for pid, (name, arguments, start) in open_.items():  # killed in the middle of it
        yield pid, name, arguments, "?", start, FOREVER


def _nanoseconds(seconds: str, fraction: str) -> int:
    return int(seconds) * 1_000_000_000 + int(fraction)


def _text(escaped: str) -> str:
    return _bytes(escaped).decode("utf-8", "surrogateescape") if escaped.startswith("\\x") else escaped


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


class _Trace:
    """Turns calls into entries, and follows which file each name means."""

    def __init__(self, directory: str, present: Iterable[str]) -> None:
        self.entries: list[Entry] = []
        self._home = os.path.realpath(directory)
        self._names = {name: name for name in present}
        self._sizes: dict[str, int] = {}

    def take(self, pid: str, name: str, arguments: str, answer: str, begun: int, ended: int) -> None:
        """Take in one call."""
        value = int(answer.split("<")[0], 0) if answer[:1] not in ("?", "") else 0
        if value < 0:
            return
        if name in ("sync", "syncfs"):
            self.entries += [Entry("flush", file, begun=begun, ended=ended) for file in {*self._names.values(), ""}]
            return
        handler = getattr(self, f"_do_{name}", None)
        if handler is not None:
            handler(arguments, value, answer, begun, ended)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────

    def _inside(self, path: str) -> str | None:
        """Return the name of a path in our directory; None where it is elsewhere, or below it (lock directories)."""
        path = path.removesuffix(" (deleted)")
        if path == self._home:
            return ""
        home, name = os.path.split(path)
        return name if home == self._home else None

    def _of_fd(self, arguments: str) -> str | None:
        """Return which file the call's first argument means; the directory itself is the empty name."""
        match = _FD.match(arguments)
        if match is None or match[2] is None:
            return None
        name = self._inside(_text(match[2]))
        return name if not name else self._names.get(name, name)

    def _paths(self, arguments: str) -> list[str | None]:
        """Return the names that a call's strings mean, seen from the directories before them."""
        found: list[str | None] = []
        home = ""
        for match in re.finditer(r'(?:-?\d+|AT_FDCWD)<([^>]*)>|"((?:\\x[0-9a-f]{2})*)"', arguments):
            if match[1] is not None:
                home = _text(match[1])
            else:
                found.append(self._inside(os.path.normpath(os.path.join(home or self._home, _text(match[2] or "")))))
        return found

    def _name(self, verb: str, begun: int, ended: int, file: str, other: str = "") -> None:
        self.entries.append(Entry(verb, file, other=other, begun=begun, ended=ended))

    def _do_openat(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        match = re.search(r"<([^>]*)>$", answer)
        name = self._inside(_text(match[1])) if match is not None else None
        if not name or os.path.isdir(os.path.join(self._home, name)):
            return
        if re.search(r"\bO_D?SYNC\b", arguments) and re.search(r"O_WRONLY|O_RDWR", arguments):
            raise UnsupportedError(f"{name} is opened with O_SYNC, which is not followed")
        if "O_CREAT" in arguments and name not in self._names:
            self._names[name] = key = f"{name}#{len(self.entries)}"
            self._name("create", begun, ended, name, key)
        elif "O_TRUNC" in arguments and name in self._names:
            self.entries.append(Entry("resize", self._names[name], length=0, begun=begun, ended=ended))

    _do_open = _do_creat = _do_openat2 = _do_openat

    def _do_rename(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        paths = self._paths(arguments)
        old, new = paths[0], paths[-1]
        if old is None and new is None:
            return
        if old is None or new is None:
            raise UnsupportedError("a file is moved into or out of the directory")
        if old in self._names:
            self._names[new] = self._names.pop(old)
            self._name("rename", begun, ended, old, new)

    _do_renameat = _do_renameat2 = _do_rename

    def _do_unlink(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        name = self._paths(arguments)[-1]
        if name in self._names:
            self._names.pop(name)
            self._name("unlink", begun, ended, name)

    _do_unlinkat = _do_unlink

    def _do_link(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        paths = self._paths(arguments)
        old, new = paths[0], paths[-1]
        if old is not None and new is not None and old in self._names:
            self._names[new] = self._names[old]
            self._name("link", begun, ended, old, new)

    _do_linkat = _do_link

    # ── contents ─────────────────────────────────────────────────────────────────────────────────────────────

    def _do_pwrite64(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        self._write(arguments, -1, value, answer, begun, ended)

    _do_pwritev = _do_pwrite64

    def _do_pwritev2(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        if "RWF_DSYNC" in arguments or "RWF_SYNC" in arguments:
            raise UnsupportedError("writes with RWF_SYNC are not followed")
        self._write(arguments, -2, value, answer, begun, ended)

    def _write(self, arguments: str, place: int, value: int, answer: str, begun: int, ended: int) -> None:
        """Take in a write whose offset is argument number ``place``."""
        file = self._of_fd(arguments)
        if not file:
            return
        data = b"".join(self._data(match) for match in _STRING.finditer(arguments))
        offset = int(arguments.rsplit('"', 1)[-1].split(",")[place])
        if answer != "?":
            data = data[:value]
        self.entries.append(Entry("write", file, offset, len(data), data, begun=begun, ended=ended))

    @staticmethod
    def _data(match: re.Match[str]) -> bytes:
        if match[2]:
            raise UnsupportedError("strace has cut the data of a write short")
        return _bytes(match[1])

    def _do_write(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        if self._of_fd(arguments):
            raise UnsupportedError(
                "it writes at the file's own position (write), which is not followed; only pwrite is"
            )

    _do_writev = _do_write

    def _do_copy_file_range(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        if any(self._inside(_text(path)) for path in re.findall(r"<([^>]*)>", arguments)):
            raise UnsupportedError("it copies inside the kernel, which is not followed")

    _do_splice = _do_copy_file_range

    def _do_sendfile(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        if self._of_fd(arguments):
            raise UnsupportedError("it copies inside the kernel, which is not followed")

    def _do_mmap(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        shared = "MAP_SHARED" in arguments and "PROT_WRITE" in arguments
        if shared and any(self._inside(_text(path)) for path in re.findall(r"<([^>]*)>", arguments)):
            raise UnsupportedError("it writes through a shared mapping, which strace cannot see")

    def _do_ftruncate(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        file = self._of_fd(arguments)
        if file:
            size = int(arguments.rsplit(",", 1)[1])
            self.entries.append(Entry("resize", file, length=size, begun=begun, ended=ended))

    def _do_truncate(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        name = self._paths(arguments)[0]
        if name in self._names:
            size = int(arguments.rsplit(",", 1)[1])
            self.entries.append(Entry("resize", self._names[name], length=size, begun=begun, ended=ended))

    def _do_fallocate(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        file = self._of_fd(arguments)
        if not file:
            return
        _, mode, offset, length = (word.strip() for word in arguments.rsplit(",", 3))
        if "PUNCH_HOLE" in mode or "ZERO_RANGE" in mode:
            self.entries.append(Entry("zero", file, int(offset), int(length), begun=begun, ended=ended))
        elif "COLLAPSE" in mode or "INSERT" in mode:
            raise UnsupportedError("it moves parts of a file (fallocate), which is not followed")
        if "KEEP_SIZE" not in mode:
            end = int(offset) + int(length)
            self.entries.append(Entry("grow", file, length=end, begun=begun, ended=ended))

    def _do_fsync(self, arguments: str, value: int, answer: str, begun: int, ended: int) -> None:
        file = self._of_fd(arguments)
        if file is not None:
            self.entries.append(Entry("flush", file, begun=begun, ended=ended))

    _do_fdatasync = _do_fsync
