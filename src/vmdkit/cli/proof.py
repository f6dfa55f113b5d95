# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``--verify`` and ``--report`` of the verbs that copy: read again what was written, and say so in writing."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from vmdkit import __version__
from vmdkit.cli.disk import open_disk
from vmdkit.cli.render import emit, out, say
from vmdkit.cores import default_threads
from vmdkit.errors import DifferenceError, FormatError, UsageError, VmdkitError
from vmdkit.filters.slice import SliceDevice
from vmdkit.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from vmdkit.cli.parser import Parser
    from vmdkit.device import Device
    from vmdkit.ops.copy import Tally

_MAP, _FULL, _QEMU = "map", "full", "qemu"
_ARCHIVE = "tar.gz"  # what is read of it is what it unpacks to


def add_proof_options(parser: Parser) -> None:
    """Add --verify and --report. The former's value goes with ``=`` only, so that it never takes the next word."""
    group = parser.add_argument_group("proof")
    group.add_argument(
        "--verify",
        dest="verify",
        action="store_const",
        const=_MAP,
        help="read DST again, by other code, and see that it holds what SRC holds",
    )
    group.add_argument(
        "--verify=full", dest="verify", action="store_const", const=_FULL, help="read holes too, and believe no map"
    )
    group.add_argument(
        "--verify=qemu", dest="verify", action="store_const", const=_QEMU, help="let qemu-nbd read DST once more"
    )
    group.add_argument("--report", metavar="FILE", help="verify, and write what was proved to FILE, as JSON; '-': text")


@contextmanager
def written_disk(args: Namespace, location: str, kind: str) -> Iterator[Device]:
    """Open a disk of a format that ``convert`` writes, by its name."""
    if kind.lower() == _ARCHIVE:
        from vmdkit.storage.file import open_file
        from vmdkit.storage.untar import unpack

        with unpack(open_file(location), os.path.dirname(os.path.realpath(location))) as device:
            yield device
        return
    if kind.lower() != "vhd":
        with open_disk(args, location, raw=kind.lower() == "raw") as device:
            yield device
        return
    from vmdkit.storage.vhd import FOOTER

    with open_disk(args, location, raw=True) as file, SliceDevice(file, 0, max(file.size - FOOTER, 0)) as device:
        yield device


@contextmanager
def _noting(text: str) -> Iterator[None]:
    try:
        yield
    except DifferenceError as error:
        error.add_note(text)
        raise


