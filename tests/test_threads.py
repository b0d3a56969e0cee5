"""The thread pool: order, errors, and the number of threads."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import warnings
import weakref

import pytest

from skyloom._threads import map_bands, num_threads, row_bands
from skyloom.errors import InputError, NoUsableDataError
from skyloom.pipeline.frames import each_usable


@pytest.mark.parametrize(("rows", "per_band"), [(1, 64), (64, 64), (65, 64), (1000, 7)])
def test_bands_cover_every_row_once(rows, per_band):
    bands = row_bands(rows, per_band)
    covered = [row for start, stop in bands for row in range(start, stop)]
    assert covered == list(range(rows))


def test_results_come_in_the_order_of_the_bands():
    assert map_bands(lambda band: band * 2, range(100), threads=4) == list(range(0, 200, 2))


def test_more_than_one_thread_works():
    both = threading.Barrier(2, timeout=30)  # each call waits for the other: with one thread it would break
    assert map_bands(lambda band: both.wait() >= 0, range(2), threads=2) == [True, True]


def test_the_first_error_in_order_is_raised():
    def fail(band):
        raise ValueError(str(band))

    with pytest.raises(ValueError, match=r"^0$"):
        map_bands(fail, range(5), threads=3)


def _fail(_):
    raise NoUsableDataError("nothing")


@pytest.mark.parametrize(
    "function",
    [lambda: map_bands(_fail, range(3), threads=2), lambda: each_usable([1, 2], _fail, "Frame")],
    ids=["map_bands", "each_usable"],
)
def test_an_error_keeps_nothing_alive(function):
    class Plane:
        pass

    def call():
        plane = Plane()
        kept.append(weakref.ref(plane))
        function()

    kept = []
    gc.disable()  # what only it would find is kept for long
    try:
        with contextlib.suppress(NoUsableDataError):
            call()
        for _ in range(500):  # threads may only be about to put the work aside
            if kept[0]() is None:
                break
            time.sleep(0.01)
        assert kept[0]() is None
    finally:
        gc.enable()


def test_number_of_threads_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "3")
    assert num_threads() == 3
    for wrong in ("0", "-1", "two", ""):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", wrong)
        with pytest.raises(InputError, match="SKYLOOM_NUM_THREADS"):
            num_threads()
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "9" * 30)
    assert 1 < num_threads() <= 1024
    monkeypatch.delenv("SKYLOOM_NUM_THREADS")
    assert num_threads() >= 1


def test_bands_may_cut_their_work_into_bands():
    both = threading.Barrier(2, timeout=30)

    def inner(band):
        both.wait()  # two at a time, whoever works on them
        return map_bands(lambda part: 10 * band + part, range(20), threads=3)

    assert map_bands(inner, range(4), threads=2) == [list(range(10 * band, 10 * band + 20)) for band in range(4)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_has_threads_of_its_own():
    map_bands(abs, range(4), threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads: that is the test
        child = os.fork()
    if child == 0:
        os._exit(0 if map_bands(abs, range(-3, 0), threads=2) == [3, 2, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
