"""The scripts ``align-fits`` and ``align-fits-simple``: those of spalipy, see `skyloom.compat.spalipy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyloom.cli import EXIT_OK, guarded
from skyloom.cli.messages import warnings_as_messages


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``align-fits`` and return its exit status."""
    from skyloom.compat.spalipy._console import main as run

    return _run("align-fits", run, argv)


def main_simple(argv: Sequence[str] | None = None) -> int:
    """Run ``align-fits-simple`` and return its exit status."""
    from skyloom.compat.spalipy._console import main_simple as run

    return _run("align-fits-simple", run, argv)


def _run(name: str, run: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    def job() -> int:
        warnings_as_messages()
        run(argv)
        return EXIT_OK

    return guarded(name, job)
