"""Work spread over processes, of which any may fail or die without the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
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
        As they become known; a WorkerError where the process died.

    Raises
    ------
    SkyloomError
        That of `start`. Or a process died in it.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        function = start() if items else None
        for index, item in enumerate(items):
            assert function is not None
            yield index, function(item)
        return
    threads = max(1, num_threads() // jobs)
    waiting = iter(enumerate(items))
    workers = []
    try:
        workers = [_Worker(start, threads) for _ in range(jobs)]
        while busy := {one.connection: one for one in workers if one.process is not None}:
            for connection in wait(list(busy)):
                one = busy[connection]  # type: ignore[index]
                yield from one.answer()
                if not one.ready:
                    continue
                following = next(waiting, None)
                if following is None:
                    one.end()
                else:
                    one.begin(following)
    finally:
        for one in workers:
            one.terminate()
        for one in workers:
            one.end()


class _Worker:
    """One process, and the item that it works on."""

    def __init__(self, start: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        self._start, self._threads = start, threads
        self._index: int | None = None
        self._launch()

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take over locks of threads
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, self._start, self._threads), daemon=True)
        with _interrupts_ignored():  # also by the process: it is this one that tells it to end
            self.process.start()
        theirs.close()
        self.ready = False

    def answer(self) -> list[tuple[int, Any]]:
        """Return the result that has come, if any."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            how = f"The process ended unexpectedly (status {self.process.exitcode})"
            if not self.ready:
                raise WorkerError(
                    f"{how} before its first image: the memory may be too small for so many processes. In a script, "
                    "the call must stand below: if __name__ == '__main__'.",
                    exitcode=self.process.exitcode,
                ) from None
            died = WorkerError(
                f"{how}, as it does when the memory is not enough. Use fewer processes.", exitcode=self.process.exitcode
            )
            self.end()
            self._launch()
            return [] if self._index is None else [(self._index, died)]
        if not self.ready:
            if isinstance(result, SkyloomError):
                raise result
            self.ready = True
            return []
        index, self._index = self._index, None
        assert index is not None
        return [(index, result)]

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
        except SkyloomError as error:
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
