"""The scripts ``align-fits`` and ``align-fits-simple``: those of spalipy, see `skyloom.compat.spalipy`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from skyloom.errors import SkyloomError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``align-fits`` and return its exit status."""
    from skyloom.compat.spalipy._console import main as run

    return _run("align-fits", run, argv)


def main_simple(argv: Sequence[str] | None = None) -> int:
    """Run ``align-fits-simple`` and return its exit status."""
    from skyloom.compat.spalipy._console import main_simple as run

    return _run("align-fits-simple", run, argv)


def _run(name: str, run: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    try:
        run(argv)
    except SkyloomError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was written.", file=sys.stderr)
        return 1
    return 0
