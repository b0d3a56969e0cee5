"""Silence for what astropy says about headers that it repairs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def quiet_astropy() -> Iterator[None]:
    """Ignore all warnings, and astropy's log below errors, in a block of code.

    One thread at a time: the filters of `warnings` are global, and two threads that leave such a block in the order in
    which they entered it would leave them ignored for ever.
    """
    from astropy import log

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel("ERROR")
        try:
            yield
        finally:
            log.setLevel(level)
