"""The names of `drizzle.cdrizzle`, the compiled part of `drizzle` that existing programs and tests call by keywords."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.compat.drizzle._polygon import clip_polygon
from skyloom.errors import InputError
from skyloom.resampling.blot import blot_image
from skyloom.resampling.context import CTX_PLANE_BITS
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.maps import XYArray, invert_map

__all__ = ["clip_polygon", "invert_pixmap", "tblot", "tdriz"]


def tdriz(  # noqa: PLR0917  the original's signature
    input: Any,  # noqa: A002
    weights: Any,
    pixmap: Any,
    output: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    context: npt.NDArray[Any] | None,
    input2: Any = None,
    output2: Any = None,
    dq: Any = None,
    outdq: npt.NDArray[Any] | None = None,
    uniqid: int = 1,
    xmin: int = 0,
    xmax: int = 0,
    ymin: int = 0,
    ymax: int = 0,
    iscale: float = 1.0,
    pscale_ratio: float | None = None,
    scale: float | None = None,
    pixfrac: float = 1.0,
    kernel: str = "square",
    in_units: str = "cps",
    expscale: float = 1.0,
    wtscale: float = 1.0,
    fillstr: str = "INDEF",
    fillstr2: str = "INDEF",
) -> tuple[int, int]:
    """Drizzle one image onto output arrays, in place: one step of `skyloom.resampling.Drizzle.add_image`.

    Parameters
    ----------
    input, weights : array_like, shape (ny, nx)
        The image and the weights of its pixels.
    pixmap : array_like of float, shape (ny, nx, 2)
        Output position of each pixel.
    output, counts : ndarray of float, shape (my, mx)
        Weighted mean so far, and its weight.
    context : ndarray of int32, shape (my, mx), or None
        The plane of the context image that holds bit ``(uniqid - 1) % 32``.
    input2, output2 : (sequence of) ndarray, optional
        Planes averaged with squared weights, and their results so far.
    dq, outdq : ndarray of int, optional
        Data-quality bits, and their result so far.
    uniqid : int
        Number of the image, from 1.
    xmin, xmax, ymin, ymax, iscale, pixfrac, kernel, in_units
        As for `Drizzle.add_image`.
    pscale_ratio : float, optional
        `pixel_scale_ratio` there; None: estimated.
    scale : float, optional
        Deprecated: sets `iscale` to its square and `pscale_ratio` to itself.
    expscale : float
        `exptime` there.
    wtscale : float
        `wht_scale` there.
    fillstr, fillstr2 : str
        `fillval` and `fillval2` of `Drizzle`.

    Returns
    -------
    nmiss, nskip : int
        As from `Drizzle.add_image`.

    Raises
    ------
    InputError
        An argument cannot be used.
    """
    if scale is not None:
        _warn_deprecated("scale", "Give iscale=scale**2 and pscale_ratio=scale instead.")
        iscale, pscale_ratio = scale * scale, scale
    if dq is not None and outdq is None:
        raise InputError("When 'dq' is provided, 'outdq' must also be provided.")
    squares, sums = _planes(input2), _planes(output2)
    if len(squares) != len(sums):
        raise InputError(f"'input2' holds {len(squares)} planes and 'output2' {len(sums)}; give as many of both.")
    # Drizzle knows which pixels have been hit by their context. Here the caller's may tell another story (one plane of
    # several), so it is made from the weights, with a bit that is not that of this image.
    bit = (uniqid - 1) % CTX_PLANE_BITS
    used = np.asarray(counts) != 0
    known = used.astype(np.int32) << np.int32(bit == 0)
    drizzle = Drizzle(
        kernel=kernel,
        fillval=fillstr,
        fillval2=fillstr2,
        out_img=output,
        out_wht=counts,
        out_ctx=known,
        out_img2=sums or None,
        out_dq=outdq,
        exptime=float(used.any()),
        begin_ctx_id=bit,
    )
    missed = drizzle.add_image(
        input,
        expscale,
        pixmap,
        data2=squares or None,
        dq=dq,
        iscale=iscale,
        pixel_scale_ratio=pscale_ratio,
        weight_map=weights,
        wht_scale=wtscale,
        pixfrac=pixfrac,
        in_units=in_units,
        xmin=xmin,
        xmax=xmax,
        ymin=ymin,
        ymax=ymax,
    )
    _return(drizzle.out_img, output)
    _return(drizzle.out_wht, counts)
    for result, plane in zip(drizzle.out_img2 or (), sums, strict=False):
        _return(result, plane)
    if dq is not None:
        _return(drizzle.out_dq, outdq)
    if context is not None and drizzle.out_ctx is not None:
        mark = np.uint32(1 << bit).astype(np.int32)
        context[...] |= drizzle.out_ctx[0] & mark
    return missed


def _planes(planes: Any) -> list[Any]:
    """Return a list of planes from None, one plane, or several."""
    if planes is None:
        return []
    return [planes] if isinstance(planes, np.ndarray) and planes.ndim == 2 else list(planes)


def _return(result: Any, given: Any) -> None:
    """Bring a result into the caller's array, if it could not be computed there."""
    if result is not given:
        given[...] = result


