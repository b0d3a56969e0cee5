"""Arrays in unlinked temporary files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__: list[str] = []


def _c_array_prep(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array in the machine's byte order and C order, the same one if it is so already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _memmap_create_temp(ndarray_to_save: npt.NDArray[Any], temp_dir: str | Path | None = None) -> np.memmap:
    """Return a copy of an array that lives in a temporary file, which is gone when the array is."""
    with tempfile.TemporaryFile(dir=temp_dir) as file:  # the mapping outlives the file's name and handle
        result = np.memmap(file, ndarray_to_save.dtype, "w+", shape=ndarray_to_save.shape)
    result[...] = ndarray_to_save
    return result


def _memmap_tryfree(obj: Any) -> bool:
    """Close the file of a memory-mapped array; tell whether it was one. The array must not be used afterwards."""
    mapping = getattr(obj, "_mmap", None)
    if mapping is None:
        return False
    mapping.close()
    return True
