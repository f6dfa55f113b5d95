# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What lint found, and how it is told: as facts for JSON, and as SARIF 2.1.0 for the platforms that show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from vmdkit.ova.rules import RULES, Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmdkit.ova.targets import Target

_MOST_ALIKE = 100  # findings of one rule that are kept
CLEAN, COULD_NOT, ERRORS, WARNINGS = 0, 1, 2, 3  # exit codes of ova lint
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_HOME = "https://vmdkit.readthedocs.io/"  # informationUri has to be absolute


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that was broken: by what, for whom. ``offset`` is in bytes of the member; ``line`` of its text."""

    rule: str
    text: str
    levels: dict[str, Level]  # by target, of those who mind
    member: str = ""
    line: int = 0
    offset: int | None = None

    @property
    def level(self) -> Level:
        """Return the worst of the levels."""
        return max(self.levels.values(), key=lambda level: level.rank)

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets for which it is as bad as that."""
        return tuple(name for name, level in self.levels.items() if level is self.level)

    @property
    def where(self) -> str:
        """Return the member, with line or offset, for messages."""
        at = f":{self.line}" if self.line else f" at {self.offset:#x}" if self.offset is not None else ""
        return f"{self.member}{at}"

    def facts(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        rule = RULES[self.rule]
        return {
            "level": self.level.value,
            "rule": self.rule,
            "text": self.text,
            "member": self.member,
            "line": self.line or None,
            "offset": self.offset,
            "targets": {name: level.value for name, level in self.levels.items()},
            "why": rule.why,
            "source": rule.source,
            "hint": rule.hint,
            "fixed": rule.fixed,
        }


@dataclass(slots=True)
class Report:
    """All findings about one package, for some targets."""

    path: str
    targets: Sequence[Target]
    findings: list[Finding] = field(default_factory=list)
    more: Counter[str] = field(default_factory=Counter)  # rule -> how many findings were too many to keep

    def add(
        self,
        rule: str,
        text: str,
        member: str = "",
        *,
        line: int = 0,
        offset: int | None = None,
        only: Iterable[Target] | None = None,
    ) -> None:
        """Note that ``rule`` is broken, for all targets that mind, or for those of ``only``."""
        row = RULES[rule]
        minding = self.targets if only is None else only
        levels = {target.name: row.level(target) for target in minding if row.level(target) is not Level.NONE}
        if levels and sum(finding.rule == rule for finding in self.findings) >= _MOST_ALIKE:
            self.more[rule] += 1
        elif levels:
            self.findings.append(Finding(rule, text, levels, member, line, offset))

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level is level for finding in self.findings)

    def rules(self) -> set[str]:
        """Return the rules that were broken."""
        return {finding.rule for finding in self.findings}

    @property
    def exit_code(self) -> int:
        """Return 2 with errors, 3 with warnings only, else 0; notes do not count."""
        if self.count(Level.ERROR):
            return ERRORS
        return WARNINGS if self.count(Level.WARNING) else CLEAN

    def sorted(self) -> list[Finding]:
        """Return the findings, the worst first."""
        return sorted(self.findings, key=lambda finding: -finding.level.rank)

    def facts(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        return {
            "file": self.path,
            "targets": [target.name for target in self.targets],
            "exit": self.exit_code,
            "counts": {level.value: self.count(level) for level in Level if level is not Level.NONE},
            "findings": [finding.facts() for finding in self.sorted()],
            "more": dict(self.more),
        }


def sarif(reports: Sequence[Report], version: str) -> dict[str, Any]:
    """Return the reports as one SARIF 2.1.0 log with one run."""
    used = list(dict.fromkeys(finding.rule for report in reports for finding in report.sorted()))
    artifacts = list(dict.fromkeys(report.path for report in reports))
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "vmdkit ova lint",
                        "version": version,
                        "informationUri": _HOME,
                        "rules": [_rule(id_) for id_ in used],
                    }
                },
                "artifacts": [{"location": {"uri": _uri(path)}} for path in artifacts],
                "results": [
                    _result(report, finding, used.index(finding.rule), artifacts.index(report.path))
                    for report in reports
                    for finding in report.sorted()
                ],
            }
        ],
    }


_SARIF_LEVELS: Final = {Level.ERROR: "error", Level.WARNING: "warning", Level.NOTE: "note"}


def _rule(id_: str) -> dict[str, Any]:
    rule = RULES[id_]
    return {
        "id": id_,
        "shortDescription": {"text": rule.text},
        "fullDescription": {"text": f"{rule.text}: {rule.why}" + (f" ({rule.source})" if rule.source else "")},
        "help": {"text": rule.hint},
    }


def _result(report: Report, finding: Finding, rule: int, artifact: int) -> dict[str, Any]:
    where = f"{finding.where}: " if finding.member else ""
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(report.path), "index": artifact}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.member:
        location["logicalLocations"] = [
            {"name": finding.member, "fullyQualifiedName": f"{report.path}#{finding.member}", "kind": "member"}
        ]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": _SARIF_LEVELS[finding.level],
        "message": {"text": f"{where}{finding.text} [{', '.join(finding.targets)}]"},
        "locations": [location],
        "partialFingerprints": {"vmdkit/v1": f"{finding.rule}:{finding.member}:{finding.line}"},
        "properties": {
            "targets": {name: level.value for name, level in finding.levels.items()},
            "line": finding.line,
            "offset": finding.offset,
        },
    }


def _uri(path: str) -> str:
    """Return a path as a relative or absolute URI reference."""
    quoted = quote(path, safe="/.-_~", errors="surrogateescape")
    return f"file://{quoted}" if path.startswith("/") else quoted