class Proof:
    """What one copy is told to prove. Inactive where nobody asked: then it costs and does nothing."""

    def __init__(self, args: Namespace, operation: str, kind: str = "") -> None:
        self.mode: str | None = args.verify or (_MAP if args.report is not None else None)
        self.progress: Callable[[int], None] = lambda _: None
        self._args = args
        self._operation = operation
        self._packed = kind.lower() == _ARCHIVE
        self._report: dict[str, Any] = {}
        self._copied = 0.0
        self._only: int | None = None
        self._threads = args.threads or default_threads()
        self._durable = not getattr(args, "no_sync", False)
        self._force = getattr(args, "force", False)

    @property
    def active(self) -> bool:
        """Whether anything is to be proved."""
        return self.mode is not None

    @property
    def check(self) -> Callable[[Device, Device], None] | None:
        """What to call with the source and what was written, opened anew; None where nobody asked."""
        return self._check if self.active else None

    def work(self, size: int) -> int:
        """Return how many bytes the progress of copying ``size`` bytes will count."""
        return size * {None: 1, _QEMU: 4}.get(self.mode, 3)

    @contextmanager
    def watching(self, source: Device) -> Iterator[None]:
        """Take the digest of the source while the block copies it; tell a difference in the report."""
        if not self.active:
            yield
            return
        from vmdkit.ops import report
        from vmdkit.ops.tree import Shape
        from vmdkit.ops.verify import Digesting

        self._check_report_path()
        if self.mode == _QEMU:
            from vmdkit.ops import qemu

            if "://" in self._args.target:
                raise UsageError("qemu cannot be asked about what an address leads to", path=self._args.target)
            self._qemu = qemu.version()
        self._started, self._begun = report.now(), time.monotonic()
        self._source = source
        with Digesting(source, Shape(), self._zeros(), self._threads) as self._digesting:
            try:
                yield
            except DifferenceError as error:
                self._fail(error)
                raise

    def reopened(self, location: str, kind: str) -> None:
        """Check what was written over something, opened anew by its name; what lies behind is not looked at."""
        if self.active:
            with written_disk(self._args, location, kind) as written, _noting("it stays as it is written"):
                self._prove(self._source, written, self._source.size)

    def conclude(self, tally: Tally, location: str, kind: str) -> None:
        """Say what was proved, and write the report, when everything has its name."""
        if not self.active:
            return
        from vmdkit.ops import report

        with written_disk(self._args, location, kind) as written:
            self._report["destination"] = self._describe(written, location)
            if self._only is not None:
                self._report["destination"]["compared"] = self._only
        self._report["copied"] = {"moved": tally.moved, "read": tally.read, "skipped": tally.skipped}
        if self._args.report != "-" and not self._args.quiet and not self._args.json:
            size = format_size(self._report["source"]["size"])
            out(f"proved equal: {size}, {self._report['digests']['source']}")
        self._write(report.EQUAL)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────

    def _zeros(self) -> Any:
        from vmdkit.ops.tree_hash import Zeros

        return Zeros.NOBODY if self.mode == _FULL else Zeros.EXTENTS

    def _check(self, source: Device, written: Device) -> None:
        """Prove it of a disk that has no name yet."""
        with _noting("it was removed again"):
            self._prove(source, written)

    def _prove(self, source: Device, written: Device, only: int | None = None) -> None:
        """Read what was written, or ``only`` so many bytes of it, by each reader, and hold it against the source."""
        from vmdkit.ops import report, verify

        self._copied = time.monotonic() - self._begun
        expected = self._digesting.digest(self.progress)
        self._report |= {
            "source": report.describe(source, self._args.source),
            "destination": {**self._describe(written, self._args.target), "files": []},
            "digests": report.digests(expected, None),
        }
        self._only = only
        cache = "the cache was kept"
        if self._durable:
            dropped = verify.drop_cache(written)
            if not self._packed:  # an archive has been unpacked by now, out of the cache
                cache = "the cache was dropped before" if dropped else "by a new connection"
        for name, tools, reader in self._readers(written):
            self._report["reading"] = {"reader": name, "trust": f"{self._trust()}; {cache}"}
            self._report |= report.surroundings({"vmdkit": __version__, **tools})
            with self._refusals(), reader as device:
                found = verify.verify(
                    source,
                    expected,
                    device if only is None else SliceDevice(device, 0, min(only, device.size), owned=False),
                    zeros=self._zeros(),
                    progress=self.progress,
                    threads=self._threads,
                )
            self._report["digests"] = report.digests(expected, found)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say of what cannot be read that it is no copy; name DST as the user does, not as it is called for now."""
        try:
            yield
        except FormatError as error:
            raise DifferenceError(f"what was written cannot be read: {error}", path=self._args.target) from error
        except DifferenceError as error:
            error.path = self._args.target
            raise

    def _readers(self, written: Device) -> Iterator[tuple[str, dict[str, str], AbstractContextManager[Device]]]:
        """Yield the readers: what a report calls them, further programs that take part, and how they open DST."""
        name, first = self._first_reader(written)
        yield name, {}, first
        if self.mode == _QEMU:
            from vmdkit.ops import qemu

            yield f"{name}, then {qemu.PROGRAM}", {qemu.PROGRAM: self._qemu}, qemu.qemu_reader(written)

    def _first_reader(self, written: Device) -> tuple[str, AbstractContextManager[Device]]:
        """Return the second reader, or the usual one for what the second does not know: no file, or not made by us."""
        from vmdkit.ops import verify

        if verify.has_second_reader(written):
            try:
                with self._refusals():
                    name = "vmdkit's second reader"
                    name = f"Python's tarfile, then {name}" if self._packed else name
                    return name, verify.second_reader(written, self._args.target)
            except DifferenceError:
                if self._only is None:
                    raise
        return "vmdkit", nullcontext(written)  # it stays the caller's

    def _describe(self, written: Device, location: str) -> dict[str, Any]:
        """Describe DST; of an archive the disk in it, but its own file."""
        from vmdkit.ops import report

        found = report.describe(written, location)
        if self._packed:
            found["format"] = _ARCHIVE
            if os.path.exists(location):
                found["files"] = [report.describe_file(location)]
        return found

    def _trust(self) -> str:
        return "every byte was read" if self.mode == _FULL else "what each side calls zero was not read"

    def _fail(self, error: DifferenceError) -> None:
        from vmdkit.ops import report

        self._report["difference"] = {"offset": error.offset, "message": error.message}
        try:
            self._write(report.DIFFERENT)
        except (VmdkitError, OSError) as other:
            say(f"the report could not be written: {other}")

    def _check_report_path(self) -> None:
        """Find out now, not hours later, that the report cannot be written."""
        path = self._args.report
        if path in (None, "-"):
            return
        if os.path.lexists(path) and not self._force:
            raise UsageError("it exists; -f overwrites it", path=path)
        directory = os.path.dirname(path) or "."
        if not os.path.isdir(directory):
            raise UsageError("there is no such directory", path=directory)

    def _write(self, verdict: str) -> None:
        """Write the report where it was asked for: whole, or not at all."""
        from vmdkit.ops import report
        from vmdkit.storage.target import new_file

        if self._args.report is None and not self._args.json:
            return
        finished = time.monotonic()
        whole = report.sealed({
            "operation": self._operation,
            "verdict": verdict,
            **self._report,
            "times": {
                "started": self._started,
                "finished": report.now(),
                "copy_ms": round(self._copied * 1000),
                "verify_ms": round((finished - self._begun - self._copied) * 1000),
            },
        })  # fmt: skip
        text = report.as_json(whole)
        if self._args.json:
            emit(text)
        elif self._args.report == "-":
            for line in report.as_text(whole):
                out(line)
        if self._args.report not in (None, "-"):
            with new_file(self._args.report, len(text), overwrite=self._force) as file:
                file.pwrite(text.encode("ascii"), 0)