def _warn_deprecated(argument: str, advice: str) -> None:
    warnings.warn(f"Argument '{argument}' has been deprecated. {advice}", DeprecationWarning, stacklevel=3)


def tblot(  # noqa: PLR0917  the original's signature
    source: Any,
    pixmap: Any,
    output: npt.NDArray[Any],
    xmin: int = 0,  # noqa: ARG001
    xmax: int = 0,  # noqa: ARG001
    ymin: int = 0,  # noqa: ARG001
    ymax: int = 0,  # noqa: ARG001
    iscale: float | None = None,
    kscale: float | None = None,
    scale: float | None = None,
    interp: str = "poly5",
    exptime: float | None = None,
    fillval: float | None = None,
    misval: float | None = None,
) -> int:
    """Interpolate an image at the positions of a pixel map, into an output array: `skyloom.resampling.blot_image`.

    Parameters
    ----------
    source, pixmap
        `data` and `pixmap` there.
    output : ndarray of float, shape (my, mx)
        Is filled with the result.
    xmin, xmax, ymin, ymax : int
        Without effect, as in the original.
    iscale, interp, fillval
        As there; None: 1 and 0.
    scale, exptime, kscale, misval : float, optional
        Deprecated: divides by its square; multiplies; has no effect; is `fillval`.

    Returns
    -------
    int
        0.

    Raises
    ------
    InputError
        An argument cannot be used.
    """
    factor = 1.0 if iscale is None else iscale
    if scale is not None:
        _warn_deprecated("scale", "Give iscale=1/scale**2 instead.")
        factor = 1 / (scale * scale)
    if kscale is not None:
        _warn_deprecated("kscale", "It has no effect.")
    if exptime is not None:
        _warn_deprecated("exptime", "Multiply 'iscale' by it instead.")
        factor *= exptime
    if misval is not None:
        _warn_deprecated("misval", "Give 'fillval' instead.")
        if fillval is not None:
            raise InputError("Argument 'fillval' should not be set when 'misval' is set.")
        fillval = misval
    result = blot_image(
        source, pixmap, out_img=output, fillval=0.0 if fillval is None else fillval, iscale=factor, interp=interp
    )
    _return(result, output)
    return 0


def invert_pixmap(pixmap: npt.ArrayLike, xyout: npt.ArrayLike, bbox: npt.ArrayLike | None) -> XYArray | None:
    """Return the input position that a pixel map sends to a given output position.

    Between the pixel centres the map is bilinear; beyond the outer ones the outer cells go on.

    Parameters
    ----------
    pixmap : array_like, shape (ny, nx, 2)
        Output position of each pixel.
    xyout : array_like, shape (2,)
        Output position (x, y).
    bbox : array_like, shape (2, 2), or None
        Limits ((xmin, xmax), (ymin, ymax)) of the result; None: those of the image, half a pixel beyond the outer
        centres.

    Returns
    -------
    ndarray of float64, shape (2,), or None
        Input position (x, y), at the limits if the true one lies beyond; None if the map cannot be inverted there.
    """
    positions = np.asarray(pixmap, np.float64)
    if positions.ndim != 3 or positions.shape[2] != 2 or min(positions.shape[:2]) < 2:
        raise InputError(f"A pixmap of shape {positions.shape} was given; it must be (ny, nx, 2), 2 by 2 at least.")
    ny, nx = positions.shape[:2]
    limits = np.array([[-0.5, nx - 0.5], [-0.5, ny - 0.5]]) if bbox is None else np.asarray(bbox, np.float64)

    def bilinear(xy: XYArray) -> XYArray:
        x, y = np.clip(np.floor(np.nan_to_num(xy)), 0, (nx - 2, ny - 2)).astype(np.intp).T
        u, v = (xy - np.column_stack([x, y])).T[..., None]
        lower = (1 - u) * positions[y, x] + u * positions[y, x + 1]
        upper = (1 - u) * positions[y + 1, x] + u * positions[y + 1, x + 1]
        return (1 - v) * lower + v * upper

    try:
        inverse = invert_map(bilinear, (ny, nx))
    except InputError:
        return None
    found: XYArray = inverse(np.asarray(xyout, np.float64).reshape(1, 2))[0]
    return np.clip(found, *limits.T) if np.isfinite(found).all() else None
