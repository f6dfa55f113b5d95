# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""``vmdkit serve``: export disks over NBD.

Standard output may be the NBD stream (-s), so nothing is printed there.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdkit.cli.disk import add_disk_options, open_disk
from vmdkit.cli.render import say
from vmdkit.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from vmdkit.cli.parser import Parser, Verbs
    from vmdkit.nbd import Export, Options, Tls
    from vmdkit.nbd.listening import Listener
    from vmdkit.nbd.server import Service
    from vmdkit.nbd.workers import Prefork

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EPILOG = """\
Without -U, -p, -i, --vsock, -s or socket activation the server makes a Unix socket in a private directory and says
where. Sockets of the file system can be opened by this user only; TCP binds to the loopback address unless -i says
otherwise, and an address that others can reach needs TLS. The command of --run finds $uri, $unixsocket, $port and
$exportname in its environment; its exit status becomes the server's.
"""


def register(verbs: Verbs) -> None:
    """Add the parser of this verb."""
    parser = verbs.add_parser(
        "serve",
        help="export disks over NBD",
        description="Export disks over NBD, for reading unless -w is given.",
        epilog=_EPILOG,
    )
    parser.add_argument("disks", metavar="DISK", nargs="+")
    parser.add_argument("-w", "--writable", action="store_true", help="let clients write")
    parser.add_argument(
        "-x", "--export-name", metavar="NAME", action="append", default=[],
        help="name of the export, once for each DISK (default: '' for one, the file names for several)",
    )  # fmt: skip
    parser.add_argument(
        "-D", "--description", metavar="TEXT", action="append", default=[], help="what clients are told of the export"
    )
    _add_addresses(parser)
    _add_life(parser)
    _add_tls(parser)
    add_disk_options(parser, tls=False)  # --tls-… is about our clients; a DISK's server is spoken to as its URI says
    parser.set_defaults(func=serve_verb)


def _add_addresses(parser: Parser) -> None:
    group = parser.add_argument_group("where clients come from")
    group.add_argument("-U", "--unix", metavar="SOCKET", help="a Unix socket; '-' makes one in a private directory")
    group.add_argument("-p", "--port", type=int, metavar="PORT", help="TCP (10809 is NBD's port; 0 takes a free one)")
    group.add_argument("-i", "--address", metavar="ADDR", help="address for TCP (default 127.0.0.1)")
    group.add_argument("--vsock", type=int, metavar="PORT", help="virtual machines on this host")
    group.add_argument("-s", "--single", action="store_true", help="one client on standard input and output")
    group.add_argument(
        "--i-know-it-is-open", action="store_true", help="allow an address that others can reach, without TLS"
    )


def _add_life(parser: Parser) -> None:
    group = parser.add_argument_group("life of the server")
    group.add_argument("-t", "--persistent", action="store_true", help="go on when the last client has left")
    group.add_argument(
        "-e", "--shared", type=int, metavar="N", help="clients at once, further ones wait (default 64, 0 no limit)"
    )
    group.add_argument("--processes", type=int, metavar="N", help="processes that serve (default: processors, up to 4)")
    group.add_argument("-P", "--pid-file", metavar="FILE", help="write the process ID there once clients can connect")
    group.add_argument("--run", metavar="CMD", help="run CMD in a shell beside the server, and end with it")
    group.add_argument("--exit-with-parent", action="store_true", help="end when the starting process ends")


def _add_tls(parser: Parser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--tls", choices=("off", "on", "require"), help="default: require with certificates or keys, else off"
    )
    group.add_argument("--tls-certificates", metavar="DIR", help="holds server-cert.pem, server-key.pem, ca-cert.pem")
    group.add_argument("--tls-verify-peer", action="store_true", help="clients need certificates signed by the CA")
    group.add_argument("--tls-psk", metavar="FILE", help="keys shared beforehand, as psktool writes them")


@dataclass(frozen=True)
class Address:
    """Where a server is to be reached; with nothing given, a private Unix socket."""

    unix: str | None = None
    port: int | None = None
    host: str | None = None
    vsock: int | None = None
    single: bool = False
    open_allowed: bool = False


@dataclass(frozen=True)
class Life:
    """What surrounds the serving."""

    pid_file: str | None = None
    command: str | None = None
    say_uri: bool = False
    quiet: bool = False


def serve_verb(args: Namespace) -> int:
    """Unpack the arguments, open the disks, serve."""
    from vmdkit.nbd import activation
    from vmdkit.nbd.export import Export
    from vmdkit.nbd.server import MOST_CLIENTS, Options

    parent = os.getppid()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads that would only be in the way of forking
    if args.exit_with_parent:
        activation.exit_with_parent(parent)
    address = Address(args.unix, args.port, args.address, args.vsock, args.single, args.i_know_it_is_open)
    life = Life(args.pid_file, args.run, bool(args.verbose), args.quiet)
    options = Options(
        tls=_tls(args.tls, args.tls_certificates, args.tls_psk, args.tls_verify_peer),
        most_clients=MOST_CLIENTS if args.shared is None else args.shared,
        persistent=args.persistent or args.run is not None,
        processes=args.processes or 0,
    )
    if min(options.most_clients, options.processes) < 0:
        raise UsageError("-e and --processes take a number of clients or processes, not less than 0")
    names = _one_for_each("-x", args.export_name, args.disks) or _names(args.disks)
    texts = _one_for_each("-D", args.description, args.disks) or [""] * len(args.disks)
    sockets = activation.activated(os.environ)
    with ExitStack() as stack:
        exports = [
            Export(
                stack.enter_context(open_disk(args, disk, writable=args.writable)), name, text, not args.writable
            )
            for disk, name, text in zip(args.disks, names, texts, strict=True)
        ]  # fmt: skip
        return serve(exports, address, options, life, sockets)


