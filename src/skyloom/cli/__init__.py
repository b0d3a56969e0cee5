"""The command ``skyloom``: one file per sub-command.

Exit status: 0 all is well, 1 failed (one sentence on standard error says why), 2 partial (a result was written, but
some of the inputs are missing in it; the log says which), 128 + n ended by signal n (130: Ctrl-C, 143: SIGTERM).
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from skyloom import __version__
from skyloom.errors import SkyloomError

EXIT_OK, EXIT_FAILED, EXIT_PARTIAL = 0, 1, 2
_SIGNALLED = 128

_COMMANDS = ("difference", "register", "coadd", "detect", "demo")


class _Parser(argparse.ArgumentParser):
    """argparse ends with status 2 on a wrong option; here 2 means 'partial', so a wrong option ends with 1."""

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument COMMAND: invalid choice: '(.*?)'", message):
            word = found.group(1)
            near = [one for one in _COMMANDS if word and one.startswith(word)]
            near = near or difflib.get_close_matches(word, _COMMANDS, n=1, cutoff=0.5)
            meant = f"; do you mean {near[0]}?" if near else "."
            message = f"there is no command {word}{meant} There are {', '.join(_COMMANDS)}."
        self.print_usage(sys.stderr)
        self.exit(EXIT_FAILED, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; importing numpy or astropy here would slow down ``--help``."""
    parser = _Parser(
        prog="skyloom",
        description="Register, co-add and difference astronomical images, and find what changed in them.",
        epilog="'skyloom COMMAND --help' explains each command. 'skyloom demo' shows the whole on real images.",
    )
    parser.add_argument("--version", action="version", version=f"skyloom {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name in _COMMANDS:
        module = importlib.import_module(f"skyloom.cli.{name}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            usage=module.USAGE,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        volume = sub.add_argument_group("messages")
        volume.add_argument("-v", "--verbose", action="count", default=0, help="more messages (twice: all)")
        volume.add_argument("-q", "--quiet", action="store_true", help="only errors")
        options = [option for action in sub._actions for option in action.option_strings]
        sub.set_defaults(run=module.run, parser=sub, options=options, add_more=getattr(module, "add_more", None))
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; images may stand after options, where argparse alone finds them unexpected."""
    arguments, rest = build_parser().parse_known_args(argv)
    unknown = [one for one in rest if one.startswith("-") and one != "-"]
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], arguments.options, n=1)
        meant = f"do you mean {near[0]}? " if near else ""
        arguments.parser.error(f"there is no option {unknown[0]}; {meant}--help lists all.")
    if rest and arguments.add_more is None:
        arguments.parser.error(f"{rest[0]} is one argument too many.")
    if rest:
        arguments.add_more(arguments, rest)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = parse(argv)
    from skyloom.cli.messages import set_up_messages

    set_up_messages(arguments.verbose, arguments.quiet)
    return guarded(f"skyloom {arguments.command}", lambda: int(arguments.run(arguments)))


def guarded(name: str, job: Callable[[], int]) -> int:
    """Run a job and return its exit status; what goes wrong is told in one sentence that begins with `name`.

    A job that is told to end (SIGTERM, SIGHUP) ends like one that is interrupted, and removes its temporary files.
    """
    came: list[int] = []
    try:
        with _ends_in_order(came):
            status = job()
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except SkyloomError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except MemoryError:
        print(f"{name}: the machine's memory is not enough for this job.", file=sys.stderr)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted; {str(error) or 'nothing was written'}.", file=sys.stderr)
        return _SIGNALLED + (came[0] if came else signal.SIGINT)
    except OSError as error:  # files raise errors of skyloom: what names no file is standard output
        if not isinstance(error, BrokenPipeError):
            what = error.filename or "standard output"
            print(f"{name}: {what} cannot be used: {error.strerror}.", file=sys.stderr)
        # what is left in the buffer would fail again when Python ends
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED


@contextmanager
def _ends_in_order(came: list[int]) -> Iterator[None]:
    """Let signals that would end the process at once raise KeyboardInterrupt, as SIGINT does; `came` tells which."""

    def interrupt(number: int, _: object) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    changed = []
    if threading.current_thread() is threading.main_thread():  # no other may do this
        for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
