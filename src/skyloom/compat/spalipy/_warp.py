"""The pixels: one source on a frame of the template, its mask, and the frame that holds all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, grey_dilation, map_coordinates, spline_filter

from skyloom._threads import map_bands, row_bands
from skyloom.errors import NoOverlapError
from skyloom.exposure import Exposure, MaskBit
from skyloom.resampling import resample
from skyloom.resampling.kernels import HALF_WIDTHS
from skyloom.resampling.maps import Map, SampledMap, pixel_area_ratio
from skyloom.resampling.resample import LARGEST_PIXEL_RATIO, median_area

Float = npt.NDArray[np.float64]

METHODS = ("bilinear", "bilinear", "cubic", "auto", "lanczos4", "lanczos4")
"""Kernel of skyloom that is nearest to a spline of each order in reach, noise and sharpness: for the mask, the variance
and the values near masked pixels. 'auto' is Lanczos3, or area overlap where the output's pixels are larger than the
input's. Order 0 takes its values from the nearest pixels instead."""

_TOLERANCE = 1e-4  # pixels


def warp(exposure: Exposure, to_source: Map, shape: tuple[int, int], interp_order: int) -> Exposure:
    """Return a source on another frame, flux conserved; all is masked if it does not reach there."""
    try:
        result = resample(exposure, to_source, shape, method=METHODS[interp_order], tolerance=_TOLERANCE)
    except NoOverlapError:
        nothing = np.zeros(shape, exposure.data.dtype)
        return Exposure(nothing, mask=np.full(shape, int(MaskBit.NO_DATA), np.uint32), name=exposure.name)
    if interp_order > 0:
        return result if interp_order == 1 else _with_spline(result, exposure, to_source, interp_order)
    y, x, inside = nearest(to_source, shape, exposure.shape)
    area = pixel_area_ratio(SampledMap(to_source, shape, tolerance=_TOLERANCE).rows(0, shape[0]))
    lost = ~inside | ~exposure.usable[y, x] | ~np.isfinite(area)
    mask = np.where(inside, exposure.mask[y, x], np.uint32(MaskBit.NO_DATA)).astype(np.uint32)
    area = np.where(lost, 0.0, area)
    variance = None if exposure.variance is None else exposure.variance[y, x] * area**2
    return result.replace(data=exposure.data[y, x] * area, variance=variance, mask=mask)


def _with_spline(result: Exposure, exposure: Exposure, to_source: Map, order: int) -> Exposure:
    """Return `result` with the values of the interpolating spline wherever its mask is clean.

    The spline passes through all pixels (Unser 1999, IEEE Signal Processing Magazine 16, 22): unusable ones have the
    value of the nearest usable pixel. Where the output's pixels are larger, `result` is the area overlap and stays.
    """
    sampled = SampledMap(to_source, result.shape, tolerance=_TOLERANCE)
    if median_area(sampled) > LARGEST_PIXEL_RATIO**2:
        return result
    ny, nx = result.shape
    data = np.array(result.data, np.float64)
    coefficients = spline_filter(_inpainted(exposure), order, mode="mirror")

    def fill(band: tuple[int, int]) -> None:
        start, stop = band
        above, below = max(start - 1, 0), min(stop + 1, ny)
        xy = sampled.rows(above, below)
        area = pixel_area_ratio(xy)[start - above : stop - above] if min(ny, nx) > 1 else np.ones((stop - start, nx))
        xy = xy[start - above : stop - above]
        clean = result.mask[start:stop] == 0
        at = xy[clean][:, ::-1].T
        values = map_coordinates(coefficients, at, order=order, mode="mirror", prefilter=False)
        data[start:stop][clean] = values * area[clean]

    map_bands(fill, row_bands(ny))
    return result.replace(data=data)


def _inpainted(exposure: Exposure) -> Float:
    """Return the data, with the nearest usable pixel in the place of each unusable one."""
    data = np.array(exposure.data, np.float64)
    if exposure.usable.all():
        return data
    indices = distance_transform_edt(~exposure.usable, return_distances=False, return_indices=True)
    return np.asarray(data[tuple(indices)])


