# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a check finds, and what it makes of all of it.

A finding has a ``code`` that scripts may rely on; docs/check.md lists them all. Severities decide the exit code::

    error        what is wrong cannot be mended without a decision, or without loss      2
    repairable   `vmdkit repair` mends it, and nothing reads otherwise afterwards        2
    leak         space that nothing uses                                                 3, if nothing worse
    note         unusual, or a trap for other programs; the disk is sound                0
    unchecked    something could not be looked at: not allowed, or not understood        1, or 63
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vmdkit.vmdk.extent_file import Doubt

CLEAN, COULD_NOT, CORRUPT, LEAKS, UNSUPPORTED = 0, 1, 2, 3, 63  # exit codes, as qemu-img check's


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"
    REPAIRABLE = "repairable"
    LEAK = "leak"
    NOTE = "note"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``offset`` is in bytes of the file ``path``; ``count`` says how many are alike."""

    severity: Severity
    code: str
    text: str
    path: str = ""
    structure: str = ""
    offset: int | None = None
    remedy: str = ""
    count: int = 1

    def __str__(self) -> str:
        at = f" (at offset {self.offset:#x})" if self.offset is not None else ""
        return f"{self.path}: {self.text}{at}" if self.path else f"{self.text}{at}"

    def doubt(self) -> Doubt:
        """Return it as what ``info`` shows."""
        return Doubt(self.text, self.path, self.offset)

    def facts(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "severity": self.severity.value,
            "code": self.code,
            "structure": self.structure,
            "file": self.path,
            "offset": self.offset,
            "count": self.count,
            "text": self.text,
            "remedy": self.remedy,
        }


@dataclass(slots=True)
class Report:
    """All that a check has found, and what it has seen on the way."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    grains: int = 0  # in use
    leaked: int = 0  # bytes
    files: list[str] = field(default_factory=list)

    def add(self, *found: Finding) -> None:
        """Take findings in."""
        self.findings.extend(found)

    def has(self, *severities: Severity) -> bool:
        """Tell whether anything of the given severities was found."""
        return any(finding.severity in severities for finding in self.findings)

    def codes(self) -> set[str]:
        """Return the codes of all findings."""
        return {finding.code for finding in self.findings}

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self.has(Severity.ERROR, Severity.REPAIRABLE):
            return CORRUPT
        unchecked = [finding for finding in self.findings if finding.severity is Severity.UNCHECKED]
        if unchecked:
            return UNSUPPORTED if any(finding.code == "unsupported" for finding in unchecked) else COULD_NOT
        return LEAKS if self.has(Severity.LEAK) else CLEAN

    def facts(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        counts = {
            severity.value: sum(finding.severity is severity for finding in self.findings) for severity in Severity
        }
        return {
            "file": self.path,
            "result": {CLEAN: "clean", LEAKS: "leaks", CORRUPT: "corrupt"}.get(self.exit_code, "not checked"),
            "exit": self.exit_code,
            "files": self.files,
            "grains": self.grains,
            "leaked": self.leaked,
            "counts": counts,
            "findings": [finding.facts() for finding in self.findings],
        }


class Finder:
    """Makes findings about one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.findings: list[Finding] = []

    def add(
        self, severity: Severity, code: str, text: str, *, structure: str = "", offset: int | None = None,
        remedy: str = "", count: int = 1,
    ) -> None:  # fmt: skip
        """Note a finding."""
        self.findings.append(Finding(severity, code, text, self.path, structure, offset, remedy, count))

    def error(self, code: str, text: str, *, structure: str = "", offset: int | None = None, remedy: str = "") -> None:
        """Note what is wrong."""
        self.add(Severity.ERROR, code, text, structure=structure, offset=offset, remedy=remedy)

    def note(self, code: str, text: str, *, structure: str = "", offset: int | None = None, remedy: str = "") -> None:
        """Note what is unusual."""
        self.add(Severity.NOTE, code, text, structure=structure, offset=offset, remedy=remedy)

    def repairable(self, code: str, text: str, *, structure: str = "", offset: int | None = None) -> None:
        """Note what repair mends."""
        self.add(Severity.REPAIRABLE, code, text, structure=structure, offset=offset, remedy="vmdkit repair")

    def unsupported(self, text: str, *, structure: str = "", offset: int | None = None) -> None:
        """Note what this program does not understand, and therefore has not checked."""
        self.add(Severity.UNCHECKED, "unsupported", text, structure=structure, offset=offset)

    def is_sound(self) -> bool:
        """Tell whether nothing wrong was found."""
        return not any(finding.severity in (Severity.ERROR, Severity.REPAIRABLE) for finding in self.findings)
