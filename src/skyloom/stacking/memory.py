"""How much memory a co-add may take, and planes that lie in memory or, where they would be too large, on disk."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, WriteError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
_FREE_SHARE = 0.6  # of the machine's memory that a co-add takes if nothing is said

Window = tuple[slice, slice]
"""Rows and columns of the output grid."""


def window_shape(window: Window) -> tuple[int, int]:
    """Return the shape (ny, nx) of a window."""
    return window[0].stop - window[0].start, window[1].stop - window[1].start


def parse_memory(value: int | str | None) -> int | None:
    """Return a number of bytes from a number or a text such as '1GiB', '800 MB' or '2g'.

    Raises
    ------
    InputError
        It is neither, or not above 0.
    """
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
    try:
        size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    except (ValueError, KeyError):
        size = 0.0
    if not (size > 0 and np.isfinite(size)):
        raise InputError(f"memory is {value!r}; a number of bytes above 0, or a text like '1GiB', is needed.")
    return int(size)


def resident_memory() -> int:
    """Return the bytes of memory that this process occupies now (where the system does not tell: at most so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak) * (1 if sys.platform == "darwin" else 1024)


def trim_memory() -> None:
    """Return freed memory to the system, where the C library keeps it for later (glibc)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros in memory of their own.

    What is kept for long does not lie between what comes and goes then, whose memory would stay occupied in pieces.
    """
    count = math.prod(shape)
    size = max(count * np.dtype(dtype).itemsize, 1)
    kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return np.frombuffer(mmap.mmap(-1, size, **kind), dtype, count).reshape(shape)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Budget:
    """What a co-add may take.

    Parameters
    ----------
    total : int
        Bytes, for the whole process.
    free : int
        What of it was free at the start; below 0 if the process had more than all of it.
    strict : bool
        Whether the user has set it; then a job that needs more is an error.
    """

    total: int
    free: int
    strict: bool

    @classmethod
    def of(cls, memory: int | str | None) -> Budget:
        """Return the budget of an option: the whole process shall not exceed it; None: what the machine has."""
        from skyloom.io.fits_file import memory_size

        asked = parse_memory(memory)
        total = int(_FREE_SHARE * memory_size()) if asked is None else asked
        trim_memory()
        return cls(total, total - resident_memory(), asked is not None)

    def check(self, needed: int, what: str) -> None:
        """Raise if something needs more than is free.

        Raises
        ------
        InputError
            With the smallest budget that would do.
        """
        if self.strict and needed > self.free:
            least = self.total - self.free + needed
            raise InputError(
                f"{what} needs {needed / 2**20:.0f} MiB, but of memory={self.total / 2**20:.0f} MiB only "
                f"{max(self.free, 0) / 2**20:.0f} MiB are free; at least {least / 2**20:.0f} MiB are needed.",
                needed=least,
                memory=self.total,
            )


class Scratch:
    """A folder for planes that do not fit into memory; made when it is first needed, removed at the end.

    Parameters
    ----------
    beside : path-like, optional
        File whose folder is used; by default that for temporary files.
    """

    def __init__(self, beside: str | os.PathLike[str] | None = None) -> None:
        self._parent = None if beside is None else Path(beside).expanduser().resolve().parent
        self._folder: Path | None = None
        self._room = 0
        self._count = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def plane(self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, on_disk: bool) -> Plane:
        """Return a plane of zeros; a `WriteError` says that the disk has no room for it."""
        if not on_disk:
            return Plane(zeros(shape, dtype))
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=".skyloom-", dir=self._parent))
            self._room = shutil.disk_usage(self._folder).free
        self._count += 1
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._room -= size
        if self._room < 0:  # a mapped file that finds the disk full ends the process
            raise WriteError(
                f"A co-add of {shape[-1]} x {shape[-2]} pixels needs {-self._room / 2**30:.1f} GiB more than are "
                f"free on the disk of {self._folder.parent}. Give more memory, an output on a larger disk, or a "
                "smaller grid.",
                missing=-self._room,
            )
        path = self._folder / f"{self._count}.raw"
        with path.open("wb") as file:  # a hole: zeros that take no room
            file.truncate(size)
        return Plane(path, shape, np.dtype(dtype))


class Plane:
    """An array in memory or in a file, read and written by windows of its last two axes.

    A file is mapped for one access at a time: what has been read or written does not stay in memory.
    """

    def __init__(
        self, store: npt.NDArray[Any] | Path, shape: tuple[int, ...] = (), dtype: npt.DTypeLike = np.float32
    ) -> None:
        self._store = store
        self.shape = store.shape if isinstance(store, np.ndarray) else shape
        self.dtype = store.dtype if isinstance(store, np.ndarray) else np.dtype(dtype)

    def _mapped(self, mode: Any) -> npt.NDArray[Any]:
        if isinstance(self._store, np.ndarray):
            return self._store
        return np.memmap(self._store, self.dtype, mode, shape=self.shape)

    def read(self, window: Window | None = None) -> npt.NDArray[Any]:
        """Return the values of a window: a copy from disk, a view of what is in memory."""
        array = self._mapped("r")
        part = array if window is None else array[(..., *window)]
        return part if isinstance(self._store, np.ndarray) else np.array(part)

    def write(self, window: Window, values: npt.ArrayLike) -> None:
        """Set the values of a window."""
        array = self._mapped("r+")
        array[(..., *window)] = values
