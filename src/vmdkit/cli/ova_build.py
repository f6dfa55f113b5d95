# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit ova build`` and ``ova fix``: the verbs that write an OVA."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmdkit.cli.convert_stream import add_stream_options
from vmdkit.cli.disk import add_disk_options, open_disk, without_blas_threads
from vmdkit.cli.parser import add_threads
from vmdkit.cli.progress import shown
from vmdkit.cli.render import out, out_json, say
from vmdkit.errors import UsageError
from vmdkit.storage.target import new_file
from vmdkit.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vmdkit.cli.parser import Parser
    from vmdkit.device import Device
    from vmdkit.ova.machine import DiskSpec, Machine
    from vmdkit.ova.report import Report
    from vmdkit.ova.signature import Signer
    from vmdkit.ova.targets import Target
    from vmdkit.ova.writer import Seal

_DIGESTS = ("sha1", "sha256", "sha512")
_LARGEST_PEM = 1 << 20
# flag -> (field of the machine, help)
_WORDS = {
    "--name": ("name", "what the machine is called"),
    "--os": ("os", "operating system: debian12, windows2022, ... or a name of VMware's (ubuntu64Guest)"),
    "--firmware": ("firmware", "bios or efi"),
    "--controller": ("controller", "of the disks: lsilogic (default), lsilogicsas, buslogic, pvscsi, sata, nvme, ide"),
    "--product": ("product", "name of the product"),
    "--vendor": ("vendor", "who makes it"),
    "--product-version": ("version", "version of the product"),
    "--product-url": ("product_url", "address of the product"),
    "--annotation": ("annotation", "a note"),
}


def add_sealing(parser: Parser) -> None:
    """Add what says how an archive is sealed."""
    group = parser.add_argument_group("manifest and signature")
    group.add_argument("--digest", choices=(*_DIGESTS, "none"), help="of the manifest (sha256)")
    group.add_argument("--sign", metavar="KEY", help="sign the manifest with this RSA key (PEM)")
    group.add_argument("--cert", metavar="CERT", help="the key's certificate (PEM)")
    group.add_argument("--password-file", metavar="FILE", help="the first line is the password of the key")


def add_packing(parser: Parser) -> None:
    """Add what says how disks are packed."""
    add_stream_options(parser)
    add_threads(parser)
    parser.add_argument("-f", "--force", action="store_true", help="overwrite a file that exists")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until it is on stable storage")


def register_build(inner: Any, targets: str) -> None:
    """Add the parser of build."""
    parser = inner.add_parser(
        "build",
        help="make an OVA of disks",
        description="Make OUT.ova of a machine described in YAML, by options, or both: options win. Disks of any kind "
        "are packed into streams that importers take; what is such a stream already is taken as it is.",
    )
    parser.add_argument("ova", metavar="OUT.ova")
    parser.add_argument("spec", metavar="MACHINE.yaml", nargs="?", help="the machine; see docs/ova.md")
    parser.add_argument("--disk", metavar="DISK", action="append", default=[], help="a disk (repeatable)")
    parser.add_argument("--for", dest="targets", metavar="TARGETS", action="append", default=[], help=targets)
    for flag, (field, text) in _WORDS.items():
        parser.add_argument(flag, dest=f"machine_{field}", metavar=field.upper(), help=text)
    parser.add_argument("--cpus", type=int, metavar="N", help="processors (1)")
    parser.add_argument("--memory", metavar="SIZE", help="for example 2G (1G)")
    parser.add_argument("--secure-boot", action="store_true", help="with the firmware efi")
    parser.add_argument("--nic", metavar="TYPE[:NETWORK]", action="append", default=[], help="e1000:VM Network, ...")
    parser.add_argument("--hardware", metavar="VMX", help="vmx-NN (default: what all targets run)")
    parser.add_argument("--cdrom", action="store_true", help="add an empty CD drive")
    parser.add_argument("--eula", metavar="FILE", action="append", default=[], help="terms to be accepted (UTF-8)")
    parser.add_argument(
        "--property", metavar="KEY=VALUE", action="append", default=[], help="asked when it is deployed"
    )
    parser.add_argument("--again", action="store_true", help="pack streams that are sound already, too")
    add_sealing(parser)
    add_packing(parser)
    add_disk_options(parser)
    parser.set_defaults(func=build_verb)


