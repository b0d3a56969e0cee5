"""Work spread over processes, of which any may fail or die without the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from skyloom._threads import num_threads
from skyloom.errors import SkyloomError

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 30.0
"""Seconds that a process has to remove its temporary files when it is told to end."""


class WorkerError(SkyloomError):
    """A process ended in the middle of its work: killed for its memory, say."""


def work_through(
    start: Callable[[], Callable[[T], R]], items: Sequence[T], jobs: int
) -> Generator[tuple[int, R | WorkerError]]:
    """Apply a function to all items, in several processes.

    Parameters
    ----------
    start : callable
        Called once in each process; returns the function. What it and the items are must be possible to pickle.
    items : sequence
        What the function is applied to.
    jobs : int
        Number of processes. One: the calling process. The processors are shared out to them as threads.

    Yields
    ------
    index, result
        As they become known; a WorkerError where the process died, or where none is left.

    Raises
    ------
    SkyloomError
        That of `start`, or a process died in it, and no other has begun its work.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        function = start() if items else None
        for number, item in enumerate(items):
            assert function is not None
            yield number, function(item)
        return
    threads = max(1, num_threads() // jobs)
    waiting = deque(enumerate(items))
    workers: list[_Worker] = []
    failure: Exception | None = None
    try:
        for _ in range(jobs):
            workers.append(_Worker(start, threads))  # noqa: PERF401  # each ends below, also if the next cannot be made
        while busy := {one.connection: one for one in workers if one.process is not None}:
            for connection in wait(list(busy)):
                one = busy[connection]  # type: ignore[index]
                index, result = one.answer()
                if index is not None:
                    yield index, result
                    if one.process is None and waiting:
                        try:
                            workers.append(_Worker(start, threads))
                        except OSError as error:
                            failure = error
                elif result is not None:  # it could not be begun: the others go on
                    failure = result
                    one.end()
                if one.process is not None:
                    if waiting:
                        one.begin(waiting.popleft())
                    else:
                        one.end()
        if waiting and failure is not None:
            if len(waiting) == len(items):
                raise failure
            for left, _ in waiting:
                yield left, WorkerError(f"Not tried, for no process is left: {failure}")
    finally:
        for one in workers:
            one.terminate()
        for one in workers:
            one.end()


class _Worker:
    """One process, and the item that it works on."""

    def __init__(self, start: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take over locks of threads
        self._index: int | None = None
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, start, threads), daemon=True)
        with _interrupts_ignored():  # also by the process: it is this one that tells it to end
            self.process.start()
        theirs.close()

    def answer(self) -> tuple[int | None, Any]:
        """Return the item (None: there was none yet) and its result; or what went wrong, as an exception."""
        index, self._index = self._index, None
        try:
            return index, self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            exitcode = self.process.exitcode
            self.end()
        message = f"The process ended unexpectedly (status {exitcode})"
        if index is None:
            message += (
                " before its first image: the memory may be too small for so many processes. In a script, "
                "the call must stand below: if __name__ == '__main__'."
            )
        else:
            message += ", as it does when the memory is not enough. Use fewer processes."
        return index, WorkerError(message, exitcode=exitcode)

    def begin(self, item: tuple[int, Any]) -> None:
        """Give the process its next item."""
        self._index = item[0]
        with suppress(OSError):  # it has died: `answer` will tell
            self.connection.send(item[1])

    def terminate(self) -> None:
        """Interrupt the work."""
        if self.process is not None:
            self.process.terminate()

    def end(self) -> None:
        """Wait for the process, which has nothing more to do."""
        if self.process is None:
            return
        self.connection.close()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = None


def _serve(connection: Connection, start: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    """Be a process: start, then answer every item until the connection is closed."""
    signal.signal(signal.SIGTERM, _stop)
    os.environ["SKYLOOM_NUM_THREADS"] = str(threads)
    with suppress(KeyboardInterrupt, EOFError, ConnectionError):
        try:
            function = start()
        except Exception as error:  # noqa: BLE001  # the other end tells it
            if not isinstance(error, SkyloomError):  # others may be impossible to pickle
                advice = " Use fewer processes." if isinstance(error, MemoryError) else ""
                error = WorkerError(f"A process could not begin its work: {error!r}.{advice}")
            connection.send(error)
            return
        connection.send(None)
        while True:
            connection.send(function(connection.recv()))


def _stop(number: int, _: Any) -> None:
    """Interrupt the work, once: temporary files are then removed in peace."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other may do this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