def _one_for_each(option: str, given: Sequence[str], disks: Sequence[str]) -> list[str]:
    if given and len(given) != len(disks):
        raise UsageError(f"{len(disks)} disks, but {option} was given {len(given)} times; once for each, or not at all")
    return list(given)


def _names(disks: Sequence[str]) -> list[str]:
    return [""] if len(disks) == 1 else [os.path.basename(disk) for disk in disks]


def _tls(wish: str | None, certificates: str | None, psk: str | None, verify: bool) -> Tls:
    from vmdkit.nbd import tls
    from vmdkit.nbd.negotiation import TlsMode

    if certificates and psk:
        raise UsageError("--tls-certificates or --tls-psk, not both")
    mode = TlsMode(wish or ("require" if certificates or psk else "off"))
    if mode is TlsMode.OFF:
        if verify:
            raise UsageError("--tls-verify-peer means nothing without TLS; give --tls-certificates DIR")
        return tls.Tls()
    if psk:
        if verify:
            raise UsageError("--tls-verify-peer goes with certificates; who has no key is refused anyway")
        return tls.with_psk(psk, mode=mode)
    if not certificates:
        raise UsageError(f"--tls {wish} needs --tls-certificates DIR or --tls-psk FILE")
    return tls.with_certificates(certificates, verify_peer=verify, mode=mode)


def serve(
    exports: Sequence[Export], address: Address, options: Options, life: Life, sockets: Sequence[Listener] = ()
) -> int:
    """Serve until the last client, the command or a signal ends it; returns the exit status.

    ``sockets`` were passed by socket activation and take the place of an address.
    """
    if address.single:
        if sockets or address != Address(single=True, open_allowed=address.open_allowed) or life.command is not None:
            raise UsageError("-s serves standard input and output; it goes with no address and no --run")
        return _serve_single(exports, options, life)
    if sockets and address != Address(open_allowed=address.open_allowed):
        raise UsageError("sockets were passed by socket activation; then no address can be given")
    with ExitStack() as stack:
        listeners = list(sockets) or _listen(address)
        for listener in listeners:
            stack.callback(listener.close)
        for listener in listeners:
            if listener.open and not options.tls.required and not address.open_allowed:
                raise UsageError(
                    f"{listener.uri()} can be reached by others, who could read"
                    f"{' and write' if exports[0].writable else ''} everything; use TLS (--tls-psk FILE), or "
                    "--i-know-it-is-open if that is meant"
                )
        return _serve_listeners(exports, listeners, options, life, announce=not sockets and address == Address())


def _listen(address: Address) -> list[Listener]:
    from vmdkit.nbd import listening
    from vmdkit.nbd.protocol import DEFAULT_PORT

    made = []
    tcp_asked = address.port is not None or address.host is not None
    if address.unix is not None or not (tcp_asked or address.vsock is not None):
        made.append(listening.unix(None if address.unix in (None, "-") else address.unix))
    if tcp_asked:
        made.append(listening.tcp(address.host, DEFAULT_PORT if address.port is None else address.port))
    if address.vsock is not None:
        made.append(listening.vsock(address.vsock))
    return made


def _serve_single(exports: Sequence[Export], options: Options, life: Life) -> int:
    from vmdkit.nbd.activation import standard_socket
    from vmdkit.nbd.export import Exports
    from vmdkit.nbd.server import Service

    with ExitStack() as stack:
        service = Service(Exports(exports), (), options)
        signals = _stop_on_signals(service)
        _write_pid(life, stack)
        sock, said = standard_socket()
        service.add(sock, "standard input")
        service.run()
        if not signals:  # who asks to end does not want to wait for a reader
            for number in _ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            said()
    return 0


def _serve_listeners(
    exports: Sequence[Export], listeners: Sequence[Listener], options: Options, life: Life, *, announce: bool
) -> int:
    from dataclasses import replace

    from vmdkit.nbd.export import Exports
    from vmdkit.nbd.server import Service
    from vmdkit.nbd.workers import Prefork, sensible_processes

    known = Exports(exports)
    options = replace(options, processes=sensible_processes(known, options.processes))
    service = Service(known, listeners, options) if options.processes == 1 else Prefork(known, listeners, options)
    _stop_on_signals(service)
    uris = [listener.uri(export.name, tls=options.tls.required) for listener in listeners for export in exports]
    if life.say_uri or (announce and not life.quiet and life.command is None):
        for uri in uris:
            say(uri)
    with ExitStack() as stack:
        _write_pid(life, stack)
        child = None
        if life.command is not None:
            child = _start(life.command, uris[0], listeners, exports[0].name)
            pidfd = os.pidfd_open(child.pid)
            stack.callback(os.close, pidfd)
            service.when_readable(pidfd, service.stop)
        try:
            service.run()
        finally:
            status = _ended(child) if child is not None else 0
    return status


def _stop_on_signals(service: Service | Prefork) -> list[int]:
    """Have signals stop the service; returns a list that gets the numbers of those that came."""
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        service.stop()

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, stop)
    return came


def _start(command: str, uri: str, listeners: Sequence[Listener], name: str) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, uri=uri, exportname=name)
    for listener in listeners:
        if listener.path is not None:
            environment["unixsocket"] = listener.path
        else:
            environment["port"] = str(listener.port)
    return subprocess.Popen(["/bin/sh", "-c", command], env=environment)


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Return a command's exit status as a shell tells it; end the command if it has not ended by itself."""
    if child.poll() is None:
        child.terminate()
    status = child.wait()
    return 128 - status if status < 0 else status


def _write_pid(life: Life, stack: ExitStack) -> None:
    if life.pid_file is None:
        return
    with open(life.pid_file, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    path = life.pid_file

    def remove() -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    stack.callback(remove)