def nearest(
    to_source: Map, shape: tuple[int, int], source_shape: tuple[int, int]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return row and column of the source pixel under each output pixel, and whether there is one."""
    sampled = SampledMap(to_source, shape, tolerance=_TOLERANCE)
    ny, nx = source_shape
    row, column = np.empty(shape, np.intp), np.empty(shape, np.intp)
    inside = np.empty(shape, bool)

    def fill(band: tuple[int, int]) -> None:
        xy = sampled.rows(*band)
        with np.errstate(invalid="ignore"):
            good = np.all((xy > -0.5) & (xy < np.array([nx, ny]) - 0.5), axis=2)
        index = np.rint(np.where(np.expand_dims(good, 2), xy, 0.0)).astype(np.intp)
        rows = slice(*band)
        inside[rows], column[rows], row[rows] = good, index[..., 0], index[..., 1]

    map_bands(fill, row_bands(shape[0]))
    return row, column, inside


def filled(result: Exposure, exposure: Exposure, to_source: Map, cval: float) -> Float:
    """Return the data of a warped source: `cval` where nothing is known, NaN where the source is not finite."""
    data = np.where(result.usable, result.data, cval).astype(np.float64)
    if (exposure.mask & np.uint32(MaskBit.NO_DATA)).any():
        _, _, inside = nearest(to_source, result.shape, exposure.shape)
        data[inside & ((result.mask & np.uint32(MaskBit.NO_DATA)) != 0)] = np.nan
    return data


def warp_mask(
    mask: npt.NDArray[Any], result: Exposure, to_source: Map, interp_order: int, cval_mask: float
) -> npt.NDArray[Any]:
    """Return the mask of a warped source, in the type of the source's: its values, wherever too much weight was lost.

    The value is that of the nearest pixel; where that one is good but its masked neighbours took too much of the
    kernel, the largest of theirs.
    """
    row, column, inside = nearest(to_source, result.shape, mask.shape)
    value = mask[row, column]
    missing = inside & (value == 0) & ((result.mask & np.uint32(MaskBit.BAD)) != 0)
    if missing.any():
        size = 2 * HALF_WIDTHS.get(METHODS[interp_order], HALF_WIDTHS["lanczos3"]) + 1
        grown = grey_dilation(mask.astype(np.uint8 if mask.dtype.kind == "b" else mask.dtype), (size, size))
        value[missing] = grown[row[missing], column[missing]].astype(mask.dtype)
    value[~inside] = np.asarray(cval_mask).astype(mask.dtype)
    return value


def union_frame(
    shape: tuple[int, int], maps: Sequence[Map], source_shapes: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], tuple[int, int]]:
    """Return the whole-pixel shift (x, y) and the shape of the frame that holds a template and all sources.

    Parameters
    ----------
    shape : (int, int)
        Of the template, (ny, nx).
    maps : sequence of callable
        Source to template pixels.
    source_shapes : sequence of (int, int)
        Shapes of the sources.
    """
    low, high = np.zeros(2), np.array([shape[1], shape[0]]) - 1.0
    for to_template, (ny, nx) in zip(maps, source_shapes, strict=True):
        x, y = np.linspace(0, nx - 1, 65), np.linspace(0, ny - 1, 65)
        border = np.concatenate([np.column_stack([x, np.full(65, edge)]) for edge in (0.0, ny - 1.0)])
        border = np.concatenate([border, *(np.column_stack([np.full(65, edge), y]) for edge in (0.0, nx - 1.0))])
        image = to_template(border)
        image = image[np.isfinite(image).all(axis=1)]
        if len(image):
            low, high = np.minimum(low, image.min(axis=0)), np.maximum(high, image.max(axis=0))
    # rounding must not add a row of nothing
    first, last = np.floor(low + 1e-6).astype(np.intp), np.ceil(high - 1e-6).astype(np.intp)
    nx, ny = (last - first + 1).tolist()
    return -first, (ny, nx)


def padded(data: Float, anchor: npt.NDArray[np.intp], shape: tuple[int, int], cval: float) -> Float:
    """Return an image on a larger frame."""
    result = np.full(shape, float(cval))
    x, y = anchor
    result[y : y + data.shape[0], x : x + data.shape[1]] = data
    return result
