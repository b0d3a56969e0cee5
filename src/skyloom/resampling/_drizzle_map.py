"""The pixel map of an image that is drizzled: an array, or a sparse map that the kernels expand piece by piece."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.resampling._drizzle_checks import LARGEST_FRAME
from skyloom.resampling._drizzle_planes import as_array, hides_pixels, strided
from skyloom.resampling.maps import SampledMap, XYArray

Positions = XYArray | SampledMap

FARTHEST = 2.0**36  # pixels: doubles hold positions to 2^-17 there


def positions_of(pixmap: Any, shape: tuple[int, ...], *, expand: bool) -> Positions:
    """Return the positions of the pixels of an image, as the kernels can use them.

    Parameters
    ----------
    pixmap : array_like of float, shape (ny, nx, 2), or SampledMap
        Output position (X, Y) of the centre of each input pixel.
    shape : tuple of int
        Shape (ny, nx) of the image.
    expand : bool
        Whether all positions are needed as an array.

    Returns
    -------
    ndarray of float64, or SampledMap
        A sampled map stays what it is, unless it has no grid or is to be expanded.

    Raises
    ------
    ShapeError
        The map is that of an image of another shape.
    """
    if isinstance(pixmap, SampledMap):
        _same_shape(pixmap.shape, shape)
        return pixmap.pixmap() if expand or pixmap.grid() is None else pixmap
    if hides_pixels(pixmap):
        pixmap = np.ma.filled(np.ma.asarray(pixmap, dtype=np.float64), np.nan)
    positions = strided(as_array(pixmap, "pixmap", np.float64))
    if positions.ndim != 3 or positions.shape[2] != 2:
        raise ShapeError(
            f"'pixmap' has the shape {positions.shape}; it must have the shape (ny, nx, 2).",
            found=positions.shape,
            needed=(*shape, 2),
        )
    _same_shape(positions.shape[:2], shape)
    return positions


def _same_shape(found: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if found != needed:
        error = ShapeError("'pixmap' shape is not consistent with 'data' shape.", found=found, needed=needed)
        error.add_note(f"The map is for {found}, the image is {needed}.")  # drizzle 3.0 has exactly this text
        raise error


def for_kernels(positions: Positions) -> XYArray | _kernels.MapGrid:
    """Return what `_kernels.DrizzleFootprint` takes."""
    grid = positions.grid() if isinstance(positions, SampledMap) else positions
    assert grid is not None  # `positions_of` has seen to it
    return grid


def rows_of(positions: Positions, rows: npt.NDArray[np.int64]) -> XYArray:
    """Return some rows of the map, shape (len(rows), nx, 2)."""
    if isinstance(positions, SampledMap):
        return np.concatenate([positions.rows(row, row + 1) for row in rows])
    return positions[rows]


def any_finite(positions: Positions, window: tuple[int, int, int, int]) -> bool:
    """Return whether any position within a window (x0, x1, y0, y1) is finite."""
    x0, x1, y0, y1 = window
    return any(
        bool(np.isfinite(rows_of(positions, np.arange(y0 + start, y0 + stop))[:, x0:x1]).all(axis=2).any())
        for start, stop in row_bands(y1 - y0, 8)
    )


def output_range(pixmap: XYArray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first output pixel (x, y) that a map reaches, and the shape (ny, nx) that holds all of them.

    Raises
    ------
    InputError
        The map is finite nowhere.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an all-NaN map is an error below
        low = np.floor(np.nanmin(pixmap, axis=(0, 1)))
        high = np.ceil(np.nanmax(pixmap, axis=(0, 1)))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InputError(
            "No or too few valid pixels in the pixel map: it has no finite range that could give the output "
            "shape. Give 'out_shape', and positions that are finite."
        )
    size = high - low + 1
    if size.max() > LARGEST_FRAME:
        raise InputError(
            f"The positions in the pixel map span {size[0]:.4g} x {size[1]:.4g} output pixels, more than an output can "
            f"have. Give 'out_shape', or set positions that mean nothing to NaN.",
            size=(float(size[0]), float(size[1])),
        )
    if max(abs(low).max(), abs(high).max()) > FARTHEST:
        raise InputError(
            f"The pixel map begins at ({low[0]:.4g}, {low[1]:.4g}), so far from 0 that fractions of a pixel are lost. "
            "Give positions on the output frame.",
            found=(float(low[0]), float(low[1])),
        )
    return (int(low[0]), int(low[1])), (int(size[1]), int(size[0]))
