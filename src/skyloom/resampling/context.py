"""The context of a drizzled image: which images have contributed to which pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError

CTX_PLANE_BITS = 32


class PixelIndexError(InputError, IndexError):
    """A pixel lies outside of the image."""


def decode_context(context: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike) -> list[npt.NDArray[np.intp]]:
    """List the images that have contributed to given pixels.

    Parameters
    ----------
    context : array_like of int, shape (planes, ny, nx)
        A context image, as `Drizzle.out_ctx`. A plane holds as many images as its type has bits: 32 for those of
        Drizzle.
    x, y : int or array_like of int, shape (n,)
        Pixel indices.

    Returns
    -------
    list of ndarray of int
        For each pixel the numbers (from 0) of the images, in rising order.

    Raises
    ------
    InputError
        The context is not three-dimensional, or `x` and `y` are not integers of one shape, or outside of the image
        (then it is an `IndexError`, too).
    """
    bits = np.asarray(context)
    if bits.ndim != 3 or bits.dtype.kind not in "iu":
        raise InputError(
            f"'context' must be a 3D array of integers; found {bits.ndim}D of {bits.dtype}.", found=bits.shape
        )
    xs, ys = np.atleast_1d(x), np.atleast_1d(y)
    if xs.shape != ys.shape or xs.ndim != 1 or xs.dtype.kind not in "iu" or ys.dtype.kind not in "iu":
        raise InputError("'x' and 'y' must be integers, or 1D arrays of integers of equal length.")
    ny, nx = bits.shape[1:]
    outside = (xs < 0) | (xs >= nx) | (ys < 0) | (ys >= ny)
    if outside.any():
        raise PixelIndexError(
            f"The pixel x = {xs[outside][0]}, y = {ys[outside][0]} lies outside of the context of {nx} x {ny} pixels; "
            "indices from 0 are needed.",
            x=int(xs[outside][0]),
            y=int(ys[outside][0]),
        )
    unsigned = np.dtype(f"u{bits.dtype.itemsize}")
    pixels = bits[:, ys, xs].astype(unsigned)  # signed values keep their bits
    is_set = (pixels.T[..., None] >> np.arange(8 * unsigned.itemsize, dtype=unsigned)) & unsigned.type(1)
    return [np.flatnonzero(pixel) for pixel in is_set.reshape(len(xs), -1)]
