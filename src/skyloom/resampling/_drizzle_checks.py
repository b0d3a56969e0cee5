"""What goes together in the arguments of a drizzle."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_planes import as_array, hides_pixels, real_plane, same_shape

LARGEST_FRAME = 2**28 - 1  # pixels along one axis: the kernels' limit
LARGEST_PIXFRAC = 4096.0  # the areas of drops of this size still have six digits


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, OverflowError):
        return False


def is_number(value: Any) -> bool:
    """Return whether this is a real number of Python or NumPy, and neither a text nor a boolean."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_exptime(exptime: float, out_img: Any, out_wht: Any, out_ctx: Any) -> None:
    """Earlier results and their exposure time come together or not at all."""
    if not (_is_finite(exptime) and exptime >= 0):
        raise InputError("Exposure time must be non-negative.", exptime=exptime)
    if exptime > 0 and out_img is None and out_ctx is None and out_wht is None:
        raise InputError(
            "Exposure time must be 0.0 for the first resampling: no earlier output arrays are given.", exptime=exptime
        )
    earlier = [(out_ctx, "out_ctx"), (out_wht, "out_wht")]
    if exptime == 0 and any(as_array(plane, what).any() for plane, what in earlier if plane is not None):
        raise InputError(
            "Inconsistent exposure time and context and/or weight images: these are not 0, so 'exptime' must be the "
            "exposure time that went into them."
        )


def check_covariance(block: Any, exptime: float) -> None:
    """Blocks of covariances have a whole number of pixels a side; earlier results have no covariances to go on with."""
    if block is None:
        return
    if not isinstance(block, (int, np.integer)) or isinstance(block, bool) or block < 1:
        raise InputError(
            f"'covariance' is {block!r}; the number of output pixels on a side of the blocks over which "
            "covariances are averaged is needed, a whole number (64, say; 1 for every pixel by itself).",
            covariance=block,
        )
    if exptime > 0:
        raise InputError(
            "The covariances of earlier results are not known, so they cannot be continued: start with the first "
            "image, or leave out 'covariance'."
        )


def check_context_ids(first: Any, last: Any) -> None:
    """Numbers in the context, of the first image and the largest that is expected, are whole and in order."""
    ids = (first, 0 if last is None else last)
    if not all(isinstance(n, (int, np.integer)) and n < 2**31 for n in ids) or first < 0:
        raise InputError("Invalid context image ID", begin_ctx_id=first, max_ctx_id=last)
    if last is not None and last < first:
        raise InputError("'max_ctx_id' cannot be smaller than 'begin_ctx_id'.", max_ctx_id=last)


def check_earlier(planes: Sequence[tuple[FloatArray | None, str]], weights: Sequence[FloatArray | None]) -> None:
    """Earlier results must be finite wherever they have a weight: nothing that is added could mend them."""
    for (plane, what), weight in zip(planes, weights, strict=True):
        if weight is None:
            continue
        if not (np.isfinite(weight.min()) and np.isfinite(weight.max())):
            raise InputError(
                f"The weights of earlier results for '{what}' are not all finite; set those to 0 that mean nothing."
            )
        if plane is None or (np.isfinite(plane.min()) and np.isfinite(plane.max())):
            continue
        wrong = int(np.count_nonzero(~np.isfinite(plane) & (weight != 0)))
        if wrong:
            raise InputError(
                f"{wrong} pixels of '{what}' have a weight, but are not finite; set their weight (and context) to 0.",
                found=wrong,
            )


def output_shape(shape: Any) -> tuple[int, int]:
    """Return the shape (ny, nx) that the caller wants."""
    try:
        ny, nx = (int(n) if isinstance(n, float) and n.is_integer() else operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise ShapeError(
            f"Inconsistent data shapes specified: 'out_shape' is {shape!r}; two whole numbers (ny, nx) are needed.",
            found=shape,
        ) from None
    if not (0 < ny <= LARGEST_FRAME and 0 < nx <= LARGEST_FRAME):
        raise ShapeError(f"'out_shape' is ({ny}, {nx}); numbers from 1 to {LARGEST_FRAME} are needed.", found=shape)
    return ny, nx


def check_options(exptime: float, in_units: str, pixfrac: float) -> None:
    """Raise if an image has no exposure time, or its units or the size of drops make no sense."""
    if not (_is_finite(exptime) and exptime > 0):
        raise InputError("'exptime' *must* be a strictly positive number.", exptime=exptime)
    if not isinstance(in_units, str) or in_units not in ("cps", "counts"):
        raise InputError(f"Unknown unit type '{in_units}'; 'cps' or 'counts' is needed.", in_units=in_units)
    if not (_is_finite(pixfrac) and pixfrac <= LARGEST_PIXFRAC):
        raise InputError(
            f"'pixfrac' is {pixfrac}; a finite number is needed, the side of a drop in input pixels: at most "
            f"{LARGEST_PIXFRAC:.0f}.",
            pixfrac=pixfrac,
        )


def output_dtype(out_img: Any, out_wht: Any) -> npt.DTypeLike:
    """Return float64 if the caller gave a float64 image (or weights), else float32."""
    first = out_img if out_img is not None else out_wht
    wide = isinstance(first, np.ndarray) and first.dtype.kind == "f" and first.dtype.itemsize == 8
    return np.float64 if wide else np.float32


def weights_of(data: Any, weight_map: Any, shape: tuple[int, ...]) -> FloatArray | None:
    """Return the weights, 0 where `data` is a masked array and masked."""
    weight = None
    if weight_map is not None:
        weight = plane = real_plane(weight_map, "weight_map")
        same_shape(plane, shape, "weight_map")
        bands = row_bands(shape[0], 256)
        smallest = np.fmin.reduce(map_bands(lambda band: np.fmin.reduce(plane[slice(*band)], axis=None), bands))
        if smallest < 0:
            raise InputError(
                f"The smallest value of 'weight_map' is {smallest}; weights must not be negative.",
                smallest=float(smallest),
            )
    if hides_pixels(data):
        used = ~np.ma.getmaskarray(data)
        weight = used.astype(np.float32) if weight is None else np.where(used, weight, weight.dtype.type(0))
    return weight
