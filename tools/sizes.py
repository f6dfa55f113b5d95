# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Fail where a source file has grown past 600 lines, or where sectors leave the files that may know them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LONGEST = 600  # lines
SECTOR_FILES = {"units.py", "structs.py"}
SECTOR_NUMBER = re.compile(r"(?<![\w.#])512(?![\w.])|<<\s*9\b|>>\s*9\b")


def faults(root: Path) -> list[str]:
    """Return one line for each fault below ``root``."""
    found = []
    for path in sorted(root.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > LONGEST:
            found.append(f"{path}: {len(lines)} lines; {LONGEST} are the most")
        if path.name in SECTOR_FILES or path.parent.name == "nbd":  # NBD has sizes of its own and no sectors
            continue
        text = False
        for number, line in enumerate(lines, start=1):
            text ^= line.count('"""') % 2 == 1
            code = line.split("#")[0]
            if not text and '"' not in code and SECTOR_NUMBER.search(code):
                found.append(f"{path}:{number}: a sector outside units.py and structs.py: {line.strip()}")
    return found


if __name__ == "__main__":
    problems = faults(Path("src"))
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(bool(problems))
