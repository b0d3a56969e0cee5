"""Run a program with modules of other packages replaced: ``python -m skyloom.compat drizzle -- script.py ...``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from skyloom.compat import PROVIDED, activate
from skyloom.errors import InputError

USAGE = (
    "usage: python -m skyloom.compat NAME[,NAME...] [--] (script.py | -m module) [argument ...]\n"
    f"NAME: what skyloom replaces for the program: {', '.join(sorted(PROVIDED))}"
)


def main(arguments: list[str]) -> None:
    """Activate what the first argument names, and run the rest as Python would."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        sys.exit(USAGE) if not arguments else print(USAGE)  # noqa: T201  the help that was asked for
        return
    names, program = arguments[0].split(","), arguments[1:]
    if program[:1] == ["--"]:
        program = program[1:]
    if program in ([], ["-m"]):
        sys.exit(USAGE)
    try:
        activate(*names)
    except InputError as error:
        sys.exit(f"{error}\n{USAGE}")
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        if not Path(program[0]).exists():
            sys.exit(f"There is no script {program[0]!r}.\n{USAGE}")
        sys.argv = program
        sys.path[0] = str(Path(program[0]).resolve().parent)
        runpy.run_path(str(Path(program[0]).absolute()), run_name="__main__")  # __file__ is absolute, as from Python


if __name__ == "__main__":
    main(sys.argv[1:])
