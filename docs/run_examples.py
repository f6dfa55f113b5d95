#!/usr/bin/env python3
# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Run the examples of the documentation: README.md, CONTRIBUTING.md and docs/**/*.md, or the files named.

* Every ```python block is executed; the blocks of one file share their names, as one program in pieces. A block of
  ``>>>`` lines is a doctest. A block that imports libnbd's ``nbd`` is run by the system's Python, or skipped.
* Of a ```console checked block every ``$`` line is run by a shell; what follows is what it must print, where ``...``
  stands for anything. Plain ```console blocks are for reading.

Each file runs in a directory of its own with disk.vmdk (sparse, 10 MiB), stream.vmdk (the same bytes, compressed),
vm.vmdk and its snapshot vm-000001.vmdk.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from images.table import SUBFORMATS  # noqa: E402  # needs the path

BLOCK = re.compile(r"^```(python|console checked)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAYOUT = "1M:A 1M:0 6M:- 1M:B 1M:-"
SYSTEM_PYTHON = "/usr/bin/python3"  # where Debian's python3-libnbd is


def prepare(directory: Path) -> None:
    """Make the disks that examples speak of."""
    for kind, name in (("hosted", "disk"), ("stream-A", "stream")):
        SUBFORMATS[kind].build(directory, LAYOUT, name=name)
    base = SUBFORMATS["vmfs"].build(directory, LAYOUT, name="vm")
    SUBFORMATS["seSparse"].build(directory, "64k:C 64k:0 10112k:-", name="vm-000001", parent=base)


def run_python(code: str, where: str, names: dict[str, object]) -> None:
    """Run a block of Python: a doctest, a program for libnbd, or a piece of the file's program."""
    if re.search(r"^\s*import nbd$", code, re.MULTILINE):
        if subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], check=False, capture_output=True).returncode:
            print(f"{where}: skipped, python3-libnbd is not installed")
            return
        subprocess.run([SYSTEM_PYTHON, "-c", code], check=True, timeout=60)
    elif code.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(code, names, where, where, 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, clear_globs=False)
        names.update(test.globs)
        if runner.failures:
            raise SystemExit(1)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, where, "exec"), names)


def run_console(text: str, where: str) -> None:
    """Run the commands of a block and compare what they print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        done = subprocess.run(
            command, check=False, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        got = done.stdout
        if not doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS):
            raise SystemExit(f"{where}: $ {command}\nprinted\n{got}\ninstead of\n{expected}")


def run_file(path: Path) -> int:
    """Run the blocks of one file in a fresh directory; return how many there were."""
    text, names = path.read_text(encoding="utf-8"), {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        return 0
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        os.chdir(directory)
        try:
            for block in blocks:
                line = text.count("\n", 0, block.start()) + 1
                where = f"{path.relative_to(ROOT)}:{line}"
                if block[1] == "python":
                    run_python(block[2], where, names)
                else:
                    run_console(block[2], where)
        finally:
            os.chdir(ROOT)
    return len(blocks)


def main() -> None:
    """Run what is named, or everything."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    named = [Path(name).resolve() for name in sys.argv[1:]]
    for path in named or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        count = run_file(path)
        if count:
            print(f"{path.relative_to(ROOT)}: {count} examples")


if __name__ == "__main__":
    main()
