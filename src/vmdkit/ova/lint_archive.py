# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Rules about the tar itself: its dialect, the names and the order of its members."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmdkit.ova import tar

if TYPE_CHECKING:
    from vmdkit.ova.archive import Archive
    from vmdkit.ova.lint import Subject
    from vmdkit.ova.report import Report

_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


def check_archive(subject: Subject) -> None:
    """Look at what can be said without the descriptor."""
    report, archive = subject.report, subject.package.archive
    if archive is not None:
        for problem in archive.problems:
            report.add(problem.code, problem.text, problem.member, offset=problem.offset)
        _check_dialect(report, archive)
    for name in subject.package.names:
        if name and not _PLAIN.fullmatch(name) and "/" not in name:
            report.add("tar-name-characters", f"{name!r} has characters that an href should not have", name)


def _check_dialect(report: Report, archive: Archive) -> None:
    for dialect in ("pax", "gnu"):
        found = [member for member in archive.members if member.dialect == dialect]
        large = [member for member in found if member.size > tar.LARGEST_USTAR]
        if found and (dialect == "pax" or len(large) < len(found)):
            how = "Python's tarfile writes it by default" if dialect == "pax" else "tar --format=ustar does better"
            text = f"{len(found)} of {len(archive.members)} members are in {dialect} format ({how})"
            report.add(f"tar-{dialect}", text, found[0].name, offset=found[0].header)
    for member in archive.members:
        if member.size > tar.LARGEST_USTAR:
            text = f"it has {member.size} bytes; ustar can say {tar.LARGEST_USTAR}"
            report.add("tar-large", text, member.name, offset=member.header)


def check_order(subject: Subject) -> None:
    """Hold the order of the members against the descriptor's."""
    report, archive, envelope = subject.report, subject.package.archive, subject.envelope
    if archive is None or envelope is None:
        return
    names = [member.name for member in archive.files()]
    if names and names[0] != subject.descriptor:
        text = f"the first member is {names[0]!r}, not the descriptor {subject.descriptor!r}"
        report.add("tar-ovf-first", text, names[0], offset=archive.files()[0].header)
    wanted = [name for name in (subject.package.find(file.href) for file in envelope.files) if name]
    wanted = list(dict.fromkeys(wanted))
    if [name for name in dict.fromkeys(names) if name in wanted] != wanted:
        report.add("tar-order", f"References has {', '.join(wanted[:8])} in this order", wanted[0])
    small = [name for name in names if name.lower().endswith((".mf", ".cert"))]
    if small and names[1 : 1 + len(small)] != small and names[-len(small) :] != small:
        report.add("tar-manifest-place", f"{' and '.join(small)} stand among the other files", small[0])
    known = {subject.descriptor, *wanted, *small}
    for name in dict.fromkeys(names):
        if name not in known and not name.lower().endswith(".ovf"):
            report.add("tar-extra", "the descriptor does not mention it", name)
