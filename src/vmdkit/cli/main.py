# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The command: find the verb, import only its module, turn every error into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 the words are no command line, 3 written, and proved wrong, 128 + N ended by signal N;
verbs may define more.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from vmdkit import __version__
from vmdkit.cli.parser import Parser, add_general_options, parse_defaults
from vmdkit.cli.program import programs
from vmdkit.cli.render import describe, out, say
from vmdkit.errors import DifferenceError, VmdkitError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# verb -> (module with register(verbs), one line); a module is imported when its verb is used
VERBS = {
    "info": ("vmdkit.cli.info", "say what a disk is: format, size, extents, chain, doubts"),
    "check": ("vmdkit.cli.check", "say what is wrong with a disk"),
    "map": ("vmdkit.cli.map", "say where the bytes of a disk are: table, JSON or HTML"),
    "create": ("vmdkit.cli.create", "make a new disk, or a child"),
    "snapshot": ("vmdkit.cli.snapshot", "make a child that gets all writes from now on"),
    "commit": ("vmdkit.cli.commit", "merge a child into its parent"),
    "rebase": ("vmdkit.cli.rebase", "give a child another parent, or none"),
    "resize": ("vmdkit.cli.resize", "make a disk larger or smaller"),
    "measure": ("vmdkit.cli.measure", "forecast how large a disk becomes in a format"),
    "compact": ("vmdkit.cli.compact", "make a disk's files as small as its data"),
    "convert": ("vmdkit.cli.convert", "write a disk in another format"),
    "copy": ("vmdkit.cli.copy", "copy bytes into a disk that is there"),
    "compare": ("vmdkit.cli.compare", "tell whether two disks hold the same bytes"),
    "hash": ("vmdkit.cli.hash", "digest the bytes that the guest sees"),
    "report": ("vmdkit.cli.report", "show what was proved of a copy"),
    "repair": ("vmdkit.cli.repair", "mend a disk, or say how"),
    "unlock": ("vmdkit.cli.unlock", "remove the locks that a dead program has left"),
    "ova": ("vmdkit.cli.ova", "build, check, mend and unpack appliances (OVA)"),
    "serve": ("vmdkit.cli.serve", "export disks over NBD"),
    "torture": ("vmdkit.cli.torture", "cut the power of a writer, and see what it had promised"),
}


_MOST_FILES = 1 << 16


class _Ended(BaseException):
    """A signal asks to end; unwinds like KeyboardInterrupt, so that nothing half-written stays."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run() -> int:
    """Be the program: return the exit code, with both outputs flushed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup stays in force
            signal.signal(number, _end)
    _allow_many_files()
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail again at exit, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        error.filename = "standard output"
        say(describe(error))
        return code or 1
    return code


def _allow_many_files() -> None:
    """Have as many files open as the system lets us: a split disk of 2 TiB has more than a thousand, all in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the program's own) and return its exit code."""
    verbose = 0
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        verbose = sum(word.startswith("-v") or word == "--verbose" for word in words)
        return _dispatch(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except _Ended as end:
        say(f"ended by {signal.Signals(end.number).name}")
        return 128 + end.number
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except (VmdkitError, OSError, MemoryError) as error:
        say(describe(error))
        _trace(verbose)
        return 3 if isinstance(error, DifferenceError) else 1
    except Exception as error:
        say(f"this is a bug in vmdkit, please report it: {type(error).__name__}: {error} (-v shows where)")
        _trace(verbose)
        return 1


def _dispatch(words: list[str]) -> int:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] == "--progress" else 1
    parser = Parser("vmdkit", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    add_general_options(parser)
    args = parser.parse_args(words[:at], parse_defaults())
    verb, rest = (words[at], words[at + 1 :]) if at < len(words) else ("", [])
    if args.version:
        out(f"vmdkit {__version__}")
        return 0
    if args.help or verb in ("", "help"):
        _help()
        return 0 if args.help or verb else 2
    if verb not in VERBS:
        near = import_module("difflib").get_close_matches(verb, VERBS, 1)
        parser.error(f"no verb is called {verb!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    verbs = parser.add_subparsers(dest="verb")
    import_module(VERBS[verb][0]).register(verbs)
    add_general_options(verbs.choices[verb])
    parser.usage_code = verbs.choices[verb].usage_code  # it is the outer parser that meets an unknown option
    args = parser.parse_args([verb, *programs(rest)], args)
    import_module("vmdkit.cli.log").configure(args.verbose, args.quiet)
    code: int = args.func(args)
    return code


def _help() -> None:
    out("usage: vmdkit VERB ... [-q] [-v] [--json] [--progress bar|json|none]")
    out("Read every VMware VMDK and serve it over NBD. 'vmdkit VERB --help' says more.")
    out()
    for verb, (_, line) in VERBS.items():
        out(f"  {verb:<10} {line}")
    out()
    out("  --version  print the version")


def _trace(verbose: int) -> None:
    if verbose:
        for line in import_module("traceback").format_exc().splitlines():
            say(line)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise _Ended(number)


if __name__ == "__main__":
    sys.exit(run())
