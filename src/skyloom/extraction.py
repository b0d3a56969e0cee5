"""Extraction of sources by `sep`, with as large buffers as an image asks for."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import sep

from skyloom.errors import InputError

PIXELS, OBJECTS = 300_000, 1024
"""Least limits: of pixels above the threshold that are not yet assigned, and of pieces of one object."""
_LIMITS = threading.Lock()  # they are sep's, and thus those of all threads


def extract(data: npt.NDArray[Any], threshold: float, *, name: str = "the image", **options: Any) -> npt.NDArray[Any]:
    """Return the sources of a plane whose background has been subtracted: `sep.extract` with larger buffers on demand.

    Parameters
    ----------
    data : ndarray, shape (ny, nx)
    threshold : float
        In units of `err`, if that is given.
    name : str
        What messages call the image.
    **options
        As for `sep.extract`.

    Returns
    -------
    ndarray
        Structured array of the columns of `sep.extract`.

    Raises
    ------
    InputError
        If so many pixels are above the threshold that no buffer will do.
    """
    with _LIMITS:
        limits = sep.get_extract_pixstack(), sep.get_sub_object_limit()
        try:
            for scale in (1, 4, 16):
                # large buffers cost more time than the extraction itself, so they only grow on demand
                sep.set_extract_pixstack(min(max(limits[0], PIXELS) * scale, max(limits[0], data.size + 1000)))
                sep.set_sub_object_limit(max(limits[1], OBJECTS) * scale**2)
                try:
                    return np.asarray(sep.extract(data, threshold, **options))
                except Exception as error:  # sep raises bare Exceptions
                    if scale == 16 or not any(word in str(error) for word in ("buffer", "overflow")):
                        raise InputError(
                            f"The source extraction of {name} failed: {error}. Raise the threshold for stars, and "
                            "check that the background follows the sky.",
                            name=name,
                        ) from error
        finally:
            sep.set_extract_pixstack(limits[0])
            sep.set_sub_object_limit(limits[1])
    raise AssertionError("unreachable")
