"""What a drizzle accepts for its planes, and what it says when it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray


class DtypeError(InputError, TypeError):
    """A plane of bits has a type that does not fit into 32 bits."""


def fill_text(value: Any, given: bool) -> str:
    """Return a fill value as its property shows it: 'INDEF' (leave pixels as they are), 'NaN' or a number as text.

    Parameters
    ----------
    value : float, str or None
        What the caller asked for. None, '' and 'INDEF' are the same.
    given : bool
        Whether the plane to fill came from the caller; a new plane starts as NaN where there is nothing to leave.
    """
    text = "INDEF" if value is None else str(value).strip()
    if text.upper() in ("", "INDEF"):
        return "INDEF" if given else "NaN"
    try:
        float(text)
    except ValueError as error:
        raise InputError(str(error), fillval=value) from None
    return text


def fill_number(text: str) -> float | None:
    """Return the number of `fill_text`, or None for 'INDEF'."""
    return None if text == "INDEF" else float(text)


def as_array(array: Any, what: str, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Return `array` as an array, of a given type if one is given, without a copy where it is one already.

    Raises
    ------
    InputError
        This is no array of real numbers: text, rows of different lengths, complex numbers.
    """
    try:
        array = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise InputError(f"'{what}' is no array of numbers: {error}.", type=type(array).__name__) from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"'{what}' is of type {array.dtype}; real numbers are needed.", dtype=str(array.dtype))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return np.asarray(array, dtype=dtype)


def hides_pixels(array: Any) -> bool:
    """Return whether this is a masked array with masked pixels.

    `numpy.ma.is_masked` fails with arrays of other kinds that have a mask of their own, such as those of asdf.
    """
    return isinstance(array, np.ma.MaskedArray) and bool(np.ma.is_masked(array))


def real_plane(array: Any, what: str) -> FloatArray:
    """Return `array` as float32 or float64, without a copy where it is one of these already.

    Wider floats and integers that float32 cannot hold become float64. Strides of whole elements are kept.
    Pixels that a masked array hides are NaN.
    """
    hidden = np.ma.getmaskarray(array) if hides_pixels(array) else None
    array = as_array(array, what)
    wide = array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)
    array = array.astype(np.float64 if wide else np.float32, copy=False)
    return strided(array if hidden is None else np.where(hidden, array.dtype.type(np.nan), array))


def representable(plane: FloatArray, scale: float, dtype: npt.DTypeLike) -> FloatArray:
    """Return `plane` with NaN where `scale` times its value is more than the type of the output can hold."""
    limit = float(np.finfo(dtype).max) / scale
    if limit >= float(np.finfo(plane.dtype).max):
        return plane
    if np.fmax.reduce(plane, axis=None) <= limit and np.fmin.reduce(plane, axis=None) >= -limit:
        return plane
    return np.where(np.abs(plane) <= limit, plane, plane.dtype.type(np.nan))


def list_of(planes: Any, what: str) -> list[Any]:
    """Return several planes as a list."""
    try:
        return list(planes)
    except TypeError:
        raise InputError(f"'{what}' is {planes!r}; a plane is needed, or a list of them.") from None


def context_planes(array: Any) -> npt.NDArray[np.int32]:
    """Return a context of shape (planes, ny, nx) that can be written in place."""
    planes = as_array(array, "out_ctx")
    if planes.ndim not in (2, 3):
        raise InputError("'out_ctx' must be either a 2D or 3D array.", found=planes.shape)
    wide = planes.dtype.itemsize > 4 and planes.size
    if planes.dtype.kind not in "iu" or (wide and not -(2**31) <= planes.min() <= planes.max() < 2**32):
        raise InputError(
            f"'out_ctx' is of type {planes.dtype} and must hold integers of 32 bits; give it as numpy.int32.",
            dtype=str(planes.dtype),
        )
    planes = output_plane(planes, np.int32, "out_ctx")
    return planes[None] if planes.ndim == 2 else planes


def strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `array` in native memory whose strides are whole elements."""
    itemsize = array.dtype.itemsize
    if array.flags.aligned and all(stride % itemsize == 0 for stride in array.strides):
        return array
    return np.ascontiguousarray(array)


def bit_plane(array: Any, what: str) -> npt.NDArray[np.uint32]:
    """Return `array` as uint32 bits; signed values keep their bits."""
    array = as_array(array, what)
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        raise DtypeError(
            f"'{what}' must be of an unsigned integer type with itemsize of 4 bytes or less. Found {array.dtype}: "
            f"convert it with .astype(numpy.uint32) if its values fit.",
            dtype=str(array.dtype),
        )
    return strided(array.astype(np.uint32, copy=False))


def same_shape(array: npt.NDArray[Any], shape: tuple[int, ...], what: str, noun: str = "shape") -> None:
    """Raise if a plane of the input image differs in shape from its data."""
    if array.shape != shape:
        raise ShapeError(
            f"'{what}' {noun} is not consistent with 'data' shape. Found {array.shape}, needed {shape}.",
            found=array.shape,
            needed=shape,
        )


def output_plane(array: Any, dtype: npt.DTypeLike, what: str) -> npt.NDArray[Any]:
    """Return a plane that can be written in place: the caller's own array if it is of this type and writeable."""
    array = as_array(array, what, dtype)
    usable = array.flags.writeable and array.flags.aligned and array.dtype.isnative
    usable = usable and all(stride % array.dtype.itemsize == 0 for stride in array.strides)
    return array if usable else np.array(array, dtype=dtype, order="C")


def positive(value: Any, what: str) -> float:
    """Return a finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"'{what}' is {value}; it must be a finite number above 0.", **{what: value})
    return number


def window_bounds(
    shape: tuple[int, int], xmin: float | None, xmax: float | None, ymin: float | None, ymax: float | None
) -> tuple[int, int, int, int]:
    """Return the part of the image to use as half-open bounds (x0, x1, y0, y1).

    The arguments are inclusive pixel indices; a maximum of None, 0 or less means no limit.
    """
    bounds: list[int] = []
    for axis, size, low, high in (("x", shape[1], xmin, xmax), ("y", shape[0], ymin, ymax)):
        try:
            first = 0 if low is None else math.ceil(min(max(low, 0), size))
            last = size - 1 if high is None or high <= 0 else math.floor(min(high, size - 1))
        except (TypeError, ValueError):  # no numbers, or NaN
            first, last = 1, 0
        if first > last:
            raise InputError(
                f"No pixel lies between {axis}min = {low} and {axis}max = {high} in an image of {size} pixels along "
                f"{axis}; bounds are pixel indices from 0 to {size - 1}.",
                low=low,
                high=high,
                size=size,
            )
        bounds += [first, last + 1]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def unshared(array: npt.NDArray[Any], outputs: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return `array`, or a copy if it shares memory with one of the outputs."""
    return array.copy() if any(np.may_share_memory(array, out) for out in outputs) else array