def build_verb(args: Namespace) -> int:
    """Unpack the arguments and build."""
    with without_blas_threads():
        from vmdkit.ova.build import Packing, build, plan
        from vmdkit.ova.lint import lint
        from vmdkit.ova.targets import parse_targets
    machine, targets = _machine(args)
    targets = parse_targets(args.targets) if args.targets else targets

    def open_source(disk: DiskSpec) -> Device:
        return open_disk(args, disk.source, raw=True if disk.raw else None)

    packing = Packing(level=level_of(args), threads=args.threads, again=args.again)
    seal = seal_of(args)
    with ExitStack() as opened:
        made = plan(machine, targets, packing, open_source, opened)
        sync = not args.no_sync
        with new_file(args.ova, 0, overwrite=args.force, sync=sync) as file, shown(args, made.total) as progress:
            written = build(file, made, seal, progress)
    if args.json:
        files = [{"file": piece.name, **_numbers(one)} for piece, one in zip(made.pieces, written, strict=True)]
        out_json({"file": args.ova, "size": os.stat(args.ova).st_size, "hardware": made.hardware, "disks": files})
    elif args.verbose:
        for note in made.notes:
            say(note)
        say(f"{args.ova}: {format_size(os.stat(args.ova).st_size)}, vmx-{made.hardware:02d}")
    warn(args, lint(args.ova, targets, shallow=True))
    return 0


def _numbers(one: Any) -> dict[str, int]:
    return {"size": one.size, "capacity": one.capacity, "populated": one.populated}


def warn(args: Namespace, report: Report) -> None:
    """Say what importers will mind about what was written."""
    from vmdkit.ova.rules import Level

    for finding in report.sorted():
        if finding.level in (Level.ERROR, Level.WARNING) and not args.quiet:
            say(f"{finding.level.value}: {finding.rule}: {finding.text} [{', '.join(finding.targets)}]")


def level_of(args: Namespace) -> int:
    """Return how hard to deflate; raises UsageError for a number that is no level."""
    from vmdkit import kernels

    if args.fast:
        return kernels.FAST
    level = kernels.LEVEL if args.level is None else args.level
    if level != kernels.STORED and level not in kernels.LEVELS:
        raise UsageError(f"--level {level}; from {kernels.LEVELS[0]} to {kernels.LEVELS[-1]} are due, or 0")
    return int(level)


def seal_of(args: Namespace) -> Seal:
    """Return how the archive is sealed. The time of the members is SOURCE_DATE_EPOCH, as for other packers."""
    from vmdkit.ova.writer import Seal

    epoch = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not (epoch.isascii() and epoch.isdigit() and len(epoch) <= 10):
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch[:40]!r}; seconds since 1970 are due")
    algorithm = _algorithm(args)
    seal = Seal("SHA256" if algorithm is None else algorithm, _signer(args), int(epoch))
    seal.check()
    return seal


def _algorithm(args: Namespace) -> str | None:
    """Return the digests that were asked for: empty for none, None where nothing was said."""
    return None if args.digest is None else "" if args.digest == "none" else str(args.digest).upper()


def _signer(args: Namespace) -> Signer | None:
    if not args.sign and not args.cert:
        return None
    if not args.sign or not args.cert:
        raise UsageError("--sign KEY and --cert CERT belong together")
    from vmdkit.ova.signature import Signer

    password = None
    if args.password_file:
        password = _read(args.password_file).split(b"\n", 1)[0].rstrip(b"\r")
    return Signer(_read(args.sign), _read(args.cert), password=password)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LARGEST_PEM)


