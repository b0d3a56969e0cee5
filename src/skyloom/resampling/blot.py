"""`blot_image`: interpolate an image at the positions of a pixel map, the way back from a drizzled image to its inputs.

Interpolation is separable: with weights w_k along each axis,

    I(x, y) = iscale * sum_jk w_j(y) w_k(x) d[j, k],     sum_k w_k = 1.

The weights of 'poly3' and 'poly5' are those of the polynomial through the 4 or 6 nearest pixels, which Everett's
formula with central differences writes in another way; those of the Lanczos kernels are sinc(u) sinc(u / N),
normalised. See `skyloom.resampling.kernels.kernel_weight`.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_planes import (
    as_array,
    hides_pixels,
    output_plane,
    positive,
    real_plane,
    unshared,
)
from skyloom.resampling.kernels import polynomial_table
from skyloom.resampling.maps import SampledMap

_NOT_GIVEN: Final = object()
_METHODS = {
    "nearest": None,
    "linear": "bilinear",
    "poly3": "poly3",
    "poly5": "poly5",
    "lanczos3": "lanczos3",
    "lanczos5": "lanczos5",
}
_OLD_NAMES = {"lan3": "lanczos3", "lan5": "lanczos5"}


def blot_image(  # noqa: PLR0917  the reference's signature
    data: Any,
    pixmap: Any,
    pix_ratio: Any = _NOT_GIVEN,
    exptime: Any = _NOT_GIVEN,
    output_pixel_shape: Any = _NOT_GIVEN,
    out_img: Any = None,
    fillval: float = 0.0,
    iscale: float = 1.0,
    interp: str = "poly5",
    sinscl: Any = _NOT_GIVEN,
) -> FloatArray:
    """Interpolate an image at the positions of a pixel map.

    A position is inside of the image if 0 <= x < nx and 0 <= y < ny. Where a kernel reaches beyond the outermost pixel
    centres, the image is continued by odd reflection, f(-k) = 2 f(0) - f(k): what is constant or linear stays so up to
    the border, on images of any size. 'linear' goes on with the value of the last pixel, and 'nearest' takes the last
    pixel within the last half pixel.

    A position on a pixel centre gives that pixel's value exactly, and a constant image its constant.

    Parameters
    ----------
    data : array_like, shape (ny, nx)
        The image. Pixels that are NaN, infinite, or masked in a masked array are missing.
    pixmap : array_like of float, shape (my, mx, 2), or SampledMap
        Position (x, y) in `data` of each output pixel, 0 at the centre of the first pixel. Used in double precision.
        Positions from 0 to nx (ny), less 1e-6 pixels for their rounding, are inside.
    pix_ratio : float, optional
        Deprecated: divides `iscale` by its square.
    exptime : float, optional
        Deprecated: multiplies `iscale`.
    output_pixel_shape : tuple of int, optional
        Deprecated: (mx, my), which `pixmap` tells.
    out_img : ndarray of float32 or float64, shape (my, mx), optional
        Where to put the result: any array that can be written in place, whatever its strides. An array of another type,
        or one that is read-only, is left as it is, and a new array is returned.
    fillval : float
        Value of output pixels without data: their position is outside of the image or not finite, or a missing pixel
        has a weight other than 0.
    iscale : float
        Factor on all values of the image, above 0.
    interp : {'nearest', 'linear', 'poly3', 'poly5', 'lanczos3', 'lanczos5'}
        'nearest' rounds halves up. 'lan3' and 'lan5' are deprecated names of the Lanczos kernels.
    sinscl : float, optional
        Deprecated and without effect: it belonged to ``interp='sinc'``, which is no longer there.

    Returns
    -------
    ndarray, shape (my, mx)
        `out_img`, or a new array of float32. Computed in float64 if `data` or `out_img` are: give a float64 `out_img`
        to keep that precision.

    Raises
    ------
    InputError
        An argument cannot be used; `ShapeError` if it is an array of a wrong shape.
    """
    method = _method(interp)
    iscale = _scale(iscale, pix_ratio, exptime)
    if sinscl is not _NOT_GIVEN:
        _deprecated(
            "Argument 'sinscl' has been deprecated, without effect: it belonged to interp='sinc'. Leave it out.", 3
        )
    fillval = _number(fillval, "fillval")
    positions = _pixmap(pixmap)
    shape = positions.shape[:2]
    if output_pixel_shape is not _NOT_GIVEN:
        _deprecated(
            "Argument 'output_pixel_shape' has been deprecated: 'pixmap' has the shape of the output. Leave it out.", 3
        )
        if not (np.iterable(output_pixel_shape) and tuple(output_pixel_shape)[::-1] == shape):
            raise ShapeError(
                f"'output_pixel_shape' is {output_pixel_shape}, but 'pixmap' is for {shape[::-1]} (nx, ny).",
                found=output_pixel_shape,
                needed=shape[::-1],
            )
    out = _output(out_img, shape)
    # float32 cannot hold every factor
    double = out.dtype == np.float64 or (iscale != 0 and not 1e-30 < abs(iscale) < 1e30)
    image = unshared(_image(data, np.float64 if double else np.float32), [out])
    positions = unshared(positions, [out])
    table = None if method is None else polynomial_table(method, image.dtype)

    def fill(band: tuple[int, int]) -> None:
        rows = out[slice(*band)]
        direct = rows.dtype == image.dtype and rows.flags.c_contiguous
        target = rows if direct else np.empty(rows.shape, image.dtype)
        xy = np.ascontiguousarray(positions[slice(*band)], np.float64)
        _kernels.blot(image, xy, table, method != "bilinear", iscale, fillval, target)
        if not direct:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
                rows[...] = target

    map_bands(fill, row_bands(shape[0]))
    return out


def _deprecated(message: str, stacklevel: int = 4) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)  # 4: called by a helper of blot_image


def _method(interp: str) -> str | None:
    """Return the name of the interpolation in `skyloom.resampling.kernels`, None for 'nearest'."""
    interp = str(interp)
    if interp in _OLD_NAMES:
        _deprecated(f"Interpolation method '{interp}' has been deprecated: give '{_OLD_NAMES[interp]}'.")
        interp = _OLD_NAMES[interp]
    if interp not in _METHODS:
        sinc = " 'sinc' is no longer there: a sinc that is cut off does not keep a constant; use 'lanczos5'."
        raise InputError(
            f"The interpolation 'interp' is {interp!r}; it must be one of {', '.join(_METHODS)}."
            + (sinc if interp == "sinc" else ""),
            interp=interp,
        )
    return _METHODS[interp]


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"'{what}' is {value!r}; a number is needed.", **{what: value}) from None


def _scale(iscale: Any, pix_ratio: Any, exptime: Any) -> float:
    """Return the factor on all values, with those that the deprecated arguments stand for."""
    factor = _number(iscale, "iscale")
    if pix_ratio is not _NOT_GIVEN:
        _deprecated("Argument 'pix_ratio' has been deprecated: give iscale=1 / pix_ratio**2 instead.")
        side = positive(pix_ratio, "pix_ratio")
        factor = factor / side / side
    if exptime is not _NOT_GIVEN:
        _deprecated("Argument 'exptime' has been deprecated: give iscale=exptime instead.")
        factor *= _number(exptime, "exptime")
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(
            f"The factor on the image is {factor}; 'iscale' must be a finite number above 0.", iscale=iscale
        )
    return factor


def _pixmap(pixmap: Any) -> npt.NDArray[Any]:
    if isinstance(pixmap, SampledMap):
        pixmap = pixmap.pixmap()
    positions = as_array(pixmap, "pixmap")
    if positions.ndim != 3 or positions.shape[2] != 2:
        raise ShapeError(
            f"'pixmap' has the shape {positions.shape}; (ny, nx, 2) is needed, x and y of each output pixel.",
            found=positions.shape,
        )
    if positions.dtype.kind not in "fiu":
        raise InputError(f"'pixmap' is of type {positions.dtype}; real numbers are needed.", dtype=str(positions.dtype))
    return positions


def _image(data: Any, at_least: npt.DTypeLike) -> FloatArray:
    """Return the image, contiguous, in double precision if it has it or shall; masked pixels are NaN."""
    image = real_plane(data.data if isinstance(data, np.ma.MaskedArray) else data, "data")
    if image.ndim != 2 or image.size == 0:
        raise ShapeError(
            f"'data' has the shape {image.shape}; a 2D image with at least one pixel is needed.", found=image.shape
        )
    if hides_pixels(data):
        image = np.where(np.ma.getmaskarray(data), image.dtype.type(np.nan), image)
    return np.ascontiguousarray(image, np.result_type(image.dtype, at_least))


def _output(out_img: Any, shape: tuple[int, ...]) -> FloatArray:
    """Return the array to fill."""
    if out_img is None:
        return np.empty(shape, np.float32)
    if np.shape(out_img) != shape:
        raise ShapeError(
            f"'out_img' has the shape {np.shape(out_img)}, but 'pixmap' is for {shape}; they must be the same.",
            found=np.shape(out_img),
            needed=shape,
        )
    wide = isinstance(out_img, np.ndarray) and out_img.dtype.kind == "f" and out_img.dtype.itemsize == 8
    return output_plane(out_img, np.float64 if wide else np.float32, "out_img")
