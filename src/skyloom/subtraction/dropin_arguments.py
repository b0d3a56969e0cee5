"""Arguments that `run_hotpants`, `run_zogy` and `run_sfft` share: images, masks, noise, gains, messages."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from skyloom.errors import InputError, ReadError, ShapeError
from skyloom.exposure import LARGEST, BoolArray

Log = Callable[..., Any]


def logger(verbose: bool | Log) -> Log:
    """Return what to call with messages: `verbose` itself, print, or what does nothing."""
    return (verbose if callable(verbose) else print) if verbose else _silent


def _silent(*_: Any) -> None:
    pass


def real_plane(plane: Any, what: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[Any]:
    """Return a two-dimensional array of real numbers in native byte order, NaN where masked; paths are read.

    Raises
    ------
    InputError, ShapeError, ReadError
        It is something else, has another shape, or is a path to no FITS image.
    """
    if isinstance(plane, str | Path):
        try:
            plane = fits.getdata(plane)
        except (OSError, IndexError, KeyError) as error:
            raise ReadError(
                f"{what[0].upper() + what[1:]} is {str(plane)!r}, which is no FITS image: {error}."
            ) from error
    array = np.asarray(plane)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what[0].upper() + what[1:]} is of type {array.dtype}; real numbers are needed.")
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"{what[0].upper() + what[1:]} has the shape {array.shape}; an image (ny, nx) is needed.")
    if shape is not None and array.shape != shape:
        raise ShapeError(
            f"{what[0].upper() + what[1:]} has the shape {array.shape}, but {shape} is needed: all planes must be on "
            "the same grid.",
            found=array.shape,
            needed=shape,
        )
    if isinstance(plane, np.ma.MaskedArray):
        array = np.where(np.ma.getmaskarray(plane), np.nan, array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def bad_plane(mask: Any, shape: tuple[int, ...], what: str) -> BoolArray:
    """Return a mask as booleans, True where it is not 0; nothing is bad without one."""
    if mask is None:
        return np.zeros(shape, bool)
    return np.asarray(real_plane(mask, what, shape) != 0)


def error_plane(err: Any, shape: tuple[int, ...], what: str) -> npt.NDArray[np.float64] | None:
    """Return standard deviations, None if `err` does not give any (None, False, True); one number counts for all."""
    if err is None or err is False or err is True:
        return None
    if np.ndim(err) == 0 and not isinstance(err, str | Path):
        err = np.broadcast_to(err, shape)
    return real_plane(err, what, shape).astype(np.float64)


def usable_errors(err: npt.NDArray[Any], *, zero: bool = False) -> BoolArray:
    """Return True where a standard deviation is a number above 0 (with `zero`: or 0) that an image can have."""
    return np.asarray(((err >= 0) if zero else (err > 0)) & (err <= LARGEST))


def check_gain(gain: Any, what: str) -> None:
    """Raise InputError for a gain that is no finite number above 0."""
    if gain is not None and not (isinstance(gain, Real) and 0 < float(gain) < np.inf):
        raise InputError(f"{what} is {gain!r}; a finite number above 0 is needed.", gain=gain)