# ── fix ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def register_fix(inner: Any, targets: str) -> None:
    """Add the parser of fix."""
    parser = inner.add_parser(
        "fix",
        help="write an OVA again as importers want it",
        description="Write X.ova as Y.ova with everything put right that can be; say each thing that was done. "
        "Exit: 0 done, 1 failed, 2 done, but some importer will still refuse it.",
    )
    parser.add_argument("ova", metavar="X.ova", help="an OVA, an .ovf, or a directory with one")
    parser.add_argument("-o", dest="output", metavar="Y.ova", help="what to write; needed unless --plan")
    parser.add_argument("--plan", action="store_true", help="only say what would be done")
    parser.add_argument("--for", dest="targets", metavar="TARGETS", action="append", default=[], help=targets)
    parser.add_argument("--accept-digests", action="store_true", help="take files whose digest is wrong")
    parser.add_argument("--again", action="store_true", help="pack every disk again")
    add_sealing(parser)
    add_packing(parser)
    parser.set_defaults(func=fix_verb)


def fix_verb(args: Namespace) -> int:
    """Unpack the arguments and fix."""
    with without_blas_threads():
        from vmdkit.ova.build import Packing
        from vmdkit.ova.fix import plan_fix, write_fix
        from vmdkit.ova.lint import lint, total_bytes
        from vmdkit.ova.package import Package
        from vmdkit.ova.targets import parse_targets
    if not args.output and not args.plan:
        raise UsageError("-o Y.ova is needed, or --plan")
    targets, seal = parse_targets(args.targets), seal_of(args)
    packing = Packing(level=level_of(args), threads=args.threads, again=args.again)
    with Package(args.ova) as package, ExitStack() as opened:
        with shown(args, total_bytes(args.ova)) as progress:
            repair = plan_fix(
                package, targets, packing, opened,
                accept_digests=args.accept_digests, signed=seal.signer is not None, algorithm=_algorithm(args),
                progress=progress,
            )  # fmt: skip
        if not args.plan:
            sync = not args.no_sync
            with (
                new_file(args.output, 0, overwrite=args.force, sync=sync) as file,
                shown(args, repair.total) as progress,
            ):
                write_fix(file, repair, seal, progress)
    report = lint(args.output, targets, shallow=True) if not args.plan else None
    code = 2 if report is not None and report.exit_code == 2 else 0
    if args.json:
        out_json({"file": args.output, "done": repair.done, "left": report.facts() if report is not None else None})
        return code
    if not args.quiet:
        for text in repair.done:
            out(text)
        if not repair.done:
            out("nothing to do" + ("" if args.plan else f"; {args.output} is a copy"))
    if report is not None:
        warn(args, report)
    return code


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────


def _machine(args: Namespace) -> tuple[Machine, tuple[Target, ...]]:
    """Return the machine of the YAML file with the options on top."""
    from vmdkit.ova.machine import DiskSpec, Machine, NicSpec, PropertySpec
    from vmdkit.ova.spec import parse_hardware, read_spec
    from vmdkit.ova.targets import parse_targets

    machine, targets = read_spec(args.spec) if args.spec else (Machine(nics=[NicSpec()]), parse_targets([]))
    for field, _ in _WORDS.values():
        value = getattr(args, f"machine_{field}")
        if value is not None:
            setattr(machine, field, value.lower() if field in ("firmware", "controller") else value)
    if not machine.name:
        machine.name = os.path.splitext(os.path.basename(args.ova))[0]
    if args.cpus is not None:
        machine.cpus = args.cpus
    if args.memory is not None:
        machine.memory = parse_size(args.memory)
    if args.hardware is not None:
        machine.hardware = parse_hardware(args.hardware)
    machine.secure_boot |= args.secure_boot
    machine.cdrom |= args.cdrom
    machine.disks += [DiskSpec(source=location) for location in args.disk]
    if args.raw:  # raw bytes may look like a disk; they are not to be taken for one
        machine.disks = [replace(disk, raw=bool(disk.source)) for disk in machine.disks]
    if args.nic:
        machine.nics = [_nic(text) for text in args.nic if text != "none"]
    machine.eulas += [_read(path).decode("utf-8") for path in args.eula]
    for text in args.property:
        key, _, default = text.partition("=")
        kept = [one for one in machine.properties if one.key != key]
        old = next((one for one in machine.properties if one.key == key), PropertySpec(key))
        machine.properties = [*kept, replace(old, default=default)]
    return machine, targets


def _nic(text: str) -> Any:
    from vmdkit.ova.machine import NicSpec

    kind, _, network = text.partition(":")
    return NicSpec(network or NicSpec().network, kind.lower())
