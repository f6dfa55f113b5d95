# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Rules about manifest and certificate."""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING

from vmdkit.errors import UnsupportedError, VmdkitError
from vmdkit.ova import manifest, signature

if TYPE_CHECKING:
    from vmdkit.ova.lint import Subject
    from vmdkit.ova.manifest import Line, Manifest


def read_manifest(subject: Subject) -> None:
    """Find and read the manifest; which digests are needed is known then."""
    found = [name for name in subject.package.names if name.lower().endswith(".mf")]
    if not found:
        subject.report.add("mf-missing", "there is no manifest, so damage is not noticed")
        return
    subject.manifest_name = found[0]
    _check_name(subject, found[0])
    try:
        data = subject.package.read(found[0], manifest.LARGEST)
        subject.manifest = manifest.parse(data, f"{subject.package.path}#{found[0]}")
    except VmdkitError as error:
        subject.report.add("mf-dialect", error.message, found[0])


def _check_name(subject: Subject, name: str) -> None:
    stem = os.path.splitext(subject.descriptor)[0]
    if subject.descriptor and os.path.splitext(name)[0] != stem:
        ending = os.path.splitext(name)[1]
        subject.report.add("mf-name", f"it should be called {stem}{ending}, as the descriptor", name)


def algorithms_for(subject: Subject, name: str) -> set[str]:
    """Return the kinds of digests that the manifest has for a file, as far as we can compute them."""
    if subject.manifest is None:
        return set()
    return {line.algorithm for line in subject.manifest.of(name) if line.algorithm in manifest.ALGORITHMS}


def check_manifest(subject: Subject, *, with_digests: bool) -> None:
    """Hold the manifest against the files, and the certificate against the manifest."""
    if subject.manifest is not None:
        _check_lines(subject, subject.manifest)
        _check_coverage(subject, subject.manifest)
        if with_digests:
            for line in subject.manifest.lines:
                _check_digest(subject, line)
    for name in subject.package.names:
        if name.lower().endswith(".cert"):
            _check_name(subject, name)
            _check_certificate(subject, name)


def _check_lines(subject: Subject, found: Manifest) -> None:
    report, name = subject.report, subject.manifest_name
    for number, text in found.strange[:10]:
        report.add("mf-dialect", f"no entry: {text[:80]!r}", name, line=number)
    loose = [line for line in found.lines if not line.exact]
    if loose:
        first = loose[0]
        text = f"{len(loose)} lines are not written {first.algorithm}({first.name})= digest"
        report.add("mf-dialect", text, name, line=first.number)
    for algorithm in dict.fromkeys(line.algorithm for line in found.lines):
        refusing = [target for target in report.targets if algorithm not in target.digests]
        if refusing:
            report.add("mf-algorithm", f"digests are {algorithm}", name, only=refusing)
        if algorithm == "SHA1":
            report.add("mf-weak", "digests are SHA-1", name)


def _check_coverage(subject: Subject, found: Manifest) -> None:
    report, name = subject.report, subject.manifest_name
    listed = {line.name for line in found.lines}
    due = [subject.descriptor] if subject.descriptor else []
    if subject.envelope is not None:
        due += [member for member in (subject.package.find(file.href) for file in subject.envelope.files) if member]
    for member in dict.fromkeys(due):
        if member not in listed:
            report.add("mf-coverage", f"{member!r} is not in the manifest", name)
    for line in found.lines:
        if line.name not in subject.package.names and subject.package.find(line.name) is None:
            report.add(
                "mf-coverage", f"{line.name!r} is in the manifest, and not in the package", name, line=line.number
            )


def _check_digest(subject: Subject, line: Line) -> None:
    real = subject.digests.get((line.name, line.algorithm))
    if real is not None and real != line.digest:
        text = f"its {line.algorithm} is {real}, the manifest says {line.digest[:128]}"
        subject.report.add("mf-digest", text, line.name)


def _check_certificate(subject: Subject, name: str) -> None:
    report, package = subject.report, subject.package
    if not subject.manifest_name:
        report.add("cert-format", "there is a certificate, and no manifest that it could be about", name)
        return
    try:
        found = signature.parse(package.read(name, signature.LARGEST), name)
        if found.name != subject.manifest_name:
            text = f"the signature is about {found.name!r}, the manifest is {subject.manifest_name!r}"
            report.add("cert-format", text, name, line=1)
        verdict = signature.verify(found, package.read(subject.manifest_name, manifest.LARGEST), name)
    except UnsupportedError as error:
        report.add("cert-unchecked", error.message, name)
        return
    except VmdkitError as error:
        report.add("cert-format", error.message, name)
        return
    if not verdict.valid:
        report.add("cert-signature", f"the signature of {verdict.subject} is not that of the manifest", name)
    if not verdict.in_time(datetime.datetime.now(datetime.UTC)):
        text = f"the certificate is valid from {verdict.begins:%Y-%m-%d} to {verdict.ends:%Y-%m-%d}"
        report.add("cert-time", text, name)
    if verdict.self_signed:
        report.add("cert-self", f"{verdict.subject} has signed its own certificate", name)
