"""One thread pool for the whole package.

Work is cut into bands by the size of the problem, never by the number of threads, and each band is written by exactly
one call: the result is bit-identical for any number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from skyloom.errors import InputError

_MOST_THREADS = 1024  # no machine gains from more, and none has the memory for any number of them


def _new_pool() -> None:
    global _pool  # noqa: PLW0603  # a forked process has none of the threads
    _pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="skyloom")  # starts threads as they are needed


_pool: ThreadPoolExecutor
_new_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)

T = TypeVar("T")
R = TypeVar("R")


def num_threads() -> int:
    """Return the number of threads to use: ``SKYLOOM_NUM_THREADS``, else the CPUs this process may use."""
    value = os.environ.get("SKYLOOM_NUM_THREADS")
    if value is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"SKYLOOM_NUM_THREADS is {value!r}; it must be a whole number of at least 1.")
    return min(count, _MOST_THREADS)


def map_bands(function: Callable[[T], R], bands: Iterable[T], threads: int | None = None) -> list[R]:
    """Apply `function` to every band, on up to `threads` threads, and return the results in the order of `bands`.

    The first error (in the order of the bands) is raised after all started bands have ended.
    """
    bands = list(bands)
    count = min(num_threads() if threads is None else threads, len(bands))
    if count <= 1:
        return [function(band) for band in bands]
    results: list[Any] = [None] * len(bands)
    errors: dict[int, BaseException] = {}
    waiting = deque(range(len(bands)))

    def work() -> None:
        while True:
            try:
                number = waiting.popleft()
            except IndexError:
                return
            try:
                results[number] = function(bands[number])
            except BaseException as error:  # noqa: BLE001  # raised below, in the thread that called
                errors[number] = error
                waiting.clear()

    helpers = [_pool.submit(work) for _ in range(count - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # those that have not begun have nothing left to do
            helper.result()
    if errors:
        try:
            raise errors[min(errors)]
        finally:  # or the error would hold itself by its traceback, and with it all planes of those who called
            errors.clear()
    return results


def row_bands(n_rows: int, rows_per_band: int = 64) -> list[tuple[int, int]]:
    """Cut `n_rows` rows into half-open bands ``(start, stop)`` of `rows_per_band` rows; the last may be shorter."""
    return [(start, min(start + rows_per_band, n_rows)) for start in range(0, n_rows, rows_per_band)]


_BLAS_LOCK = threading.Lock()
_blas: ThreadpoolController | None = None


@contextmanager
def serial_blas() -> Iterator[None]:
    """Keep BLAS to one thread inside: many small matrices on our own threads, and the same bits for any number of them.

    The libraries' own pools would fight with ours for the processors. The limit is that of the whole process while the
    context lasts.
    """
    global _blas  # noqa: PLW0603  # looking for the libraries takes milliseconds: done once
    with _BLAS_LOCK:
        if _blas is None:
            _blas = ThreadpoolController()
    with _blas.limit(limits=1, user_api="blas"):
        yield
