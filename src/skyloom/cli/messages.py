"""Messages and progress of the command line: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger("skyloom")

_shown: dict[str, None] = {}

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""


def set_up_messages(verbose: int = 0, quiet: bool = False) -> None:
    """Send the package's log, and its warnings, to standard error in the asked detail."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s" if verbose > 1 else "%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    warnings_as_messages(everything=verbose > 1)


def warnings_as_messages(everything: bool = False) -> None:
    """Send the package's warnings to its log; what other libraries warn of is dropped, unless `everything` is shown."""
    warnings.showwarning = _log_warning
    _shown.clear()
    if not everything:
        # dates in headers, unused keywords: noise for a user of the command line
        warnings.simplefilter("ignore")
    from skyloom.errors import SkyloomWarning

    warnings.simplefilter("always", SkyloomWarning)


def warnings_shown() -> list[str]:
    """Return what the package has warned of, in the order in which it did."""
    return list(_shown)


def _log_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if str(message) not in _shown:  # an image that is read again warns again
        _shown[str(message)] = None
        logger.warning("%s: %s", "warning" if category.__name__ == "SkyloomWarning" else category.__name__, message)


@contextlib.contextmanager
def progress_bar(quiet: bool = False, lines: bool = True) -> Iterator[Progress]:
    """Yield a function ``progress(what, done, total)`` that shows how far a job has come, by a bar or else by lines."""
    bar = None if quiet or not sys.stderr.isatty() else _rich_bar()
    if bar is None:
        last: list[str] = []

        def log_line(what: str, done: int, total: int) -> None:
            if lines and last[-1:] != [what]:
                last.append(what)
                logger.info("[%d/%d] %s", min(done + 1, total), total, what)

        yield log_line
        return
    with bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
